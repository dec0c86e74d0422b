"""Tensors as the piece of memory they fill, whatever the order of their dimensions."""

import torch


def is_dense(tensor: torch.Tensor) -> bool:
    """Whether the elements fill one piece of memory without holes or overlaps."""
    if tensor.is_contiguous() or tensor.is_contiguous(memory_format=torch.channels_last):
        return True
    expected = 1
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size == 1:
            continue
        if stride != expected:
            return False
        expected *= size
    return True


def in_memory_order(tensor: torch.Tensor) -> torch.Tensor:
    """The elements of a dense tensor as a vector, a view."""
    return tensor.as_strided((tensor.numel(),), (1,))
