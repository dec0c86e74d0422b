"""A training step as op calls, and what they give when PyTorch computes them one by one."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from fsdtrain_dojo.lowering.describe.building import call_with
from fsdtrain_dojo.lowering.kernel import Value
from fsdtrain_dojo.lowering.op_call import OpCall


@dataclass(frozen=True, kw_only=True)
class RecordedStep:
    """A step as op calls.

    Args:
        calls: in an order in which they can run.
        values: all that the calls read and write, by name.
        renews: new value -> the old one whose place it takes: weights, moments, statistics.
        tensors: the module's own tensors, the batch, the optimiser's states and constants by name
            of value: all that no call writes. A real step changes some of them in place.
        outputs: names of what the step gives: the loss, or the results of inference.
        gradients: weight -> its gradient; empty for inference.
    """

    calls: tuple[OpCall, ...]
    values: Mapping[str, Value]
    renews: Mapping[str, str]
    tensors: Mapping[str, Tensor]
    outputs: tuple[str, ...]
    gradients: Mapping[str, str]


def run_directly(
    recorded: RecordedStep, tensors: Mapping[str, Tensor] | None = None
) -> dict[str, Tensor]:
    """Every value of a step, each op computed as PyTorch computes it; nothing is rounded.

    Args:
        recorded: the step.
        tensors: those to start from; None: the recorded ones.
    """
    found = dict(recorded.tensors if tensors is None else tensors)
    with torch.no_grad():
        for call in recorded.calls:
            results = call_with(call, found)
            results = results if isinstance(results, list | tuple) else (results,)
            for value, result in zip(call.outputs, results, strict=True):
                if value is not None:
                    found[value.name] = result
    return found
