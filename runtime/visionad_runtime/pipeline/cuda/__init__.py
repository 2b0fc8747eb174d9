"""The pipeline on an NVIDIA GPU."""
