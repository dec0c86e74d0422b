"""Questions about one node of a captured FX graph of ATen ops. Knows no number formats."""

import operator
import re
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node
from torch.fx.node import Argument

aten = torch.ops.aten

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
# What torch.compile calls the captured module, in front of a layer's path.
_ROOT = re.compile(r"^L\['\w+'\]\.?")


def op_name(node: Node) -> str:
    """aten.convolution for torch.ops.aten.convolution.default; a function's own name otherwise."""
    target = node.target
    if isinstance(target, torch._ops.OpOverload):
        return f"{target.namespace}.{target._schema.name.partition('::')[2]}"
    return str(getattr(target, "__name__", target))


def output_values(node: Node) -> list[Tensor]:
    """The (fake) tensors a node gives, in order."""
    value = node.meta.get("val")
    values = value if isinstance(value, tuple | list) else (value,)
    return [each for each in values if isinstance(each, Tensor)]


def is_op(node: Node) -> bool:
    """Whether the node computes or moves something; picking one of several results does not."""
    return node.op == "call_function" and node.target is not operator.getitem


def is_backward(node: Node) -> bool:
    """Whether autograd made this node."""
    return "backward" in str(node.meta.get("partitioner_tag", ""))


def operands(node: Node) -> Iterator[tuple[int, Node]]:
    """(position, value) of every tensor argument; those in a list share its position."""
    for position, argument in enumerate(node.args):
        for each in argument if isinstance(argument, list | tuple) else (argument,):
            if isinstance(each, Node):
                yield position, each
    for each in node.kwargs.values():
        if isinstance(each, Node):
            yield len(node.args), each


def layer_of(node: Node) -> str:
    """Module path of the layer that a node came from; "" where not known."""
    stack = node.meta.get("nn_module_stack") or node.meta.get("fwd_nn_module_stack")
    if not stack:
        return ""
    path: str = list(stack.values())[-1][0]
    return _ROOT.sub("", path)


def alias_of(node: Node) -> Node | None:
    """The value that this node is only another name for, if it is."""
    if node.target in (aten.detach.default, aten.alias.default):
        source = node.args[0]
    elif node.target is aten.copy.default:  # functional: the second operand in the first's layout
        source = node.args[1]
        if not (isinstance(source, Node) and has_layout_of(source, node)):
            return None
    else:
        return None
    assert isinstance(source, Node)
    return source


def has_layout_of(value: Node, node: Node) -> bool:
    """Whether both are tensors of one dtype, shape and order in memory."""
    given, wanted = value.meta.get("val"), node.meta.get("val")
    return (
        isinstance(given, Tensor)
        and isinstance(wanted, Tensor)
        and given.dtype == wanted.dtype
        and given.shape == wanted.shape
        and given.stride() == wanted.stride()
    )


def function_of(node: Node) -> Callable[..., Any]:
    """What to call for this op with real tensors; it writes over none of them."""
    target: Callable[..., Any] = node.target  # type: ignore[assignment]  # of a call_function
    if target in _RUN_AS:
        substitute: Callable[..., Any] = _RUN_AS[target]
        return substitute
    if target is aten.as_strided.default:
        return _as_strided_of(node.args[0])
    return _multiply_add if op_name(node) == FUSED_MULTIPLY_ADD else target


def _as_strided_of(base: Argument) -> Callable[..., Any]:
    """The op counts in memory, which has to be laid out as it was predicted."""
    assert isinstance(base, Node)
    size, strides = base.meta["val"].shape, base.meta["val"].stride()

    def as_strided(tensor: Tensor, *args: Any) -> Tensor:
        if tensor.stride() != strides:
            tensor = tensor.new_empty_strided(size, strides).copy_(tensor)
        return tensor.as_strided(*args)

    return as_strided


def _multiply_add(first: Tensor, second: Tensor | float, addend: Tensor) -> Tensor:
    return multiply_add_in_place(first, second, addend.clone())


def multiply_add_in_place(first: Tensor, second: Tensor | float, addend: Tensor) -> Tensor:
    """Addend += first * second."""
    if isinstance(second, Tensor):
        return addend.addcmul_(first, second)
    return addend.add_(first, alpha=second)
