"""Records an optimiser's update as op calls, without computing it.

torch.optim's optimisers treat each weight by itself, and weights of one shape alike: one of them,
their model, is captured, and what it becomes is repeated for the others. Thousands of ops need not
be traced.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NoReturn

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node
from torch.optim import Optimizer

from fsdtrain.step_graph.dry_capture import RecordedError, give_up
from fsdtrain_dojo.capture.compiler import WHO, refuse_autocast
from fsdtrain_dojo.lowering.graph_calls import CallList, Storage, storage_of
from fsdtrain_dojo.lowering.kernel import Phase, Value, ValueKind
from fsdtrain_dojo.optimizer import compile_update, mark_states, sites_of_states
from fsdtrain_dojo.recipe import Recipe

Models = dict[nn.Parameter, nn.Parameter]  # weight -> its model
_WEIGHT, _GRADIENT = "weight", "gradient"  # roles of inputs, beside the names of states


@dataclass(frozen=True, kw_only=True)
class _Update:
    """A captured update of some weights.

    Args:
        module: the graph.
        tensors: its inputs.
        roles: of inputs that belong to a weight: which weight, and what they are to it.
        states: of each captured weight, by name.
        formats: of moments, by the id of their tensor.
    """

    module: GraphModule
    tensors: Mapping[Node, Tensor]
    roles: Mapping[Node, tuple[nn.Parameter, str]]
    states: Mapping[nn.Parameter, Mapping[str, Tensor]]
    formats: Mapping[int, Storage]


def add_update(
    calls: CallList,
    optimizer: Optimizer,
    names: Mapping[nn.Parameter, str],
    gradients: Mapping[str, Value],
    recipe: Recipe,
) -> None:
    """Append the optimiser's step, which reads the gradients and renews weights and states.

    Args:
        calls: of the step so far, with the weights as values.
        optimizer: left as it is.
        names: of all weights.
        gradients: of those that have one.
        recipe: the formats of weights and moments.

    Raises:
        BackendError: the update is no static graph of known ops, or keeps a state of unknown
            meaning.
    """
    models = _find_models(optimizer, names, gradients)
    update = _capture_update(optimizer, names, recipe, set(models.values()))
    owners = _find_owners(update)
    if owners is None:  # weights depend on each other
        models = {weight: weight for weight in models}
        update = _capture_update(optimizer, names, recipe, set(models))
    known = {
        node: calls.add_given(f"optimizer.{number}", tensor, ValueKind.INPUT)
        for number, (node, tensor) in enumerate(update.tensors.items())
        if node not in update.roles
    }
    inputs = {
        weight: _inputs_of(calls, optimizer, weight, model, update, names[weight], gradients)
        for weight, model in models.items()
    }
    if owners is None:
        known |= {node: value for each in inputs.values() for node, value in each.items()}
        calls.add_graph(update.module, known, Phase.OPTIMIZER, prefix="optimizer.")
        return
    shared = {node for node in update.module.graph.nodes if node not in owners}
    known = calls.add_graph(update.module, known, Phase.OPTIMIZER, prefix="optimizer.", only=shared)
    parts: dict[nn.Parameter, set[Node]] = {}
    for node, model in owners.items():
        parts.setdefault(model, set()).add(node)
    for weight, model in models.items():
        calls.add_graph(
            update.module,
            known | inputs[weight],
            Phase.OPTIMIZER,
            prefix=f"{names[weight]}.",
            only=parts[model],
        )


def _find_models(
    optimizer: Optimizer, names: Mapping[nn.Parameter, str], gradients: Mapping[str, Value]
) -> Models:
    """Weights of one group, shape and history have one model, if the optimiser is PyTorch's."""
    is_known = type(optimizer).__module__.startswith("torch.optim")
    models: dict[object, nn.Parameter] = {}
    found = {}
    for number, group in enumerate(optimizer.param_groups):
        for weight in group["params"]:
            if names[weight] in gradients:
                key = (number, weight.shape, tuple(optimizer.state.get(weight, ())))
                found[weight] = models.setdefault(key if is_known else weight, weight)
    return found


