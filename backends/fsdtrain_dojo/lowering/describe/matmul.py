"""Matrix products as loop nests.

    out[b, m, n] += left[b, m, k] * right[b, k, n]      loops b m n | k

What joins a product (addend, beta, alpha) is an element-wise kernel of its own, which fusing puts
behind the product.
"""

from collections.abc import Sequence
from math import prod

from torch import Tensor

from fsdtrain_dojo.lowering.describe.building import intermediate, make_kernel
from fsdtrain_dojo.lowering.describe.nest import (
    Indexed,
    bind,
    broadcast_over,
    index_access,
    make_plain_kernel,
    num_points,
)
from fsdtrain_dojo.lowering.kernel import Block, Compute, Kernel, Loop, Unit, Value
from fsdtrain_dojo.lowering.op_call import Describe, Expansion, OpCall

# Loops of left, right and result, by their ranks.
_LETTERS = {
    (2, 2, 2): ("mk", "kn", "mn"),
    (3, 3, 3): ("bmk", "bkn", "bmn"),
    (3, 3, 2): ("bmk", "bkn", "mn"),
    (2, 1, 1): ("mk", "k", "m"),
    (1, 1, 0): ("k", "k", ""),
}
_COUNTED = ("aten.mm", "aten.bmm", "aten.addmm", "aten.baddbmm")  # by FlopCounterMode


def describe_product(call: OpCall) -> Expansion:
    """Of mm, bmm, mv and dot."""
    given = bind(call, "left right out_dtype", out_dtype=None)
    (out,) = call.outputs
    assert out is not None

    def compute(tensors: Sequence[Tensor], block: Block) -> list[Tensor]:
        return [call.function(*tensors)]

    return Expansion(kernels=(_make_product(call, given["left"], given["right"], out, compute),))


def describe_product_with_addend(call: OpCall) -> Expansion:
    """Of addmm, baddbmm, addbmm and addmv: beta * addend + alpha * product."""
    given = bind(call, "addend left right beta alpha", beta=1, alpha=1)
    beta, alpha = given["beta"], given["alpha"]
    (out,) = call.outputs
    assert out is not None
    is_plain = beta == 0 and alpha == 1
    product = out if is_plain else intermediate(call, ".product", out.shape)

    def compute(tensors: Sequence[Tensor], block: Block) -> list[Tensor]:
        left, right = tensors
        # With beta 0 ATen takes no more than the shape of the addend.
        nothing = left.new_zeros(1).expand([end - first for first, end in block.boxes[-1]])
        return [call.function(nothing, left, right, beta=0, alpha=1)]

    kernel = _make_product(call, given["left"], given["right"], product, compute)
    if is_plain:
        return Expansion(kernels=(kernel,))
    addend = given["addend"] if beta != 0 else None
    joined = _join_addend(call, product, addend, out, beta=beta, alpha=alpha)
    return Expansion(kernels=(kernel, joined), values=(product,))


def describe_trilinear(call: OpCall) -> Expansion:
    """A product of three operands, each missing some of the dimensions; some are summed over."""
    given = bind(call, "i1 i2 i3 expand1 expand2 expand3 sumdim unroll_dim", unroll_dim=1)
    operands = [given[name] for name in ("i1", "i2", "i3")]
    missing = [given[f"expand{number}"] for number in (1, 2, 3)]
    summed = given["sumdim"]
    (out,) = call.outputs
    assert out is not None
    rank = len(operands[0].shape) + len(missing[0])
    present = [[d for d in range(rank) if d not in absent] for absent in missing]
    sizes = {
        d: size
        for dims, operand in zip(present, operands, strict=True)
        for d, size in zip(dims, operand.shape, strict=True)
    }
    loops = tuple(Loop(f"d{d}", sizes[d]) for d in range(rank))

    def compute(tensors: Sequence[Tensor], block: Block) -> list[Tensor]:
        return [call.function(*tensors, *missing, summed)]

    kernel = make_kernel(
        call,
        unit=Unit.VECTOR,
        loops=loops,
        reads=tuple(
            index_access(Indexed(operand, tuple(dims)), loops)
            for operand, dims in zip(operands, present, strict=True)
        ),
        writes=(
            index_access(Indexed(out, tuple(d for d in range(rank) if d not in summed)), loops),
        ),
        flops=3 * num_points(loops),
        compute=compute,
    )
    return Expansion(kernels=(kernel,))


def _make_product(call: OpCall, left: Value, right: Value, out: Value, compute: Compute) -> Kernel:
    """The product itself: of matrices on the matrix unit, with a vector on the vector unit."""
    letters = _LETTERS[len(left.shape), len(right.shape), len(out.shape)]
    sizes = dict(zip(letters[0] + letters[1], left.shape + right.shape, strict=True))
    order = letters[2] + "".join(letter for letter in letters[0] if letter not in letters[2])
    loops = tuple(Loop(letter, sizes[letter]) for letter in order)
    accesses = [
        index_access(Indexed(value, tuple(map(order.index, each))), loops)
        for value, each in zip((left, right, out), letters, strict=True)
    ]
    is_matrix = "n" in order
    macs = prod(sizes.values())
    return make_kernel(
        call,
        unit=Unit.MATRIX if is_matrix else Unit.VECTOR,
        loops=loops,
        reads=tuple(accesses[:2]),
        writes=tuple(accesses[2:]),
        macs=macs if is_matrix else 0,
        flops=0 if is_matrix else 2 * macs,
        counted_flops=2 * macs if call.op in _COUNTED else 0,
        compute=compute,
    )


def _join_addend(
    call: OpCall, product: Value, addend: Value | None, out: Value, *, beta: float, alpha: float
) -> Kernel:
    """The sum alpha * product + beta * addend."""
    loops = tuple(Loop(f"d{d}", size) for d, size in enumerate(out.shape))
    reads = [Indexed(product, tuple(range(len(loops))))]
    if addend is not None:
        reads.append(Indexed(addend, broadcast_over(addend.shape, len(loops))))

    def join(tensors: Sequence[Tensor], block: Block) -> Tensor:
        total = tensors[0] if alpha == 1 else tensors[0] * alpha
        if addend is None:
            return total
        return total + (tensors[1] if beta == 1 else tensors[1] * beta)

    num_flops = (alpha != 1) + (addend is not None) + (addend is not None and beta != 1)
    return make_plain_kernel(
        call,
        ".addend",
        loops=loops,
        reads=reads,
        writes=[Indexed(out, tuple(range(len(loops))))],
        formula=join,
        flops=num_flops * num_points(loops),
    )


RULES: dict[str, Describe] = {
    "aten.mm": describe_product,
    "aten.bmm": describe_product,
    "aten.mv": describe_product,
    "aten.dot": describe_product,
    "aten.vdot": describe_product,
    "aten.addmm": describe_product_with_addend,
    "aten.baddbmm": describe_product_with_addend,
    "aten.addbmm": describe_product_with_addend,
    "aten.addmv": describe_product_with_addend,
    "aten._trilinear": describe_trilinear,
}
