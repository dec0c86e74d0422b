"""The reference backend: plain PyTorch on the CPU. Read this page before writing another one."""

from fsdtrain_cpu.backend import CpuBackend

__all__ = ["CpuBackend"]
