"""Convolutions and their gradients, as kernels of `convolution_nests`.

A convolution and a transposed one's gradient gather; a transposed one and a convolution's gradient
spread. A bias is an element-wise kernel of its own, which fusing puts behind the product.
"""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from fsdtrain_dojo.lowering.describe.building import intermediate, make_kernel
from fsdtrain_dojo.lowering.describe.convolution_nests import (
    Convolution,
    make_gather,
    make_spread,
    make_weight_gradient,
)
from fsdtrain_dojo.lowering.describe.nest import (
    Indexed,
    bind,
    index_access,
    is_all,
    make_plain_kernel,
    num_points,
)
from fsdtrain_dojo.lowering.describe.windows import make_windows
from fsdtrain_dojo.lowering.kernel import Block, Kernel, Loop, Unit, Value
from fsdtrain_dojo.lowering.op_call import Describe, Expansion, OpCall

_SETTINGS = "stride padding dilation transposed output_padding groups"


def describe_convolution(call: OpCall) -> Expansion:
    """Of convolution, transposed or not, with a bias or without."""
    given = bind(call, f"input weight bias {_SETTINGS}")
    (out,) = call.outputs
    assert out is not None
    data, weight, bias = given["input"], given["weight"], given["bias"]
    conv = _make_convolution(call, data, out, given)
    product = out if bias is None else intermediate(call, ".product", out.shape)

    def run(
        operand: Tensor, weight: Tensor, settings: tuple[Any, ...], shape: Sequence[int]
    ) -> Tensor:
        result: Tensor = call.function(operand, weight, None, *settings)
        return result

    make = make_spread if conv.is_transposed else make_gather
    kernel = make(conv, "", data, weight, product, run)
    if bias is None:
        return Expansion(kernels=(kernel,))
    return Expansion(kernels=(kernel, _add_bias(call, product, bias, out)), values=(product,))


def describe_convolution_backward(call: OpCall) -> Expansion:
    """Of convolution_backward: a kernel for each gradient that is wanted."""
    given = bind(call, f"gradient input weight bias_sizes {_SETTINGS} output_mask")
    gradient, data, weight = given["gradient"], given["input"], given["weight"]
    conv = _make_convolution(call, data, gradient, given)
    for_input, for_weight, for_bias = call.outputs

    def run(
        operand: Tensor, weight: Tensor, settings: tuple[Any, ...], shape: Sequence[int]
    ) -> Tensor:
        # Of the input ATen takes no more than the shape here.
        unread = operand.new_empty(shape)
        result: Tensor = call.function(
            operand, unread, weight, None, *settings, [True, False, False]
        )[0]
        return result

    kernels = []
    if for_input is not None:
        make = make_gather if conv.is_transposed else make_spread
        kernels.append(make(conv, ".dx", gradient, weight, for_input, run))
    if for_weight is not None:
        kernels.append(make_weight_gradient(conv, gradient, data, for_weight))
    if for_bias is not None:
        kernels.append(_make_bias_gradient(conv, gradient, data, weight, for_bias))
    return Expansion(kernels=tuple(kernels))


def _make_convolution(call: OpCall, data: Value, out: Value, given: dict[str, Any]) -> Convolution:
    settings = tuple(given[name] for name in _SETTINGS.split())
    weight: tuple[int, ...] = given["weight"].shape
    placed, read = (data, out) if given["transposed"] else (out, data)
    return Convolution(
        call=call,
        windows=make_windows(weight[2:], given["stride"], given["padding"], given["dilation"]),
        placed=placed.shape,
        read=read.shape,
        weight=weight,
        settings=settings,
    )


def _make_bias_gradient(
    conv: Convolution, gradient: Value, data: Value, weight: Value, out: Value
) -> Kernel:
    """The sum of the gradient over everything but the channels."""
    batch, channels, *places = gradient.shape
    loops = (
        Loop("k", channels),
        Loop("n", batch),
        *(Loop(f"p{axis}", size) for axis, size in enumerate(places)),
    )

    def compute(tensors: Sequence[Tensor], block: Block) -> list[Tensor]:
        (tensor,) = tensors
        batch, channels, *places = tensor.shape
        ones, zeros = [1] * len(places), [0] * len(places)
        settings: tuple[Any, ...] = (ones, zeros, ones, False, zeros, 1)
        shapes: tuple[Sequence[int], ...] = (batch, 1, *places), (channels, 1, *ones)
        if is_all(loops, block):
            settings, shapes = conv.settings, (data.shape, weight.shape)
        # Of input and weight ATen takes no more than the shapes here.
        unread = map(tensor.new_empty, shapes)
        mask = [False, False, True]
        return [conv.call.function(tensor, *unread, [channels], *settings, mask)[2]]

    over = (1, 0, *range(2, len(loops)))
    return make_kernel(
        conv.call,
        suffix=".db",
        unit=Unit.VECTOR,
        loops=loops,
        reads=(index_access(Indexed(gradient, over), loops),),
        writes=(index_access(Indexed(out, (0,)), loops),),
        flops=num_points(loops),
        compute=compute,
    )


def _add_bias(call: OpCall, product: Value, bias: Value, out: Value) -> Kernel:
    loops = tuple(Loop(f"d{axis}", size) for axis, size in enumerate(out.shape))
    over = tuple(range(len(loops)))
    return make_plain_kernel(
        call,
        ".bias",
        loops=loops,
        reads=[Indexed(product, over), Indexed(bias, (1,))],
        writes=[Indexed(out, over)],
        formula=lambda tensors, block: tensors[0] + tensors[1],
        flops=num_points(loops),
    )


RULES: dict[str, Describe] = {
    "aten.convolution": describe_convolution,
    "aten.convolution_backward": describe_convolution_backward,
}
