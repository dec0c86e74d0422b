"""Which ops of a program may write over an operand instead of asking for new memory.

An operand can go if it owns its memory and nothing reads that memory again, under any name. It
does not know formats.
"""

import operator
from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node
from torch.fx.node import Argument

from fsdtrain_dojo.op_rules import op_name

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
# torch.compile writes it for addcmul; its own kernel is two ops.
FUSED_MULTIPLY_ADD = "prims.fma"
_RUN_AS: dict[Any, Any] = {
    # Kernels do not always keep the strides that were predicted for them when the graph was traced;
    # a view may then need a copy.
    aten.view.default: aten.reshape.default,
    aten._unsafe_view.default: aten.reshape.default,
    # Has no memory that could be rounded in place.
    aten._efficientzerotensor.default: aten.zeros.default,
}
# Their schemas do not say that they give their operand's memory.
_SILENT_VIEWS = {
    "aten::_unsafe_view", "aten::reshape", "aten::contiguous", "aten::_reshape_alias",
    "aten::unsafe_split", "aten::unsafe_split_with_sizes",
}  # fmt: skip

Overwritable = Mapping[Node, int]  # op -> position of the operand it may write over


def alias_of(node: Node) -> Node | None:
    """The value that this node is only another name for, if it is."""
    if node.target in (aten.detach.default, aten.alias.default):
        source = node.args[0]
    elif node.target is aten.copy.default:  # functional: the second operand in the first's layout
        source = node.args[1]
        if not (isinstance(source, Node) and _has_layout_of(source, node)):
            return None
    else:
        return None
    assert isinstance(source, Node)
    return source


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
                and _has_layout_of(operand, node)
                and not _shares_memory_otherwise(node, operand, owner)
            ):
                found[node] = position
                break
    return found


def in_place_variant(node: Node, overwritable: Overwritable) -> Callable[..., Any]:
    """What to call for this op."""
    position = overwritable.get(node)
    target: Callable[..., Any] = node.target  # type: ignore[assignment]  # of a call_function
    if target in _RUN_AS:
        substitute: Callable[..., Any] = _RUN_AS[target]
        return substitute
    if target is aten.as_strided.default:
        return _as_strided_of(node.args[0])
    if op_name(node) == FUSED_MULTIPLY_ADD:
        return _multiply_add if position is None else _multiply_add_in_place
    if position is None:
        return target
    if target in _GRAD_INPUT:
        return _into_operand(_GRAD_INPUT[target][0], position)
    variant: Callable[..., Any] = _IN_PLACE[target][0]
    return variant if position == 0 else _swapped(variant)


def _as_strided_of(base: Argument) -> Callable[..., Any]:
    """The op counts in memory, which has to be laid out as it was predicted."""
    assert isinstance(base, Node)
    size, strides = base.meta["val"].shape, base.meta["val"].stride()

    def as_strided(tensor: Tensor, *args: Any) -> Tensor:
        if tensor.stride() != strides:
            tensor = tensor.new_empty_strided(size, strides).copy_(tensor)
        return tensor.as_strided(*args)

    return as_strided


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


def _multiply_add(first: Tensor, second: Tensor | float, addend: Tensor) -> Tensor:
    return _multiply_add_in_place(first, second, addend.clone())


def _multiply_add_in_place(first: Tensor, second: Tensor | float, addend: Tensor) -> Tensor:
    if isinstance(second, Tensor):
        return addend.addcmul_(first, second)
    return addend.add_(first, alpha=second)


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


def _has_layout_of(value: Node, node: Node) -> bool:
    given, wanted = value.meta.get("val"), node.meta.get("val")
    return (
        isinstance(given, torch.Tensor)
        and isinstance(wanted, torch.Tensor)
        and given.dtype == wanted.dtype
        and given.shape == wanted.shape
        and given.stride() == wanted.stride()
    )


def _shares_memory_otherwise(node: Node, value: Node, owner: Mapping[Node, Node]) -> bool:
    """Whether another operand is a different view of the same memory."""
    return any(owner[other] is value and other is not value for other in node.all_input_nodes)
