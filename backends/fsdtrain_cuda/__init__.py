"""The NVIDIA backend: PyTorch on CUDA."""

from fsdtrain_cuda.backend import CudaBackend

__all__ = ["CudaBackend"]
