"""Runs steps of small models, as they are and compiled for the emulated machine."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from fsdtrain_dojo.capture.compiler import StepCompiler
from fsdtrain_dojo.recipe import bf16_options, read_recipe
from fsdtrain_dojo.sites import SiteTable
from torch import Tensor, nn

IDENTITY: Mapping[str, Any] = {}
BF16 = bf16_options()
CFP8 = BF16 | {
    "activation": {"format": "cfloat8_1_4_3"},
    "weight": {"format": "cfloat8_1_4_3"},
    "activation_gradient": {"format": "cfloat8_1_5_2"},
}


@dataclass(frozen=True, kw_only=True)
class StepResult:
    loss: Tensor
    gradients: dict[str, Tensor]
    buffers: dict[str, Tensor]


def emulate(module: nn.Module, recipe: Mapping[str, Any]) -> SiteTable:
    """Compile in place; the table says what is stored."""
    found = read_recipe(recipe)
    table = SiteTable(found, seed=0, device=torch.device("cpu"), read_every_steps=0)
    StepCompiler(found, table, {}).compile(module)
    return table


def run_step(module: nn.Module, inputs: Any, *, seed: int = 5) -> StepResult:
    """Forward and backward pass; dropout draws from `seed`."""
    torch.manual_seed(seed)
    module.zero_grad()
    loss = module(inputs)
    loss.backward()
    return StepResult(
        loss=loss.detach(),
        gradients={n: p.grad for n, p in module.named_parameters() if p.grad is not None},
        buffers={name: value.clone() for name, value in module.named_buffers()},
    )


def relative_error(found: Tensor, wanted: Tensor) -> float:
    """Norm of the difference, over the norm of what is wanted."""
    difference = (found.double() - wanted.double()).norm().item()
    return difference / max(wanted.double().norm().item(), 1e-30) if difference else 0.0