def _capture_update(
    optimizer: Optimizer,
    names: Mapping[nn.Parameter, str],
    recipe: Recipe,
    weights: set[nn.Parameter],
) -> _Update:
    """The graph that updates these weights only."""
    found: list[_Update] = []

    def build(module: GraphModule, tensors: Mapping[Node, Tensor]) -> NoReturn:
        sites = sites_of_states(optimizer, recipe, names)
        mark_states(module, tensors, sites)
        states = {
            weight: {
                name: state
                for name, state in optimizer.state[weight].items()
                if isinstance(state, Tensor)
            }
            for weight in weights
        }
        role_of = {}
        for weight in weights:
            role_of[id(weight)] = (weight, _WEIGHT)
            role_of[id(weight.grad)] = (weight, _GRADIENT)
            role_of |= {id(state): (weight, name) for name, state in states[weight].items()}
        found.append(
            _Update(
                module=module,
                tensors=tensors,
                roles={n: role_of[id(t)] for n, t in tensors.items() if id(t) in role_of},
                states=states,
                formats={key: storage_of(site.rule.format) for key, site in sites.items()},
            )
        )
        raise RecordedError

    with _ready_to_update(optimizer, names, weights), torch.no_grad():
        refuse_autocast()
        give_up(compile_update(optimizer, build), WHO)
    return found[0]


@contextmanager
def _ready_to_update(
    optimizer: Optimizer, names: Mapping[nn.Parameter, str], weights: set[nn.Parameter]
) -> Iterator[None]:
    """While recording, these weights and no others have a gradient, and rates are tensors.

    A number would be a constant of the graph. Variants over many tensors at once only spare a GPU
    its launches: the update is recorded without them.
    """
    groups = optimizer.param_groups
    settings = [dict(group) for group in groups]
    states = {weight: dict(state) for weight, state in optimizer.state.items()}
    gradients = {weight: weight.grad for weight in names}
    for group in groups:
        group["lr"] = torch.as_tensor(group["lr"], dtype=torch.float32)
        group |= {name: False for name in ("foreach", "fused") if name in group}
    for weight in names:
        weight.grad = torch.zeros_like(weight) if weight in weights else None
    try:
        yield
    finally:
        for group, setting in zip(groups, settings, strict=True):
            group.clear()
            group.update(setting)
        optimizer.state.clear()
        optimizer.state.update(states)
        for weight, gradient in gradients.items():
            weight.grad = gradient


def _find_owners(update: _Update) -> dict[Node, nn.Parameter] | None:
    """The weight that each node depends on, if any; None if a node depends on several."""
    owners = {node: weight for node, (weight, _) in update.roles.items()}
    for node in update.module.graph.nodes:
        if node.op != "call_function":
            continue
        found = {owners[each] for each in node.all_input_nodes if each in owners}
        if len(found) > 1:
            return None
        for owner in found:
            owners[node] = owner
    return owners


def _inputs_of(
    calls: CallList,
    optimizer: Optimizer,
    weight: nn.Parameter,
    model: nn.Parameter,
    update: _Update,
    name: str,
    gradients: Mapping[str, Value],
) -> dict[Node, Value]:
    """What takes the place of the model's inputs: this weight, its gradient and its states.

    A state that is not there yet begins as the model's does.
    """
    values = {_WEIGHT: calls.values[name], _GRADIENT: gradients[name]}
    own = optimizer.state.get(weight, {})
    for state, begins_as in update.states[model].items():
        tensor = own.get(state, begins_as)
        stored = update.formats.get(id(begins_as))
        value = calls.add_given(f"{name}.{state}", tensor, ValueKind.STATE, stored)
        calls.owner[value.name] = name.rpartition(".")[0]
        values[state] = value
    return {node: values[role] for node, (owner, role) in update.roles.items() if owner is model}
