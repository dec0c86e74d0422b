"""Losses and their gradients as element-wise kernels, with a reduction where one is asked for.

A loss and its sum are one kernel: terms are added up while they are in registers. A mean divides
terms by the number of them all, so that pieces add up; that of a negative likelihood, whose divisor
is the targets' weights, divides afterwards.
"""

from collections.abc import Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor

from fsdtrain_dojo.lowering.describe.building import intermediate
from fsdtrain_dojo.lowering.describe.nest import (
    Indexed,
    Over,
    bind,
    broadcast_over,
    indices_of,
    is_all,
    make_plain_kernel,
)
from fsdtrain_dojo.lowering.kernel import Block, Kernel, Loop, Value
from fsdtrain_dojo.lowering.op_call import Describe, Expansion, OpCall

_NONE, _MEAN, _SUM = 0, 1, 2  # torch.nn.functional's reductions, as numbers
_DEFAULTS = {"weight": None, "pos_weight": None, "reduction": _MEAN, "beta": 1.0, "delta": 1.0}
# Op: parameters, and (flops, specials) of an element without reduction.
_FORWARD = {
    "aten.mse_loss": ("input target reduction", 2, 0),
    "aten.smooth_l1_loss": ("input target reduction beta", 6, 0),
    "aten.huber_loss": ("input target reduction delta", 6, 0),
    "aten.soft_margin_loss": ("input target reduction", 2, 2),
    "aten.binary_cross_entropy": ("input target weight reduction", 6, 2),
    "aten.binary_cross_entropy_with_logits": ("input target weight pos_weight reduction", 6, 2),
}
_BACKWARD = {
    "aten.mse_loss_backward": ("gradient input target reduction", 3, 0),
    "aten.smooth_l1_loss_backward": ("gradient input target reduction beta", 5, 0),
    "aten.huber_loss_backward": ("gradient input target reduction delta", 5, 0),
    "aten.soft_margin_loss_backward": ("gradient input target reduction", 4, 2),
    "aten.binary_cross_entropy_backward": ("gradient input target weight reduction", 5, 1),
}


def describe_loss(call: OpCall) -> Expansion:
    """Of a loss whose terms are found element by element."""
    names, flops, specials = _FORWARD[call.op]
    given = bind(call, names, **_DEFAULTS)
    (out,) = call.outputs
    assert out is not None
    operands = {name: each for name, each in given.items() if isinstance(each, Value)}
    shape = _common_shape([each.shape for each in operands.values()])
    loops = _make_loops(shape)
    reduction = given["reduction"]
    is_reduced = reduction != _NONE

    def find_loss(tensors: Sequence[Tensor], block: Block) -> Tensor:
        arguments = given | dict(zip(operands, tensors, strict=True))
        if is_all(loops, block):
            result: Tensor = call.function(*arguments.values())
            return result.reshape([1] * len(loops)) if is_reduced else result
        terms: Tensor = call.function(*(arguments | {"reduction": _NONE}).values())
        if reduction == _MEAN:
            terms = terms / prod(shape)
        return terms.sum().reshape([1] * len(loops)) if is_reduced else terms

    over: tuple[Over, ...] = () if is_reduced else tuple(range(len(loops)))
    kernel = make_plain_kernel(
        call,
        "",
        loops=loops,
        reads=[Indexed(each, broadcast_over(each.shape, len(loops))) for each in operands.values()],
        writes=[Indexed(out, over)],
        formula=find_loss,
        flops=(flops + is_reduced) * prod(shape),
        specials=specials * prod(shape),
    )
    return Expansion(kernels=(kernel,))


def describe_loss_backward(call: OpCall) -> Expansion:
    """Of the gradient of such a loss."""
    names, flops, specials = _BACKWARD[call.op]
    given = bind(call, names, **_DEFAULTS)
    (out,) = call.outputs
    assert out is not None
    operands = {name: each for name, each in given.items() if isinstance(each, Value)}
    loops = _make_loops(out.shape)
    count = prod(out.shape)

    def find_gradient(tensors: Sequence[Tensor], block: Block) -> Tensor:
        arguments = given | dict(zip(operands, tensors, strict=True))
        if given["reduction"] == _MEAN and not is_all(loops, block):
            arguments |= {"gradient": arguments["gradient"] / count, "reduction": _SUM}
        result: Tensor = call.function(*arguments.values())
        return result

    kernel = make_plain_kernel(
        call,
        "",
        loops=loops,
        reads=[Indexed(each, broadcast_over(each.shape, len(loops))) for each in operands.values()],
        writes=[Indexed(out, tuple(range(len(loops))))],
        formula=find_gradient,
        flops=flops * count,
        specials=specials * count,
    )
    return Expansion(kernels=(kernel,))


