"""The optimiser of a run. It does not know who steps it: Lightning, or a profile."""

from typing import Any

import torch
from torch import nn

from fsdtrain.settings import TrainingSettings


def build_optimizer(
    step: nn.Module, training: TrainingSettings, *, is_fused: bool = False
) -> torch.optim.Optimizer:
    """AdamW over what `step` trains, at the full learning rate.

    Args:
        step: whose parameters are trained.
        training: learning rate and weight decay.
        is_fused: update all weights in one kernel. It is the device's way and no part of the state:
            a checkpoint may be loaded on either.
    """
    fused = is_fused or None  # None: as torch likes
    optimizer = torch.optim.AdamW(
        _parameter_groups(step, training.weight_decay), lr=training.learning_rate, fused=fused
    )

    def keep_its_way(_: torch.optim.Optimizer, state: dict[str, Any]) -> dict[str, Any]:
        groups = [group | {"fused": fused} for group in state["param_groups"]]
        return state | {"param_groups": groups}

    optimizer.register_load_state_dict_pre_hook(keep_its_way)
    return optimizer


def _parameter_groups(step: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    # Biases and the scales of norms are not to be pulled to zero.
    parameters = [parameter for parameter in step.parameters() if parameter.requires_grad]
    return [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
