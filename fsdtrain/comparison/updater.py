"""Runs an optimiser's step from given gradients, reads what it made, and puts everything back.

It knows no backend: what runs the step is given, `Backend.update` for one.
"""

import copy
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from fsdtrain.comparison.updates import State, Updater


def make_updater(
    parameters: Mapping[str, nn.Parameter],
    optimizer: Optimizer,
    update: Callable[[Optimizer], None],
) -> Updater:
    """An update from the state that weights and optimiser have now.

    Args:
        parameters: all that the optimiser trains, by name.
        optimizer: of these.
        update: one step of it; the gradients are there.

    Returns:
        A function of gradients by weight. Weights without one are left as they are. Every call
        starts anew, and leaves weights, moments and gradients as it found them: moments that were
        not there before become zero.
    """
    weights = {name: each.detach().clone() for name, each in parameters.items()}
    moments = {name: _copied(optimizer.state.get(each, {})) for name, each in parameters.items()}

    def run(gradients: Mapping[str, Tensor]) -> State:
        held = {name: each.grad for name, each in parameters.items()}
        for name, each in parameters.items():
            found = gradients.get(name)
            each.grad = None if found is None else found.to(each).reshape(each.shape).clone()
        update(optimizer)
        after = read_state(parameters, optimizer)
        for name, each in parameters.items():
            each.grad = held[name]
            with torch.no_grad():
                each.copy_(weights[name])
                for moment, value in optimizer.state.get(each, {}).items():
                    if isinstance(value, Tensor):
                        value.copy_(moments[name].get(moment, torch.zeros_like(value)))
        return after

    return run


def make_exact_updater(parameters: Mapping[str, nn.Parameter], optimizer: Optimizer) -> Updater:
    """The same in double precision, by a copy of all."""
    twin = copy.deepcopy(optimizer)
    copies = {}
    names = {id(each): name for name, each in parameters.items()}
    for group, own in zip(optimizer.param_groups, twin.param_groups, strict=True):
        for each, other in zip(group["params"], own["params"], strict=True):
            state = twin.state.get(other, {})
            other.data = other.data.cpu().double()
            other.grad = None
            for moment, value in state.items():
                if isinstance(value, Tensor) and value.ndim:
                    state[moment] = value.cpu().double()
            copies[names[id(each)]] = other
    return make_updater(copies, twin, lambda optimizer: optimizer.step())


def read_state(parameters: Mapping[str, nn.Parameter], optimizer: Optimizer) -> State:
    """Weights by name, moments by "weight.moment"; copies. Counters of steps are left out."""
    found = {name: each.detach().clone() for name, each in parameters.items()}
    for name, each in parameters.items():
        for moment, value in optimizer.state.get(each, {}).items():
            if isinstance(value, Tensor) and value.ndim:
                found[f"{name}.{moment}"] = value.detach().clone()
    return found


def _copied(state: Mapping[str, object]) -> dict[str, Tensor]:
    return {name: each.clone() for name, each in state.items() if isinstance(each, Tensor)}
