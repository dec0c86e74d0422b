"""Loss functions of plain tensors; which head uses which, and with what weight, is the head's.

All return a scalar, all are averages over what is valid, and all are 0 with a zero gradient
where nothing is valid. Computed in float32 whatever the model's precision.

Shape letters: B clips, K modes, S future steps.
"""

import torch
from torch import Tensor
from torch.nn import functional as F


def masked_mean(values: Tensor, valid: Tensor) -> Tensor:
    """Mean of `values` where `valid` (same shape, bool); 0 where nothing is."""
    total = torch.where(valid, values, 0.0).sum()
    return total / valid.sum().clamp(min=1)


def binary_cross_entropy(
    logits: Tensor, target: Tensor, valid: Tensor, *, positive_weight: float
) -> Tensor:
    """Mean over valid cells of -w t log p - (1 - t) log(1 - p), p = sigmoid(logits).

    `target` and `valid` are bool and of the shape of `logits`. Simple-BEV weights positives by
    w = 2.13 (arXiv 2206.07959).
    """
    values = F.binary_cross_entropy_with_logits(
        logits.float(),
        target.float(),
        reduction="none",
        pos_weight=torch.full((), positive_weight, device=logits.device),
    )
    return masked_mean(values, valid)


def dice(logits: Tensor, target: Tensor, valid: Tensor) -> Tensor:
    """1 - 2 sum(p t) / (sum(p) + sum(t)) over all valid cells at once, p = sigmoid(logits).

    Sums over the whole batch, as the IoU it stands in for does; a batch without any vehicle gives
    a finite loss. Source: V-Net, arXiv 1606.04797, with the unsquared denominator.
    """
    probability = torch.where(valid, torch.sigmoid(logits.float()), 0.0)
    positive = (target & valid).float()
    overlap = (probability * positive).sum()
    return 1 - (2 * overlap + 1) / (probability.sum() + positive.sum() + 1)


def winner_takes_all(
    path_BKS2: Tensor, mode_logits_BK: Tensor, target_BS2: Tensor, valid_BS: Tensor
) -> tuple[Tensor, Tensor]:
    """(regression of the best mode, classification of which mode was the best).

    The best mode has the smallest mean distance over the valid steps. Its smooth-L1 (beta 1 m,
    summed over x and y) is averaged over valid steps of the batch; the cross entropy of the mode
    over clips with at least one valid step. Source: MTP, arXiv 1809.10732.
    """
    path_BKS2, mode_logits_BK = path_BKS2.float(), mode_logits_BK.float()
    is_valid_B1S = valid_BS[:, None]
    # Invalid steps may hold anything, NaN too; where() keeps them out of the gradient as well.
    target_B1S2 = torch.where(valid_BS[..., None], target_BS2, 0.0)[:, None]
    distance_BKS = (path_BKS2.detach() - target_B1S2).square().sum(-1).sqrt()
    best_B = torch.where(is_valid_B1S, distance_BKS, 0.0).sum(-1).argmin(1)
    is_best_BK1 = F.one_hot(best_B, path_BKS2.shape[1]).bool()[..., None]
    error_BKS = F.smooth_l1_loss(path_BKS2, target_B1S2.expand_as(path_BKS2), reduction="none").sum(
        -1
    )
    regression = torch.where(is_best_BK1 & is_valid_B1S, error_BKS, 0.0).sum()
    classification_B = F.cross_entropy(mode_logits_BK, best_B, reduction="none")
    return (
        regression / valid_BS.sum().clamp(min=1),
        masked_mean(classification_B, valid_BS.any(1)),
    )
