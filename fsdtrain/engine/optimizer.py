"""The optimiser of a run. It does not know who steps it: Lightning, or a profile."""

from typing import Any

import torch
from torch import nn

from fsdtrain.settings import TrainingSettings


def build_optimizer(step: nn.Module, training: TrainingSettings) -> torch.optim.Optimizer:
    """AdamW over what `step` trains, at the full learning rate."""
    return torch.optim.AdamW(
        _parameter_groups(step, training.weight_decay), lr=training.learning_rate
    )


def _parameter_groups(step: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    # Biases and the scales of norms are not to be pulled to zero.
    parameters = [parameter for parameter in step.parameters() if parameter.requires_grad]
    return [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
