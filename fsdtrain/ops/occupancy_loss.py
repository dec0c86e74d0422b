"""Occupancy loss: cross entropy over the classes of voxels, weighted by class.

The plain-PyTorch function below is the specification; a backend's kernel is tested against it.

Shape letters: B clips, X Y Z voxels, K classes.
"""

import torch
from torch import Tensor
from torch.nn import functional as F


def occupancy_loss(
    logits_BXYZK: Tensor, target_BXYZ: Tensor, valid_BXYZ: Tensor, class_weights_K: Tensor
) -> Tensor:
    """Mean over valid voxels of -log softmax(logits)[target], each weighted by its class.

    The mean divides by the sum of the weights, as torch.nn.CrossEntropyLoss does; it is 0 with a
    zero gradient where that sum is. Invalid voxels may hold anything, NaN too. Computed in float32
    whatever the model's precision.

    Args:
        logits_BXYZK: of any floating dtype.
        target_BXYZ: int64, the class of each voxel; from 0 to K - 1 where valid.
        valid_BXYZ: bool.
        class_weights_K: not negative.

    Returns:
        A scalar, float32 (float64 for float64 logits).
    """
    dtype = torch.promote_types(logits_BXYZK.dtype, torch.float32)
    logits = torch.where(valid_BXYZ[..., None], logits_BXYZK.to(dtype), 0.0)
    target = torch.where(valid_BXYZ, target_BXYZ, 0)
    log_probability = F.log_softmax(logits, -1).gather(-1, target[..., None]).squeeze(-1)
    weight = torch.where(valid_BXYZ, class_weights_K.to(dtype)[target], 0.0)
    total = weight.sum()
    return -(weight * log_probability).sum() / torch.where(total > 0, total, 1.0)
