"""Reductions: sums, means, variances, norms, extremes.

mean(x, 1)      loops: the dimensions of x; x: all of them; y: without the second, which is a
reduction. Each part divides by the full count, so that parts add up.
var(x, 1)       mean(x, 1), then the sum of (x - mean)^2 / (n - 1): never in one pass, which
would cancel.
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from fsdtrain_dojo.lowering.describe.building import (
    along_all,
    intermediate,
    make_kernel,
    values_of,
)
from fsdtrain_dojo.lowering.describe.pointwise import (
    describe_pointwise,
    loops_of,
    torch_dtype,
)
from fsdtrain_dojo.lowering.describe.scans import describe_along, reduced_dims
from fsdtrain_dojo.lowering.kernel import (
    Access,
    Block,
    Combine,
    Kernel,
    Loop,
    Span,
    Unit,
    Value,
    along,
)
from fsdtrain_dojo.lowering.op_call import Describe, Expansion, OpCall

Dims = tuple[int, ...]
Part = Callable[[Tensor], Tensor]


def describe_sum(call: OpCall) -> Expansion:
    """Sum and nansum."""
    source, result, dims, keeps = _of(call)
    dtype = torch_dtype(result)
    operation = torch.nansum if call.op == "aten.nansum" else torch.sum

    def part(x: Tensor) -> Tensor:
        return operation(x, dims, keeps, dtype=dtype) if dims else x.to(dtype)

    return _one(_reduction(call, source, result, dims, part, flops=source.num_elements))


def describe_mean(call: OpCall) -> Expansion:
    """mean: a part is its sum over the count of all."""
    source, result, dims, keeps = _of(call)
    count = math.prod(source.shape[dim] for dim in dims)

    def part(x: Tensor) -> Tensor:
        return x.sum(dims, keeps).div_(count) if dims else x

    flops = source.num_elements + result.num_elements
    return _one(_reduction(call, source, result, dims, part, flops=flops))


def describe_extreme(call: OpCall) -> Expansion:
    """amax, amin, max and min of everything, any and all."""
    source, result, dims, keeps = _of(call)
    is_largest = call.op in ("aten.amax", "aten.max", "aten.any")
    is_truth = call.op in ("aten.any", "aten.all")

    def part(x: Tensor) -> Tensor:
        x = x.bool() if is_truth else x
        if not dims:
            return x
        return torch.amax(x, dims, keeps) if is_largest else torch.amin(x, dims, keeps)

    combine = Combine.MAX if is_largest else Combine.MIN
    kernel = _reduction(
        call, source, result, dims, part, flops=source.num_elements, combine=combine
    )
    return _one(kernel)


def describe_max(call: OpCall) -> Expansion:
    """Max and min: of everything, of one dimension with indices, or of two tensors."""
    if len(call.outputs) == 2:
        return describe_along(call)
    if len(values_of(call)) == 2:
        return describe_pointwise(call)
    return describe_extreme(call)


def describe_variance(call: OpCall) -> Expansion:
    """var, std, var_mean and std_mean, in two passes."""
    source, _, dims, keeps = _of(call)
    count = math.prod(source.shape[dim] for dim in dims)
    divisor = max(count - _correction(call), 0)
    kept = tuple(1 if dim in dims else size for dim, size in enumerate(source.shape))
    mean = intermediate(call, ".centre", kept)
    centre = _reduction(
        call, source, mean, dims, lambda x: x.sum(dims, True).div_(count),
        suffix=".centre", flops=source.num_elements + mean.num_elements,
    )  # fmt: skip
    kernels, values = [centre], [mean]
    is_deviation = call.op in ("aten.std", "aten.std_mean")
    spread, given_mean = (*call.outputs, None)[:2]
    if spread is not None:
        squares = intermediate(call, ".variance", spread.shape) if is_deviation else spread
        kernels.append(_squares(call, source, mean, squares, dims, divisor))
        if is_deviation:
            values.append(squares)
            kernels.append(_elementwise(call, squares, spread, torch.sqrt, ".root", (0, 1)))
    if given_mean is not None:
        kernels.append(
            _elementwise(
                call, mean, given_mean, lambda x: x if keeps else x.squeeze(dims), ".mean", (0, 0)
            )
        )
    return Expansion(kernels=tuple(kernels), values=tuple(values))


def describe_norm(call: OpCall) -> Expansion:
    """Norm and linalg_vector_norm: sums of powers, then the root; or an extreme."""
    source, result, dims, keeps = _of(call, dims_at=2)
    order = call.args[1] if len(call.args) > 1 and call.args[1] is not None else 2.0
    assert isinstance(order, int | float)
    if math.isinf(order):
        extreme = torch.amax if order > 0 else torch.amin
        combine = Combine.MAX if order > 0 else Combine.MIN
        return _one(
            _reduction(
                call,
                source,
                result,
                dims,
                lambda x: extreme(x.abs(), dims, keeps),
                flops=2 * source.num_elements,
                combine=combine,
            )  # fmt: skip
        )

    def powers(x: Tensor) -> Tensor:
        if order == 2:
            return (x * x).sum(dims, keeps)
        raised = x.ne(0).to(x.dtype) if order == 0 else x.abs().pow(order)
        return raised.sum(dims, keeps)

    specials = 0 if order in (0, 1, 2) else 2 * source.num_elements
    if order in (0, 1):
        return _one(_reduction(call, source, result, dims, powers, flops=2 * source.num_elements))
    total = intermediate(call, ".powers", result.shape)
    first = _reduction(
        call, source, total, dims, powers,
        suffix=".powers", flops=2 * source.num_elements, specials=specials,
    )  # fmt: skip
    root = _elementwise(
        call, total, result, lambda x: x.sqrt() if order == 2 else x.pow(1 / order), ".root", (0, 1)
    )
    return Expansion(kernels=(first, root), values=(total,))


def _reduction(
    call: OpCall,
    source: Value,
    result: Value,
    dims: Dims,
    part: Part,
    *,
    suffix: str = "",
    combine: Combine = Combine.SUM,
    flops: int,
    specials: int = 0,
) -> Kernel:
    return make_kernel(
        call,
        suffix=suffix,
        unit=Unit.VECTOR,
        loops=loops_of(source.shape),
        reads=(along_all(source),),
        writes=(_without(result, len(source.shape), dims),),
        combine=combine,
        flops=flops,
        specials=specials,
        compute=lambda tensors, block: [part(tensors[0])],
    )


def _squares(
    call: OpCall, source: Value, mean: Value, result: Value, dims: Dims, divisor: float
) -> Kernel:
    """The sum of squared differences from the mean, over the divisor."""
    rank = len(source.shape)
    keeps = len(result.shape) == rank

    def compute(tensors: Sequence[Tensor], block: Block) -> list[Tensor]:
        centred = tensors[0] - tensors[1]
        total = (centred * centred).sum(dims, keeps) if dims else centred * centred
        return [total / divisor]

    return make_kernel(
        call,
        suffix=".squares",
        unit=Unit.VECTOR,
        loops=loops_of(source.shape),
        reads=(along_all(source), _without(mean, rank, dims)),
        writes=(_without(result, rank, dims),),
        flops=3 * source.num_elements + result.num_elements,
        compute=compute,
    )


def _elementwise(
    call: OpCall, source: Value, result: Value, function: Part, suffix: str, cost: tuple[int, int]
) -> Kernel:
    """From the statistics to a result, which may lack dimensions of one element."""
    kept = [dim for dim, size in enumerate(source.shape) if size > 1]
    shorter = [dim for dim, size in enumerate(result.shape) if size > 1]
    loop_of = {dim: number for number, dim in enumerate(kept)}
    loops = tuple(Loop(f"d{dim}", source.shape[dim]) for dim in kept)
    reads = tuple(along(loop_of[d]) if d in loop_of else Span() for d in range(len(source.shape)))
    places = {dim: number for number, dim in enumerate(shorter)}
    writes = tuple(along(places[d]) if d in places else Span() for d in range(len(result.shape)))
    return make_kernel(
        call,
        suffix=suffix,
        unit=Unit.VECTOR if any(cost) else Unit.MOVE,
        loops=loops,
        reads=(Access(source.name, reads),),
        writes=(Access(result.name, writes),),
        flops=cost[0] * result.num_elements,
        specials=cost[1] * result.num_elements,
        compute=lambda tensors, block: [function(tensors[0])],
    )


def _without(value: Value, rank: int, dims: Dims) -> Access:
    """Access to a result that keeps the reduced dimensions with one element, or drops them."""
    if len(value.shape) == rank:
        spans = tuple(Span() if dim in dims else along(dim) for dim in range(rank))
    else:
        spans = tuple(along(dim) for dim in range(rank) if dim not in dims)
    return Access(value.name, spans)


def _of(call: OpCall, dims_at: int = 1) -> tuple[Value, Value, Dims, bool]:
    """(operand, first result that is used, reduced dimensions, whether they are kept)."""
    (source, *_) = values_of(call)
    result = next(value for value in call.outputs if value is not None)
    rank = len(source.shape)
    given = call.args[dims_at] if len(call.args) > dims_at else call.kwargs.get("dim")
    if isinstance(given, bool):  # var(x, unbiased)
        given = None
    dims = reduced_dims(given, rank)
    keeps = bool(rank and dims and len(result.shape) == rank)
    return source, result, dims, keeps


def _correction(call: OpCall) -> float:
    given = call.kwargs.get("correction", 1)
    for argument in call.args[1:]:
        if isinstance(argument, bool):
            given = int(argument)
            break
    return 1.0 if given is None else float(given)


def _one(kernel: Kernel) -> Expansion:
    return Expansion(kernels=(kernel,))


RULES: dict[str, Describe] = {
    "aten.sum": describe_sum,
    "aten.nansum": describe_sum,
    "aten.mean": describe_mean,
    **dict.fromkeys(("aten.amax", "aten.amin", "aten.any", "aten.all"), describe_extreme),
    **dict.fromkeys(("aten.max", "aten.min"), describe_max),
    **dict.fromkeys(("aten.var", "aten.std", "aten.var_mean", "aten.std_mean"), describe_variance),
    **dict.fromkeys(("aten.norm", "aten.linalg_vector_norm"), describe_norm),
}
