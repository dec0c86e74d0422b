"""Which ops of a program may write over an operand instead of asking for new memory.

An operand can go if it owns its memory and nothing reads that memory again, under any name. It
does not know formats.
"""

import operator
from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch
from torch.fx import Node

from fsdtrain.step_graph.nodes import (
    FUSED_MULTIPLY_ADD,
    alias_of,
    function_of,
    has_layout_of,
    multiply_add_in_place,
    op_name,
)

aten = torch.ops.aten

# op -> (its in-place variant, positions of the operands it can write over as its first argument)
_IN_PLACE: dict[Any, tuple[Any, tuple[int, ...]]] = {
    aten.relu.default: (aten.relu_.default, (0,)),
    aten.add.Tensor: (aten.add_.Tensor, (0, 1)),
    aten.mul.Tensor: (aten.mul_.Tensor, (0, 1)),
    aten.sub.Tensor: (aten.sub_.Tensor, (0,)),
    aten.div.Tensor: (aten.div_.Tensor, (0,)),
    aten.mul.Scalar: (aten.mul_.Scalar, (0,)),
    aten.add.Scalar: (aten.add_.Scalar, (0,)),
    aten.div.Scalar: (aten.div_.Scalar, (0,)),
    aten.neg.default: (aten.neg_.default, (0,)),
    aten.sigmoid.default: (aten.sigmoid_.default, (0,)),
    aten.tanh.default: (aten.tanh_.default, (0,)),
    aten.gelu.default: (aten.gelu_.default, (0,)),
    aten.silu.default: (aten.silu_.default, (0,)),
    aten.sqrt.default: (aten.sqrt_.default, (0,)),
    aten.reciprocal.default: (aten.reciprocal_.default, (0,)),
    aten.lerp.Scalar: (aten.lerp_.Scalar, (0,)),
    aten.addcdiv.default: (aten.addcdiv_.default, (0,)),
    aten.addcmul.default: (aten.addcmul_.default, (0,)),
}
# op -> (variant that writes into `grad_input`, the operand it can write over)
_GRAD_INPUT: dict[Any, tuple[Any, int]] = {
    aten.threshold_backward.default: (aten.threshold_backward.grad_input, 0),
    aten.sigmoid_backward.default: (aten.sigmoid_backward.grad_input, 0),
    aten.tanh_backward.default: (aten.tanh_backward.grad_input, 0),
    aten.gelu_backward.default: (aten.gelu_backward.grad_input, 0),
    aten.silu_backward.default: (aten.silu_backward.grad_input, 0),
}
# Their schemas do not say that they give their operand's memory.
_SILENT_VIEWS = {
    "aten::_unsafe_view", "aten::reshape", "aten::contiguous", "aten::_reshape_alias",
    "aten::unsafe_split", "aten::unsafe_split_with_sizes",
}  # fmt: skip

Overwritable = Mapping[Node, int]  # op -> position of the operand it may write over


def find_overwritable(nodes: list[Node], replaced: Collection[Node] = ()) -> Overwritable:
    """The ops with an in-place variant whose operand nobody needs any more.

    Args:
        nodes: of the graph, in order.
        replaced: inputs that the caller replaces by results of the graph: they may be written over.
    """
    owner = _find_owners(nodes)
    last_use = {}
    for number, node in enumerate(nodes):
        # A copy into an input that is replaced does not read what was there.
        is_write = node.target is aten.copy_.default
        for value in node.args[1:2] if is_write else (node, *node.all_input_nodes):
            assert isinstance(value, Node)
            last_use[owner[value]] = number
    found = {}
    for number, node in enumerate(nodes):
        for position in _candidates(node):
            operand = node.args[position]
            if (
                isinstance(operand, Node)
                and (operand.op == "call_function" or operand in replaced)
                and owner[operand] is operand
                and last_use[operand] == number
                and has_layout_of(operand, node)
                and not _shares_memory_otherwise(node, operand, owner)
            ):
                found[node] = position
                break
    return found


def in_place_variant(node: Node, overwritable: Overwritable) -> Callable[..., Any]:
    """What to call for this op."""
    position = overwritable.get(node)
    if position is None:
        return function_of(node)
    if op_name(node) == FUSED_MULTIPLY_ADD:
        return multiply_add_in_place
    target = node.target
    if target in _GRAD_INPUT:
        return _into_operand(_GRAD_INPUT[target][0], position)
    variant: Callable[..., Any] = _IN_PLACE[target][0]
    return variant if position == 0 else _swapped(variant)


def _swapped(variant: Callable[..., Any]) -> Callable[..., Any]:
    return lambda first, second: variant(second, first)


def _into_operand(variant: Callable[..., Any], position: int) -> Callable[..., Any]:
    return lambda *args, **kwargs: variant(*args, **kwargs, grad_input=args[position])


def _candidates(node: Node) -> tuple[int, ...]:
    if node.target in _IN_PLACE:
        # An alpha or a rounding mode belongs to one side.
        return _IN_PLACE[node.target][1] if not node.kwargs else (0,)
    if node.target in _GRAD_INPUT:
        return (_GRAD_INPUT[node.target][1],)
    return (2,) if op_name(node) == FUSED_MULTIPLY_ADD else ()


def _find_owners(nodes: list[Node]) -> dict[Node, Node]:
    """Value -> the value whose memory it lies in; itself, if it has its own."""
    owner: dict[Node, Node] = {}
    for node in nodes:
        source = node
        original = alias_of(node)
        if original is not None:
            source = owner[original]
        elif node.op == "call_function" and node.all_input_nodes and _is_view(node):
            source = owner[node.all_input_nodes[0]]
        owner[node] = source
    return owner


def _is_view(node: Node) -> bool:
    if node.target is operator.getitem:
        node = node.all_input_nodes[0]  # several results: views, or each with its own memory
    target = node.target
    if not isinstance(target, torch._ops.OpOverload):
        return True  # unknown: assume the worst
    schema = target._schema
    return schema.name in _SILENT_VIEWS or any(each.alias_info for each in schema.returns)


def _shares_memory_otherwise(node: Node, value: Node, owner: Mapping[Node, Node]) -> bool:
    """Whether another operand is a different view of the same memory."""
    return any(owner[other] is value and other is not value for other in node.all_input_nodes)
