"""Decides for every stored tensor of a captured graph its role, and marks it with its site.

    relu = aten.relu(bn)                    relu: only a matrix op reads it -> ACTIVATION
    conv = aten.convolution(relu, w)   =>   w: copied and rounded as WEIGHT before it is read
    add  = aten.add(conv, shortcut)         conv, add: the vector unit reads them -> VECTOR

A tensor that the vector unit reads as well is stored for that one, and copied and rounded when the
matrix unit loads it. Works on the joint graph of forward and backward pass, before it is cut in
two, so that both halves, and what checkpointing computes a second time, agree.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.fx import Graph, Node

from fsdtrain.backend import BackendError
from fsdtrain.step_graph.nodes import is_backward, layer_of, op_name, operands, output_values
from fsdtrain.step_graph.user_line import user_line
from fsdtrain_dojo.capture.dataflow import (
    Rules,
    find_rules,
    float_results,
    reads,
    sources,
)
from fsdtrain_dojo.capture.domains import find_addresses, find_loss
from fsdtrain_dojo.op_rules import Kind
from fsdtrain_dojo.recipe import Recipe, Role
from fsdtrain_dojo.site import Site

SITES = "dojo_sites"  # node.meta[SITES]: {index of the result: Site}
# node.meta[STORED]: {index of the result: Site}, also of results that need no rounding.
STORED = "dojo_stored"
# A matrix product of coordinates runs on the vector unit, in FP32.
IS_GEOMETRY = "dojo_is_geometry"
# Single results equal to an operand, to its negative, or to zero: stored already if the operand is.
_PICKS = {
    "aten.relu", "aten.threshold_backward", "aten.neg", "aten.abs", "aten.maximum", "aten.minimum",
    "aten.max_pool2d_with_indices", "aten.amax", "aten.amin", "aten.max", "aten.min", "aten.topk",
}  # fmt: skip
# torch.compile puts a float that was read from a tensor back into one.
_NUMBER_AS_TENSOR = torch.ops.prims.convert_element_type.default
_MATRIX_ROLES = (Role.ACTIVATION, Role.WEIGHT, Role.ACTIVATION_GRADIENT)


@dataclass(kw_only=True)
class _Graph:
    """The graph with what is known of it; `site_of` fills up while it is walked through."""

    graph: Graph
    prefix: str
    recipe: Recipe
    rules: Rules
    weights: Mapping[Node, str]
    exact: set[Node]
    addresses: set[Node]
    site_of: dict[Node, Site] = field(default_factory=dict)


def mark_sites(
    graph: Graph, recipe: Recipe, weights: Mapping[Node, str], *, prefix: str = ""
) -> None:
    """Give every stored tensor its site in `node.meta`, and insert the copies matrix ops need.

    Args:
        graph: of ATen ops, with or without a backward pass; changed in place.
        recipe: the rule of each role.
        weights: the graph's inputs that are trained weights, with their names.
        prefix: of the names of the sites, to keep those of two graphs apart.

    Raises:
        BackendError: an op without a rule, a dtype or a shape the machine does not have.
    """
    for node in graph.nodes:
        check_values(node)
    rules = find_rules(graph)
    addresses = find_addresses(graph, rules, set(weights))
    known = _Graph(
        graph=graph,
        prefix=prefix,
        recipe=recipe,
        rules=rules,
        weights=weights,
        exact=addresses | find_loss(graph, rules),
        addresses=addresses,
    )
    for node in rules:
        _mark_results(node, known)
    # After all marks, for a matrix op may read what is stored behind it in the list of nodes.
    for node in [each for each in rules if rules[each].kind is Kind.MATRIX]:
        _convert_operands(node, known)
    graph.eliminate_dead_code()


def check_values(node: Node) -> None:
    """Refuse what the machine does not have.

    Raises:
        BackendError: a dtype that is no integer and not float32, or a shape that is not fixed.
    """
    is_number = isinstance(node.meta.get("val"), torch.SymInt | torch.SymFloat | torch.SymBool)
    if is_number or node.target is _NUMBER_AS_TENSOR:
        raise BackendError(
            "an input's shape is marked as dynamic: backend dojo needs static shapes"
            if node.op == "placeholder"
            else f"a tensor's value becomes a Python number{_place(node)}: a captured step has no "
            "numbers that are not known before it runs; keep it a tensor, avoid .item(), float(x), "
            ".numpy()"
        )
    what = op_name(node)
    if node.op == "placeholder":
        what = "the step" if is_backward(node) else "an input"
    for value in output_values(node):
        if not all(isinstance(size, int) for size in value.shape):
            raise BackendError(
                f"{what} gives a tensor of shape {list(value.shape)}{_place(node)}, which is not "
                "known before it runs: backend dojo needs static shapes; avoid nonzero and boolean "
                "indexing (use torch.where), and do not mark dimensions as dynamic"
            )
        dtype = str(value.dtype).removeprefix("torch.")
        if value.is_complex() or (value.is_floating_point() and value.dtype != torch.float32):
            raise BackendError(
                f"{what} gives {dtype} of shape {list(value.shape)}{_place(node)}: backend dojo "
                "takes float32 models and does the number formats itself; remove autocast, casts "
                "(.half(), .bfloat16(), .double()) and complex numbers"
            )


def _place(node: Node) -> str:
    return user_line(node.meta.get("stack_trace") or "")


def _mark_results(node: Node, known: _Graph) -> None:
    rule = known.rules[node]
    if rule.kind in (Kind.MOVE, Kind.CONSTANT):
        return
    sites, stored = {}, {}
    for index, value in float_results(node):
        is_stored = rule.rounded_outputs is None or index in rule.rounded_outputs
        if not is_stored or value in known.exact:
            continue
        role = _role(value, known)
        site = _site(node, f"{node.name}.{index}", role, known)
        known.site_of[value] = stored[index] = site
        if not site.rule.is_exact and not _is_stored_already(node, value, site, known):
            sites[index] = site
    if sites:
        node.meta[SITES] = sites
    if stored:
        node.meta[STORED] = stored


def _role(value: Node, known: _Graph) -> Role:
    backward = is_backward(value)
    uses = [r for r in reads(value, known.rules) if is_backward(r.reader) or not backward]
    if backward and any(use.reader.op == "output" for use in uses):
        return Role.WEIGHT_GRADIENT
    uses = [use for use in uses if is_backward(use.reader) == backward]
    only_matrix = bool(uses) and all(
        use.reader in known.rules
        and known.rules[use.reader].kind is Kind.MATRIX
        and use.position in known.rules[use.reader].operands
        and use.reader not in known.exact
        for use in uses
    )
    if backward:
        return Role.ACTIVATION_GRADIENT if only_matrix else Role.VECTOR_GRADIENT
    return Role.ACTIVATION if only_matrix else Role.VECTOR


def _site(node: Node, name: str, role: Role, known: _Graph, *, layer: str | None = None) -> Site:
    return Site(
        name=f"{known.prefix}{name}",
        layer=layer_of(node) if layer is None else layer,
        op="weight" if role is Role.WEIGHT else op_name(node).removeprefix("aten."),
        role=role,
        rule=known.recipe.rule(role),
        is_rank_share=role is not Role.WEIGHT,
    )


def _is_stored_already(node: Node, value: Node, site: Site, known: _Graph) -> bool:
    """Whether a result that is one of the operands is in the right format without rounding."""
    if op_name(node) not in _PICKS or site.rule.fixed_bias is None:
        return False
    return all(
        _is_in_format(source, site, known)
        for _, operand in operands(node)
        for source in sources(operand, known.rules)
        if source.meta["val"].is_floating_point()
    )


def _is_in_format(source: Node, site: Site, known: _Graph) -> bool:
    stored = known.site_of.get(source)
    return (
        stored is not None
        and stored.rule.format == site.rule.format
        and stored.rule.fixed_bias is not None
        and stored.rule.fixed_bias == site.rule.fixed_bias
    )


def _convert_operands(node: Node, known: _Graph) -> None:
    """Where an operand is not stored as the matrix unit reads it, let it read a rounded copy."""
    if node in known.addresses:
        node.meta[IS_GEOMETRY] = True
        return
    for position in known.rules[node].operands:
        operand = node.args[position]
        if not isinstance(operand, Node):
            continue
        origins = sources(operand, known.rules)
        if origins <= set(known.weights):
            copy = _weight_copy(node, operand, known)
        else:
            is_gradient = any(is_backward(origin) for origin in origins)
            role = Role.ACTIVATION_GRADIENT if is_gradient else Role.ACTIVATION
            site = _site(node, f"{operand.name}.loaded", role, known)
            if site.rule.is_exact or all(_fits(origin, site, known) for origin in origins):
                continue
            copy = _copy(node, operand, site, known)
        node.update_arg(position, copy)


def _fits(origin: Node, site: Site, known: _Graph) -> bool:
    """Whether what is stored at `origin` can be read as it is."""
    stored = known.site_of.get(origin)
    if stored is None:
        return False
    return stored.role in _MATRIX_ROLES or _is_in_format(origin, site, known)


def _weight_copy(node: Node, operand: Node, known: _Graph) -> Node:
    """The operand, made of rounded weights: rounded first, then moved as the operand is."""
    if operand in known.weights:
        name = known.weights[operand]
        layer = name.rpartition(".")[0]
        site = _site(node, f"weight.{name}", Role.WEIGHT, known, layer=layer)
        return operand if site.rule.is_exact else _copy(node, operand, site, known)
    rounded = {each: _weight_copy(node, each, known) for _, each in operands(operand)}
    if all(each is copy for each, copy in rounded.items()):
        return operand
    with known.graph.inserting_before(node):
        moved = known.graph.node_copy(operand, lambda each: rounded.get(each, each))
    moved.meta = {**operand.meta, **_half(node)}
    return moved


def _copy(node: Node, operand: Node, site: Site, known: _Graph) -> Node:
    """A rounded copy for the matrix op `node`, shared by those of the same pass behind it.

    One of its own for the backward pass: computing it again is cheaper than keeping it.
    """
    for user in operand.users:
        made = user.meta.get(SITES, {}).get(0)
        if made == site and is_backward(user) == is_backward(node) and user < node:
            return user
    with known.graph.inserting_before(node):
        copy = known.graph.call_function(torch.ops.aten.clone.default, (operand,))
    copy.meta = {
        "val": operand.meta["val"].clone(),
        **_half(node),
        SITES: {0: site},
        STORED: {0: site},
    }
    return copy


def _half(node: Node) -> dict[str, Any]:
    """Whether it belongs to the forward pass, the backward pass, or both (checkpointing)."""
    keys = ("partitioner_tag", "recompute", "ac_graph_id")
    return {key: node.meta[key] for key in keys if key in node.meta}
