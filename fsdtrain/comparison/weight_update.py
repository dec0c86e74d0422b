"""What the optimiser makes of given gradients, on one side of a comparison, again and again.

It does not know what is compared; `updates.py` does.
"""

import copy
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from fsdtrain.backend import Backend
from fsdtrain.comparison.updates import State, Updater, Updates

# What torch.optim's Adam calls its moments, and the role that a recipe knows them by.
MOMENT_ROLES = {"exp_avg": "first_moment", "exp_avg_sq": "second_moment"}
MakeOptimizer = Callable[[nn.Module], Optimizer]


def compare_with(
    reference: nn.Module,
    sides: Mapping[str, tuple[nn.Module, Backend]],
    make_optimizer: MakeOptimizer,
) -> Updates:
    """The first update of both sides, and in double precision.

    Args:
        reference: a step with the weights that all start from.
        sides: "a" and "b": its step, which has been given to `Backend.step_graph`, and the backend.
        make_optimizer: of a step.
    """
    exact = copy.deepcopy(reference).double()
    (step_a, a), (step_b, b) = sides["a"], sides["b"]
    return Updates(
        reference=make_updater(exact, make_optimizer(exact), lambda each: each.step()),
        a=make_updater(step_a, make_optimizer(step_a), a.update),
        b=make_updater(step_b, make_optimizer(step_b), b.update),
        before={name: each.detach().clone() for name, each in reference.named_parameters()},
        formats={"a": _formats(step_a, a), "b": _formats(step_b, b)},
    )


def make_updater(
    step: nn.Module, optimizer: Optimizer, update: Callable[[Optimizer], None]
) -> Updater:
    """From gradients to weights and moments after the first update; the step stays as it was.

    Args:
        step: whose weights `optimizer` trains.
        optimizer: that has not been stepped yet.
        update: steps it.
    """
    weights = dict(step.named_parameters())
    before = {name: weight.detach().clone() for name, weight in weights.items()}

    def run(gradients: Mapping[str, Tensor]) -> State:
        for name, weight in weights.items():
            given = gradients.get(name)
            weight.grad = None if given is None else given.to(weight).clone()
        update(optimizer)
        after = {name: weight.detach().cpu().clone() for name, weight in weights.items()}
        for name, weight in weights.items():
            state = optimizer.state.get(weight, {})
            for moment in MOMENT_ROLES.keys() & state.keys():
                after[f"{name}.{moment}"] = state[moment].detach().cpu().clone()
        _put_back(optimizer, weights, before)
        return after

    return run


@torch.no_grad()
def _put_back(
    optimizer: Optimizer, weights: Mapping[str, nn.Parameter], before: Mapping[str, Tensor]
) -> None:
    """In place: a compiled update holds on to these very tensors."""
    for name, weight in weights.items():
        weight.copy_(before[name])
        weight.grad = None
        for value in optimizer.state.get(weight, {}).values():
            if isinstance(value, Tensor):
                value.zero_()


def _formats(step: nn.Module, backend: Backend) -> dict[str, str]:
    ladders = backend.wider_formats()
    if ladders is None:
        return {}
    in_use = {role: formats[0] for role, formats in ladders.formats.items()}
    found = {}
    for name, _ in step.named_parameters():
        for state, role in (("", "master_weight"), *MOMENT_ROLES.items()):
            if role in in_use:
                found[f"{name}.{state}" if state else name] = in_use[role]
    return found
