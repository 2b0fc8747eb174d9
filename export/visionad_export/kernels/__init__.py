"""GPU kernels: readable source (``source.py``), built ahead of time into the runtime's package data (``build.py``)."""
