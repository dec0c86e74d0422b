"""Questions about a captured graph: who reads a value, where it comes from, what it leads to.

Pure functions of an FX graph of ATen ops; nothing here knows formats or rounding. A value is a
tensor: a node, or for an op with several results one of its `getitem` nodes.
"""

import operator
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch.fx import Graph, Node

from fsdtrain.step_graph.nodes import is_op, operands, output_values
from fsdtrain_dojo.op_rules import Kind, OpRule, find_rule

Rules = dict[Node, OpRule]


@dataclass(frozen=True, kw_only=True)
class Read:
    """One use of a value, behind any ops that only move data."""

    reader: Node
    position: int  # of the argument


def find_rules(graph: Graph) -> Rules:
    """The rule of every op in the graph.

    Raises:
        BackendError: there is an op without one.
    """
    return {node: find_rule(node) for node in graph.nodes if is_op(node)}


def float_results(node: Node) -> Iterator[tuple[int, Node]]:
    """(index of the result, its value) of every float result of an op that somebody uses."""
    results = node.meta.get("val")
    if isinstance(results, torch.Tensor):
        if results.is_floating_point():
            yield 0, node
        return
    for user in node.users:
        if user.target is operator.getitem and _is_float(user):
            index = user.args[1]
            assert isinstance(index, int)
            yield index, user


def _is_float(node: Node) -> bool:
    return any(value.is_floating_point() for value in output_values(node))


def is_float(node: Node) -> bool:
    """Whether the value is one floating-point tensor."""
    value = node.meta.get("val")
    return isinstance(value, torch.Tensor) and value.is_floating_point()


def reads(value: Node, rules: Rules) -> list[Read]:
    """All uses of a value, seen through ops that only move data."""
    found: list[Read] = []
    waiting, seen = [value], {value}
    while waiting:
        current = waiting.pop()
        for user in current.users:
            passes_on = user.target is operator.getitem or (
                user in rules and rules[user].kind is Kind.MOVE and _is_float(user)
            )
            if passes_on and user not in seen:
                seen.add(user)
                waiting.append(user)
            elif not passes_on:
                found += [Read(reader=user, position=p) for p, o in operands(user) if o is current]
    return found


def sources(value: Node, rules: Rules) -> set[Node]:
    """Where a value's numbers were made: values of ops that compute, inputs, constants."""
    found: set[Node] = set()
    waiting, seen = [value], {value}
    while waiting:
        current = waiting.pop()
        producer = current.args[0] if current.target is operator.getitem else current
        assert isinstance(producer, Node)
        if producer in rules and rules[producer].kind is Kind.MOVE:
            for _, each in operands(producer):
                if _is_float(each) and each not in seen:
                    seen.add(each)
                    waiting.append(each)
        else:
            found.add(current)
    return found


def reachable(
    start: Iterable[Node],
    step: Callable[[Node], Iterable[Node]],
    *,
    is_wall: Callable[[Node], bool],
) -> set[Node]:
    """All nodes that `step` leads to from `start`, itself included; walls are not entered."""
    waiting = [node for node in start if not is_wall(node)]
    found = set(waiting)
    while waiting:
        for following in step(waiting.pop()):
            if following not in found and not is_wall(following):
                found.add(following)
                waiting.append(following)
    return found
