"""CUDA without torch: one thin device module on pycuda. Importing this package imports no GPU library."""
