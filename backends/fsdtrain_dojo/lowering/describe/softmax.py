"""Softmax and its kin as reductions over a row and element-wise kernels.

    top = max(x);  sum = sum(exp(x - top));  y = exp(x - top) / sum     log: y = x - top - log(sum)

The exponentials are computed twice rather than kept. A row may be divided: each reduction is then
combined once. The gradients are y (dy - sum(dy y)) and dy - exp(y) sum(dy).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod

import torch
from torch import Tensor

from fsdtrain_dojo.lowering.describe.building import intermediate
from fsdtrain_dojo.lowering.describe.nest import Formula, Indexed, Over, bind, make_plain_kernel
from fsdtrain_dojo.lowering.kernel import Block, Combine, Kernel, Loop, Rescale, Value
from fsdtrain_dojo.lowering.op_call import Describe, Expansion, OpCall


@dataclass(frozen=True, kw_only=True)
class _Rows:
    """A tensor and the dimensions that are normalised, which are never negative."""

    call: OpCall
    data: Value
    dims: tuple[int, ...]

    @property
    def loops(self) -> tuple[Loop, ...]:
        return tuple(
            Loop(f"{'length' if axis in self.dims else 'row'}{axis}", size)
            for axis, size in enumerate(self.data.shape)
        )

    @property
    def over(self) -> tuple[Over, ...]:
        return tuple(range(len(self.data.shape)))

    @property
    def over_rows(self) -> tuple[Over, ...]:
        return tuple(None if axis in self.dims else axis for axis in range(len(self.data.shape)))

    @property
    def num_rows(self) -> int:
        return prod(size for axis, size in enumerate(self.data.shape) if axis not in self.dims)

    def row_value(self, suffix: str) -> Value:
        """One number for every row."""
        shape = [1 if axis in self.dims else size for axis, size in enumerate(self.data.shape)]
        return intermediate(self.call, suffix, shape)

    def indexed(self, value: Value) -> Indexed:
        return Indexed(value, self.over if value.shape == self.data.shape else self.over_rows)

    def anchor(self, top: Tensor) -> Tensor:
        """What exponentials are relative to: 0 where infinity would make a NaN and must not."""
        if self.call.op == "aten.logsumexp":
            return torch.where(top.isinf(), 0.0, top)
        if self.call.op == "aten._safe_softmax":
            return torch.where(top == -torch.inf, 0.0, top)
        return top

    def sum_factor(self, olds: Sequence[Tensor], news: Sequence[Tensor]) -> Tensor:
        """Of exponentials relative to another maximum; to minus infinity there are none."""
        old, new = olds[0], news[0]
        factor = (self.anchor(old) - self.anchor(new)).exp()
        return torch.where(old == -torch.inf, 0.0, factor)

    def result_factor(self, olds: Sequence[Tensor], news: Sequence[Tensor]) -> Tensor:
        """Of results that were shares of another sum of other exponentials."""
        factor = self.sum_factor(olds, news)
        return torch.where(factor == 0, 0.0, factor * (olds[1] / news[1]))

    def make_kernel(
        self,
        suffix: str,
        reads: Sequence[Value],
        write: Indexed,
        formula: Formula,
        *,
        combine: Combine = Combine.SUM,
        flops: int = 0,
        specials: int = 0,
        row_specials: int = 0,
    ) -> Kernel:
        """A kernel over all elements; work is for each of them, and for each row."""
        return make_plain_kernel(
            self.call,
            suffix,
            loops=self.loops,
            reads=[self.indexed(value) for value in reads],
            writes=[write],
            formula=formula,
            combine=combine,
            flops=flops * self.data.num_elements,
            specials=specials * self.data.num_elements + row_specials * self.num_rows,
        )


def describe_softmax(call: OpCall) -> Expansion:
    """Of _softmax, _log_softmax and _safe_softmax, which makes zeros of rows without an element."""
    given = bind(call, "input dim dtype", dtype=None)
    (out,) = call.outputs
    assert out is not None
    rows = _make_rows(call, given["input"], [given["dim"]])
    top, total, kernels = _sum_exponentials(rows)
    is_log = call.op == "aten._log_softmax"
    is_safe = call.op == "aten._safe_softmax"

    def normalise(tensors: Sequence[Tensor], block: Block) -> Tensor:
        x, top, total = tensors
        if is_log:
            return (x - top) - total.log()
        result = (x - rows.anchor(top)).exp() / total
        return torch.where(total == 0, 0.0, result) if is_safe else result

    result = rows.make_kernel(
        ".result",
        [rows.data, top, total],
        Indexed(out, rows.over),
        normalise,
        flops=2,
        specials=0 if is_log else 1,
        row_specials=1,
    )
    if not is_log:  # whose results are no multiples of what they were
        rescale = Rescale(reads=(1, 2), factor=rows.result_factor)
        repeated = rows.data.num_elements
        result = replace(result, rescale=rescale, repeated_specials=repeated)
    kernels.append(result)
    return Expansion(kernels=tuple(kernels), values=(top, total))


def describe_logsumexp(call: OpCall) -> Expansion:
    """Of logsumexp, over any dimensions."""
    given = bind(call, "input dim keepdim", keepdim=False)
    (out,) = call.outputs
    assert out is not None
    dim = given["dim"]
    rows = _make_rows(call, given["input"], [dim] if isinstance(dim, int) else dim)
    top, total, kernels = _sum_exponentials(rows)
    kept = [axis for axis in range(len(top.shape)) if given["keepdim"] or axis not in rows.dims]
    loops = tuple(Loop(f"row{axis}", size) for axis, size in enumerate(top.shape))
    over = tuple(range(len(loops)))
    kernels.append(
        make_plain_kernel(
            call,
            ".result",
            loops=loops,
            reads=[Indexed(top, over), Indexed(total, over)],
            writes=[Indexed(out, tuple(kept))],
            formula=lambda tensors, block: rows.anchor(tensors[0]) + tensors[1].log(),
            flops=rows.num_rows,
            specials=rows.num_rows,
        )
    )
    return Expansion(kernels=tuple(kernels), values=(top, total))


def describe_softmax_backward(call: OpCall) -> Expansion:
    """Of _softmax_backward_data and _log_softmax_backward_data."""
    given = bind(call, "gradient output dim input_dtype", input_dtype=None)
    (out,) = call.outputs
    assert out is not None
    gradient, output = given["gradient"], given["output"]
    rows = _make_rows(call, output, [given["dim"]])
    total = rows.row_value(".sum")
    is_log = call.op == "aten._log_softmax_backward_data"

    def add(tensors: Sequence[Tensor], block: Block) -> Tensor:
        terms = tensors[0] if is_log else tensors[0] * tensors[1]
        return terms.sum(rows.dims, keepdim=True)

    def differentiate(tensors: Sequence[Tensor], block: Block) -> Tensor:
        dy, y, total = tensors
        return dy - y.exp() * total if is_log else y * (dy - total)

    reduction = rows.make_kernel(
        ".sum",
        [gradient] if is_log else [gradient, output],
        Indexed(total, rows.over_rows),
        add,
        flops=1 if is_log else 2,
    )
    reduction = replace(reduction, is_sum_of_products=not is_log)
    result = rows.make_kernel(
        ".dx",
        [gradient, output, total],
        Indexed(out, rows.over),
        differentiate,
        flops=2,
        specials=1 if is_log else 0,
    )
    return Expansion(kernels=(reduction, result), values=(total,))


def _make_rows(call: OpCall, data: Value, dims: Sequence[int]) -> _Rows:
    rank = len(data.shape)
    positive = tuple(dim % rank for dim in dims) if rank else ()
    return _Rows(call=call, data=data, dims=positive or tuple(range(rank)))


def _sum_exponentials(rows: _Rows) -> tuple[Value, Value, list[Kernel]]:
    """The largest of every row and the sum of exponentials relative to it."""
    top, total = rows.row_value(".max"), rows.row_value(".sum")

    def find_top(tensors: Sequence[Tensor], block: Block) -> Tensor:
        (x,) = tensors
        return x.amax(rows.dims, keepdim=True)

    def add(tensors: Sequence[Tensor], block: Block) -> Tensor:
        x, top = tensors
        return (x - rows.anchor(top)).exp().sum(rows.dims, keepdim=True)

    write_top, write_total = Indexed(top, rows.over_rows), Indexed(total, rows.over_rows)
    reductions = [
        rows.make_kernel(".max", [rows.data], write_top, find_top, combine=Combine.MAX, flops=1),
        rows.make_kernel(".sum", [rows.data, top], write_total, add, flops=2, specials=1),
    ]
    rescale = Rescale(reads=(1,), factor=rows.sum_factor)
    reductions[1] = replace(reductions[1], rescale=rescale)
    return top, total, reductions


RULES: dict[str, Describe] = {
    "aten._softmax": describe_softmax,
    "aten._safe_softmax": describe_softmax,
    "aten._log_softmax": describe_softmax,
    "aten._softmax_backward_data": describe_softmax_backward,
    "aten._log_softmax_backward_data": describe_softmax_backward,
    "aten.logsumexp": describe_logsumexp,
}
