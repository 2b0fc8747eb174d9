"""The chain on an NVIDIA GPU: kernels that were compiled ahead of time, and their launch. No compiler, Triton or torch.

Nothing here is imported before a GPU backend is chosen; pycuda is imported by ``device.py`` alone.
"""
