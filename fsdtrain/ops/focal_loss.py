"""Focal loss: binary cross entropy that counts what is classified well for little.

The plain-PyTorch function below is the specification; a backend's kernel is tested against it.
"""

import torch
from torch import Tensor
from torch.nn import functional as F


def focal_loss(logits: Tensor, target: Tensor, valid: Tensor, alpha: float, gamma: float) -> Tensor:
    """Mean over valid elements of -alpha_t (1 - p_t)^gamma log p_t, p = sigmoid(logits).

    p_t is p where the target is true and 1 - p elsewhere; alpha_t likewise alpha and 1 - alpha. 0
    with a zero gradient where nothing is valid. Invalid elements may hold anything, NaN too.
    Computed in float32 whatever the model's precision. Source: RetinaNet, arXiv 1708.02002.

    Args:
        logits: any shape, any floating dtype.
        target: bool, the same shape.
        valid: bool, the same shape.
        alpha: share of the true ones, 0 to 1.
        gamma: at least 0; 0 is binary cross entropy.

    Returns:
        A scalar, float32 (float64 for float64 logits).
    """
    known = torch.where(valid, logits.to(torch.promote_types(logits.dtype, torch.float32)), 0.0)
    towards_target = torch.where(target, known, -known)
    # A power of 1 - p_t itself has no finite derivative where that is zero.
    modulation = torch.exp(gamma * F.logsigmoid(-towards_target))
    share = torch.where(target, known.new_full((), alpha), 1.0 - alpha)
    values = torch.where(valid, share * modulation * -F.logsigmoid(towards_target), 0.0)
    return values.sum() / valid.sum().clamp(min=1)
