"""What the optimiser makes of given gradients, on one side of a comparison, again and again.

It does not know what is compared; `updates.py` does.
"""

import copy
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from fsdtrain.backend import Backend
from fsdtrain.comparison.updates import State, Updater, Updates
from fsdtrain.step_graph.capture import loss_of

# What torch.optim's Adam calls its moments, and the role that a recipe knows them by.
MOMENT_ROLES = {"exp_avg": "first_moment", "exp_avg_sq": "second_moment"}
MakeOptimizer = Callable[[nn.Module], Optimizer]


def compare_with(
    reference: nn.Module,
    batch: Any,
    sides: Mapping[str, tuple[nn.Module, Backend]],
    make_optimizer: MakeOptimizer,
) -> Updates:
    """The second update of both sides, and in double precision.

    The first is made here, by every side from the reference's gradients, and then all take the
    reference's result: so moments are not zero, and weights have had another value. Where that
    result is not finite, the first update is what is compared.

    Args:
        reference: a step with the weights that all start from.
        batch: what `reference` takes.
        sides: "a" and "b": its step, which has been given to `Backend.step_graph`, and the backend.
        make_optimizer: of a step.
    """
    exact = copy.deepcopy(reference).double()
    made = make_optimizer(exact)
    gradients = _gradients(reference, batch)
    first: Mapping[str, Tensor] | None = gradients
    once = make_updater(exact, made, _step)(gradients)
    start = {name: each.float() for name, each in once.items()}
    if not all(bool(each.isfinite().all()) for each in start.values()):
        first = None
        start = {name: each.detach().clone() for name, each in reference.named_parameters()}
    (step_a, a), (step_b, b) = sides["a"], sides["b"]
    return Updates(
        reference=make_updater(exact, made, _step, first=first, start=start),
        a=make_updater(step_a, make_optimizer(step_a), a.update, first=first, start=start),
        b=make_updater(step_b, make_optimizer(step_b), b.update, first=first, start=start),
        before=start,
        formats={"a": _formats(step_a, a), "b": _formats(step_b, b)},
    )


def _gradients(step: nn.Module, batch: Any) -> dict[str, Tensor]:
    """Of `step(batch)`; the step and the generator stay as they were."""
    module = copy.deepcopy(step)
    with torch.enable_grad(), torch.random.fork_rng(devices=[]):
        torch.autograd.backward(loss_of(module(batch)))
    return {name: p.grad for name, p in module.named_parameters() if p.grad is not None}


def _step(optimizer: Optimizer) -> None:
    optimizer.step()


def make_updater(
    step: nn.Module,
    optimizer: Optimizer,
    update: Callable[[Optimizer], None],
    *,
    first: Mapping[str, Tensor] | None = None,
    start: State | None = None,
) -> Updater:
    """From gradients to weights and moments after an update; the step stays as it was.

    Args:
        step: whose weights `optimizer` trains.
        optimizer: without moments, or with moments of zero.
        update: steps it.
        first: gradients of an update that is made before all others, which go on from there; None:
            all are first updates.
        start: weights and moments that take the place of what the first update gave; None: none do.
    """
    weights = dict(step.named_parameters())
    initial = {name: weight.detach().clone() for name, weight in weights.items()}
    is_told = {f"{name}.{moment}" for name in weights for moment in MOMENT_ROLES} | weights.keys()

    def make_one(gradients: Mapping[str, Tensor]) -> dict[str, Tensor]:
        for name, weight in weights.items():
            given = gradients.get(name)
            weight.grad = None if given is None else given.to(weight).clone()
        update(optimizer)
        after = {name: each.detach().clone() for name, each in _state(weights, optimizer)}
        _put(weights, optimizer, initial)
        return after

    before = {**(initial if first is None else make_one(first)), **(start or {})}

    def run(gradients: Mapping[str, Tensor]) -> State:
        _put(weights, optimizer, before)
        return {name: each.cpu() for name, each in make_one(gradients).items() if name in is_told}

    return run


def _state(
    weights: Mapping[str, nn.Parameter], optimizer: Optimizer
) -> Iterator[tuple[str, Tensor]]:
    """Weights by name, and all that the optimiser keeps of them by "weight.name"."""
    for name, weight in weights.items():
        yield name, weight
        for key, value in optimizer.state.get(weight, {}).items():
            if isinstance(value, Tensor):
                yield f"{name}.{key}", value


@torch.no_grad()
def _put(weights: Mapping[str, nn.Parameter], optimizer: Optimizer, state: State) -> None:
    """In place, for a compiled update holds on to these very tensors; what is not given is zero."""
    for name, value in _state(weights, optimizer):
        if name in state:
            value.copy_(state[name])
        else:
            value.zero_()
    for weight in weights.values():
        weight.grad = None


def _formats(step: nn.Module, backend: Backend) -> dict[str, str]:
    ladders = backend.wider_formats()
    if ladders is None:
        return {}
    # Words such as "cfloat16_shp with biases that follow".
    in_use = {role: formats[0].split()[0] for role, formats in ladders.formats.items()}
    found = {}
    for name, _ in step.named_parameters():
        for state, role in (("", "master_weight"), *MOMENT_ROLES.items()):
            if role in in_use:
                found[f"{name}.{state}" if state else name] = in_use[role]
    return found
