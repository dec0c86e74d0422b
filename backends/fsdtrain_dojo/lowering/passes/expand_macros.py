"""Replaces every op by the kernels that it is made of.

    batch_norm(x, weight, bias)   =>   mean(x), variance(x, mean), normalise(x, mean, variance, ...)

Which kernels those are is said by the files of `describe`, a family of ops each. Knows no machine.
"""

from collections.abc import Mapping

from fsdtrain_dojo.lowering.describe import (
    by_row,
    convolution,
    creation,
    grid_sample,
    indexing,
    joining,
    losses,
    matmul,
    movement,
    normalization,
    pointwise,
    pooling,
    rearranging,
    reductions,
    resampling,
    scans,
    scattering,
    softmax,
)
from fsdtrain_dojo.lowering.describe.fallback import describe_whole
from fsdtrain_dojo.lowering.kernel import Kernel, KernelGraph, Value
from fsdtrain_dojo.lowering.op_call import Describe, OpCall
from fsdtrain_dojo.lowering.recorded import RecordedStep

RULES: dict[str, Describe] = {
    **pointwise.RULES,
    **reductions.RULES,
    **scans.RULES,
    **movement.RULES,
    **joining.RULES,
    **rearranging.RULES,
    **creation.RULES,
    **by_row.RULES,
    **indexing.RULES,
    **scattering.RULES,
    **matmul.RULES,
    **convolution.RULES,
    **normalization.RULES,
    **softmax.RULES,
    **pooling.RULES,
    **resampling.RULES,
    **grid_sample.RULES,
    **losses.RULES,
}


def expand_macros(recorded: RecordedStep) -> KernelGraph:
    """The step as kernels, in the order of its ops."""
    values: dict[str, Value] = dict(recorded.values)
    kernels: list[Kernel] = []
    for call in recorded.calls:
        expansion = find_describe(call)(call)
        values |= {value.name: value for value in expansion.values}
        for kernel in expansion.kernels:
            _check(kernel, values)
            kernels.append(kernel)
    return KernelGraph(values=values, kernels=tuple(kernels), renews=recorded.renews)


def find_describe(call: OpCall) -> Describe:
    """The function that describes the op."""
    if call.op in RULES:
        return RULES[call.op]
    return pointwise.describe_pointwise if pointwise.is_pointwise(call) else describe_whole


def _check(kernel: Kernel, values: Mapping[str, Value]) -> None:
    """Assert that a kernel's accesses name values, their dimensions and loops that there are."""
    assert kernel.writes, kernel.name
    for access in (*kernel.reads, *kernel.writes):
        assert access.value in values, (kernel.name, access.value)
        assert len(access.spans) == len(values[access.value].shape), (kernel.name, access.value)
        for span in access.spans:
            assert all(loop < len(kernel.loops) and scale > 0 for loop, scale in span.terms), (
                kernel.name,
                access.value,
            )
