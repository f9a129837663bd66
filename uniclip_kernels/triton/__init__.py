"""The Triton backend, for CUDA and ROCm devices: one file a kernel family, ``backend`` drives them."""

from .backend import TritonBackend

__all__ = ["BACKEND", "TritonBackend"]

BACKEND = TritonBackend()
