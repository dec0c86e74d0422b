"""Records an optimiser's update as op calls, without computing it.

torch.optim's optimisers treat each weight by itself, and weights of one shape alike: one of them,
their model, is captured, and what it becomes is repeated for the others. Thousands of ops need not
be traced.
"""

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import NoReturn

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node
from torch.optim import Optimizer

from fsdtrain.step_graph.dry_capture import RecordedError, give_up
from fsdtrain_dojo.capture.compiler import WHO, refuse_autocast
from fsdtrain_dojo.lowering.graph_calls import CallList, storage_of
from fsdtrain_dojo.lowering.kernel import Phase, Value, ValueKind
from fsdtrain_dojo.optimizer import compile_update, mark_states, sites_of_states
from fsdtrain_dojo.recipe import Recipe
from fsdtrain_dojo.site import Site

Models = dict[nn.Parameter, nn.Parameter]  # weight -> its model
_WEIGHT, _GRADIENT = "weight", "gradient"  # roles of inputs, beside the names of states


@dataclass(frozen=True, kw_only=True)
class TracedUpdate:
    """A captured update of some weights, for any recipe.

    Args:
        optimizer: whose it is.
        models: of each weight that is updated, the one whose update stands in the graph.
        module: the graph; its marks are those of the recipe that it was last added with.
        tensors: its inputs.
        roles: of inputs that belong to a weight: which weight, and what they are to it.
        states: of each captured weight, by name.
        sites: of weights and moments, by the id of their tensor, of any recipe.
        owners: the weight that each node depends on, if any; None: some depend on several.
    """

    optimizer: Optimizer
    models: Models
    module: GraphModule
    tensors: Mapping[Node, Tensor]
    roles: Mapping[Node, tuple[nn.Parameter, str]]
    states: Mapping[nn.Parameter, Mapping[str, Tensor]]
    sites: Mapping[int, Site]
    owners: Mapping[Node, nn.Parameter] | None


def trace_update(
    optimizer: Optimizer, names: Mapping[nn.Parameter, str], trained: Collection[str]
) -> TracedUpdate:
    """Capture the optimiser's step.

    Args:
        optimizer: left as it is.
        names: of all weights.
        trained: names of those that have a gradient.

    Raises:
        BackendError: the update is no static graph of known ops, or keeps a state of unknown
            meaning.
    """
    models = _find_models(optimizer, names, trained)
    update = _capture(optimizer, names, models)
    if update.owners is None:  # weights depend on each other
        update = _capture(optimizer, names, {weight: weight for weight in models})
    return update


def add_update(
    calls: CallList,
    update: TracedUpdate,
    names: Mapping[nn.Parameter, str],
    gradients: Mapping[str, Value],
    recipe: Recipe,
) -> None:
    """Append the optimiser's step, which reads the gradients and renews weights and states.

    Args:
        calls: of the step so far, with the weights as values.
        update: the optimiser's step.
        names: of all weights.
        gradients: of those that have one.
        recipe: the formats of weights and moments.

    Raises:
        BackendError: an op without a rule, or a dtype the machine does not have.
    """
    sites = {key: replace(site, rule=recipe.rule(site.role)) for key, site in update.sites.items()}
    mark_states(update.module, update.tensors, sites)
    owners = update.owners
    known = {
        node: calls.add_given(f"optimizer.{number}", tensor, ValueKind.INPUT)
        for number, (node, tensor) in enumerate(update.tensors.items())
        if node not in update.roles
    }
    inputs = {
        weight: _inputs_of(calls, update, sites, weight, names[weight], gradients)
        for weight in update.models
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
    for weight, model in update.models.items():
        calls.add_graph(
            update.module,
            known | inputs[weight],
            Phase.OPTIMIZER,
            prefix=f"{names[weight]}.",
            only=parts[model],
        )


def _find_models(
    optimizer: Optimizer, names: Mapping[nn.Parameter, str], trained: Collection[str]
) -> Models:
    """Weights of one group, shape and history have one model, if the optimiser is PyTorch's."""
    is_known = type(optimizer).__module__.startswith("torch.optim")
    models: dict[object, nn.Parameter] = {}
    found = {}
    for number, group in enumerate(optimizer.param_groups):
        for weight in group["params"]:
            if names[weight] in trained:
                key = (number, weight.shape, tuple(optimizer.state.get(weight, ())))
                found[weight] = models.setdefault(key if is_known else weight, weight)
    return found


def _capture(
    optimizer: Optimizer, names: Mapping[nn.Parameter, str], models: Models
) -> TracedUpdate:
    """The graph that updates the models only."""
    weights = set(models.values())
    found: list[TracedUpdate] = []

    def build(module: GraphModule, tensors: Mapping[Node, Tensor]) -> NoReturn:
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
        roles = {n: role_of[id(t)] for n, t in tensors.items() if id(t) in role_of}
        found.append(
            TracedUpdate(
                optimizer=optimizer,
                models=models,
                module=module,
                tensors=tensors,
                roles=roles,
                states=states,
                sites=sites_of_states(optimizer, Recipe(), names),
                owners=_find_owners(module, roles),
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


def _find_owners(
    module: GraphModule, roles: Mapping[Node, tuple[nn.Parameter, str]]
) -> dict[Node, nn.Parameter] | None:
    """The weight that each node depends on, if any; None if a node depends on several."""
    owners = {node: weight for node, (weight, _) in roles.items()}
    for node in module.graph.nodes:
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
    update: TracedUpdate,
    sites: Mapping[int, Site],
    weight: nn.Parameter,
    name: str,
    gradients: Mapping[str, Value],
) -> dict[Node, Value]:
    """What takes the place of the model's inputs: this weight, its gradient and its states.

    A state that is not there yet begins as the model's does.
    """
    model = update.models[weight]
    values = {_WEIGHT: calls.values[name], _GRADIENT: gradients[name]}
    own = update.optimizer.state.get(weight, {})
    for state, begins_as in update.states[model].items():
        tensor = own.get(state, begins_as)
        site = sites.get(id(begins_as))
        stored = None if site is None else storage_of(site.rule.format)
        value = calls.add_given(f"{name}.{state}", tensor, ValueKind.STATE, stored)
        calls.owner[value.name] = name.rpartition(".")[0]
        values[state] = value
    return {node: values[role] for node, (owner, role) in update.roles.items() if owner is model}