def describe_likelihood(call: OpCall) -> Expansion:
    """Of nll_loss_forward and nll_loss2d_forward: loss, and the sum of the targets' weights."""
    given = bind(call, "input target weight reduction ignored")
    data, reduction = given["input"], given["reduction"]
    out, total_weight = call.outputs
    loops, classes, others = _make_class_loops(data)
    if reduction == _NONE and len(data.shape) > 1:
        kernels = [] if out is None else [_pick(call, given, [Indexed(out, others)])]
        if total_weight is not None:
            kernels.append(_make_zero(call, total_weight))
        return Expansion(kernels=tuple(kernels))
    weights = total_weight or intermediate(call, ".weights", ())
    total = out if out is not None and reduction != _MEAN else intermediate(call, ".total", ())
    kernels = [_pick(call, given, [Indexed(total, ()), Indexed(weights, ())])]
    if out is not None and reduction == _MEAN:
        kernels.append(
            make_plain_kernel(
                call,
                ".mean",
                loops=(),
                reads=[Indexed(total, ()), Indexed(weights, ())],
                writes=[Indexed(out, ())],
                formula=lambda tensors, block: tensors[0] / tensors[1],
                specials=1,
            )
        )
    known = tuple(each for each in (total, weights) if each not in call.outputs)
    return Expansion(kernels=tuple(kernels), values=known)


def describe_likelihood_backward(call: OpCall) -> Expansion:
    """Of nll_loss_backward and nll_loss2d_backward."""
    given = bind(call, "gradient input target weight reduction ignored total_weight")
    (out,) = call.outputs
    assert out is not None
    loops, classes, others = _make_class_loops(out)
    gradient, is_mean = given["gradient"], given["reduction"] == _MEAN
    reads = [
        Indexed(gradient, others if gradient.shape else ()),
        Indexed(given["target"], others),
        *([Indexed(given["weight"], (classes,))] if given["weight"] is not None else []),
        *([Indexed(given["total_weight"], ())] if is_mean else []),
    ]

    def find_gradient(tensors: Sequence[Tensor], block: Block) -> Tensor:
        scale, target, *factors = tensors
        if is_mean:
            scale = scale / factors.pop()
        hit = _find_hits(target, block, classes, given["ignored"])
        scaled = -scale * factors[0] if factors else -scale
        return torch.where(hit, scaled, 0.0)

    kernel = make_plain_kernel(
        call,
        "",
        loops=loops,
        reads=reads,
        writes=[Indexed(out, tuple(range(len(loops))))],
        formula=find_gradient,
        flops=prod(out.shape),
    )
    return Expansion(kernels=(kernel,))


def _pick(call: OpCall, given: dict[str, Any], writes: Sequence[Indexed]) -> Kernel:
    """What targets pick of the scores, with a minus; where all is added up, their weights too."""
    data = given["input"]
    loops, classes, others = _make_class_loops(data)
    num_classes = data.shape[classes]
    reads = [
        Indexed(data, tuple(range(len(loops))), gathered_share=1 / num_classes),
        Indexed(given["target"], others),
        *([Indexed(given["weight"], (classes,))] if given["weight"] is not None else []),
    ]

    def pick(tensors: Sequence[Tensor], block: Block) -> list[Tensor]:
        scores, target, *weights = tensors
        hit = _find_hits(target, block, classes, given["ignored"])
        weight = weights[0] if weights else scores.new_ones(())
        picked = torch.where(hit, -scores * weight, 0.0)
        if len(writes) == 1:
            return [picked.sum(classes, keepdim=True)]
        kept = torch.where(hit, weight, 0.0)
        return [each.sum().reshape([1] * len(loops)) for each in (picked, kept)]

    return make_plain_kernel(
        call,
        "",
        loops=loops,
        reads=reads,
        writes=writes,
        formula=pick,
        flops=(len(writes) + len(reads) - 2) * (data.num_elements // num_classes),
    )


def _make_zero(call: OpCall, value: Value) -> Kernel:
    return make_plain_kernel(
        call,
        ".weights",
        loops=(),
        reads=[],
        writes=[Indexed(value, ())],
        formula=lambda tensors, block: torch.zeros(()),
    )


def _find_hits(target: Tensor, block: Block, classes: int, ignored: int) -> Tensor:
    """Where a class is the target, of the classes of this piece."""
    shape = [1] * len(block.ranges)
    shape[classes] = -1
    numbers = indices_of(block.ranges[classes]).reshape(shape)
    return (target == numbers) & (target != ignored)


def _common_shape(shapes: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    """Of tensors that are broadcast."""
    rank = max(map(len, shapes))
    padded = [(1,) * (rank - len(shape)) + shape for shape in shapes]
    return tuple(map(max, zip(*padded, strict=True)))


def _make_loops(shape: Sequence[int]) -> tuple[Loop, ...]:
    return tuple(Loop(f"d{axis}", size) for axis, size in enumerate(shape))


def _make_class_loops(data: Value) -> tuple[tuple[Loop, ...], int, tuple[int, ...]]:
    """Loops of the scores, the number of the classes' one, and the others."""
    classes = 0 if len(data.shape) == 1 else 1
    loops = _make_loops(data.shape)
    return loops, classes, tuple(loop for loop in range(len(loops)) if loop != classes)


RULES: dict[str, Describe] = {
    **dict.fromkeys(_FORWARD, describe_loss),
    **dict.fromkeys(_BACKWARD, describe_loss_backward),
    "aten.nll_loss_forward": describe_likelihood,
    "aten.nll_loss2d_forward": describe_likelihood,
    "aten.nll_loss_backward": describe_likelihood_backward,
    "aten.nll_loss2d_backward": describe_likelihood_backward,
}
