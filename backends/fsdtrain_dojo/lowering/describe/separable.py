"""Maps that are linear along each axis by itself: interpolation, adaptive averages, gradients.

    out[n, c, o0, o1] = sum over i0, i1 of m0[o0, i0] * m1[o1, i1] * x[n, c, i0, i1]

The matrices are sparse: what a range of outputs reads is a box, whose affine bounds are found from
them. Knows no op.
"""

from collections.abc import Callable, Sequence
from math import prod

import numpy as np
import torch
from torch import Tensor

from fsdtrain_dojo.lowering.describe.building import make_kernel
from fsdtrain_dojo.lowering.describe.nest import Indexed, fill_rest, index_access, is_all
from fsdtrain_dojo.lowering.kernel import Block, Kernel, Loop, Span, Unit, Value
from fsdtrain_dojo.lowering.op_call import OpCall


def make_separable(
    call: OpCall,
    data: Value,
    out: Value,
    matrices: Sequence[Tensor],
    run_whole: Callable[[Tensor], Tensor],
    *,
    flops_per_tap: int,
) -> Kernel:
    """The kernel of such a map.

    Args:
        call: the op.
        data: its input; the last dimensions are the axes.
        out: its result.
        matrices: of every axis, [size of result, size of input].
        run_whole: the op itself.
        flops_per_tap: for each product of the sum; 0: elements are only copied.
    """
    num_leading = len(out.shape) - len(matrices)
    leading = range(num_leading)
    loops = (
        *(Loop("nc"[axis - num_leading + 2], out.shape[axis]) for axis in leading),
        *(Loop(f"o{axis}", size) for axis, size in enumerate(out.shape[num_leading:])),
    )

    def compute(tensors: Sequence[Tensor], block: Block) -> list[Tensor]:
        (tensor,) = tensors
        read, written = block.boxes
        if is_all(loops, block):
            return [run_whole(fill_rest(tensor, data.shape, read))]
        for axis, matrix in enumerate(matrices, start=num_leading):
            taps = matrix[slice(*written[axis]), slice(*read[axis])].to(tensor.dtype)
            tensor = torch.tensordot(tensor, taps, dims=([axis], [1])).movedim(-1, axis)
        return [tensor.contiguous()]

    spans = [_fit_span(loop, matrix) for loop, matrix in enumerate(matrices, start=num_leading)]
    num_taps = prod(out.shape[:num_leading]) * prod(int(each.count_nonzero()) for each in matrices)
    return make_kernel(
        call,
        unit=Unit.VECTOR if flops_per_tap else Unit.MOVE,
        loops=loops,
        reads=(index_access(Indexed(data, (*leading, *spans)), loops),),
        writes=(index_access(Indexed(out, tuple(range(len(loops)))), loops),),
        flops=flops_per_tap * num_taps,
        compute=compute,
    )


def _fit_span(loop: int, matrix: Tensor) -> Span:
    """Affine bounds, as narrow as can be, of where the rows of a matrix are not zero."""
    filled = matrix.numpy() != 0
    num_rows, num_columns = filled.shape
    rows = np.flatnonzero(filled.any(1))
    if not len(rows):
        return Span(((loop, 1),), low=0, high=0)
    first = filled[rows].argmax(1)
    last = num_columns - 1 - filled[rows, ::-1].argmax(1)
    # What bounds every row bounds ranges, too: a span never goes back from one row to the next.
    common = int(np.gcd(num_rows, num_columns))
    scale, divide = num_columns // common, num_rows // common
    return Span(
        ((loop, scale),),
        divide=divide,
        low=int((divide * first + divide - 1 - scale * rows).min()),
        high=int((divide * last - scale * rows).max()),
    )
