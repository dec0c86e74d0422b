"""The kernels that norms consist of: reductions and element-wise ones.

A norm's loops are those of its input; its statistics (mean, 1 / deviation) run over some of them,
its parameters (weight, bias) over others:

                statistics      parameters
    batch       c               c
    layer, RMS  rows            features
    group       n g             g c

Statistics take two passes, the mean and then centred squares, so that a reduction that was divided
can be added up; they are FP32.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod

from torch import Tensor

from fsdtrain_dojo.lowering.describe.building import intermediate
from fsdtrain_dojo.lowering.describe.nest import (
    Indexed,
    Over,
    loops_of,
    make_plain_kernel,
    num_points,
)
from fsdtrain_dojo.lowering.kernel import Block, Kernel, Loop, Value
from fsdtrain_dojo.lowering.op_call import Expansion, OpCall

Formula = Callable[[Mapping[str, Tensor]], Tensor | Sequence[Tensor]]


@dataclass(frozen=True, kw_only=True)
class Norm:
    """What runs over what, of one call.

    Args:
        call: the op.
        loops: of the input.
        data: what the input's dimensions run over.
        statistics: those of mean and deviation.
        parameters: those of weight and bias.
    """

    call: OpCall
    loops: tuple[Loop, ...]
    data: tuple[Over, ...]
    statistics: tuple[Over, ...]
    parameters: tuple[Over, ...]

    @property
    def num_reduced(self) -> int:
        """Elements in a statistic."""
        return prod(self.loops[loop].size for loop in self.reduced)

    @property
    def reduced(self) -> tuple[int, ...]:
        return self._others(self.statistics)

    @property
    def reduced_for_parameters(self) -> tuple[int, ...]:
        return self._others(self.parameters)

    def statistic(self, suffix: str, output: Value | None = None) -> Value:
        """The value of a statistic: an output of the call, or one that only its kernels know."""
        sizes = [1 if over is None else self.loops[loops_of([over])[0]].size
                 for over in self.statistics]  # fmt: skip
        return output or intermediate(self.call, suffix, sizes)

    def _others(self, over: Sequence[Over]) -> tuple[int, ...]:
        kept = set(loops_of(over))
        return tuple(loop for loop in range(len(self.loops)) if loop not in kept)

    def make_kernel(
        self,
        suffix: str,
        *,
        data: Mapping[str, Value | None] | None = None,
        statistics: Mapping[str, Value | None] | None = None,
        parameters: Mapping[str, Value | None] | None = None,
        writes: Sequence[Indexed],
        formula: Formula,
        flops: int = 0,
    ) -> Kernel:
        """A kernel over all elements; the formula gets the operands that are there by name."""
        groups = (
            (data, self.data), (statistics, self.statistics), (parameters, self.parameters)
        )  # fmt: skip
        operands = {
            name: Indexed(value, over)
            for values, over in groups
            for name, value in (values or {}).items()
            if value is not None
        }

        def compute(tensors: Sequence[Tensor], block: Block) -> Tensor | Sequence[Tensor]:
            return formula(dict(zip(operands, tensors, strict=True)))

        return make_plain_kernel(
            self.call,
            suffix,
            loops=self.loops,
            reads=list(operands.values()),
            writes=writes,
            formula=compute,
            flops=flops * num_points(self.loops),
        )

    def make_small_kernel(
        self,
        suffix: str,
        *,
        reads: Sequence[Value],
        writes: Sequence[Value],
        formula: Callable[[Sequence[Tensor]], Tensor | Sequence[Tensor]],
        flops: int = 0,
        specials: int = 0,
    ) -> Kernel:
        """A kernel over the elements of statistics."""
        shape = (*reads, *writes)[0].shape
        loops = [Loop(f"s{number}", size) for number, size in enumerate(shape)]
        over = tuple(range(len(loops)))
        return make_plain_kernel(
            self.call,
            suffix,
            loops=loops,
            reads=[Indexed(value, over) for value in reads],
            writes=[Indexed(value, over) for value in writes],
            formula=lambda tensors, block: formula(tensors),
            flops=flops * num_points(loops),
            specials=specials * num_points(loops),
        )


def expand(call: OpCall, kernels: Sequence[Kernel], *values: Value | None) -> Expansion:
    """These kernels, and those of the values that they write and that are no outputs."""
    written = {access.value for kernel in kernels for access in kernel.writes}
    written -= {output.name for output in call.outputs if output is not None}
    return Expansion(
        kernels=tuple(kernels),
        values=tuple(each for each in values if each is not None and each.name in written),
    )


def make_mean(norm: Norm, data: Value, mean: Value) -> Kernel:
    """The sum of the elements, each divided by their number beforehand, so that sums add up."""
    return norm.make_kernel(
        ".mean",
        data={"x": data},
        writes=[Indexed(mean, norm.statistics)],
        formula=lambda of: of["x"].sum(norm.reduced, keepdim=True) / norm.num_reduced,
        flops=1,
    )


def make_variance(norm: Norm, data: Value, mean: Value | None, variance: Value) -> Kernel:
    """The mean of centred squares; without a mean, of squares."""
    return norm.make_kernel(
        ".variance",
        data={"x": data},
        statistics={"mean": mean},
        writes=[Indexed(variance, norm.statistics)],
        formula=lambda of: centred(of).square().sum(norm.reduced, keepdim=True) / norm.num_reduced,
        flops=3 if mean is not None else 2,
    )


def make_rstd(norm: Norm, variance: Value, rstd: Value, eps: float) -> Kernel:
    """1 / deviation."""
    return norm.make_small_kernel(
        ".rstd",
        reads=[variance],
        writes=[rstd],
        formula=lambda tensors: (tensors[0] + eps).rsqrt(),
        flops=1,
        specials=1,
    )


def make_result(
    norm: Norm,
    *,
    data: Value,
    mean: Value | None,
    rstd: Value,
    weight: Value | None,
    bias: Value | None,
    out: Value,
) -> Kernel:
    """The sum (x - mean) * rstd * weight + bias."""

    def normalise(of: Mapping[str, Tensor]) -> Tensor:
        scale = of["rstd"] * of["weight"] if "weight" in of else of["rstd"]
        scaled = centred(of) * scale
        return scaled + of["bias"] if "bias" in of else scaled

    return norm.make_kernel(
        ".result",
        data={"x": data},
        statistics={"mean": mean, "rstd": rstd},
        parameters={"weight": weight, "bias": bias},
        writes=[Indexed(out, norm.data)],
        formula=normalise,
        flops=sum(each is not None for each in (mean, rstd, weight, bias)),
    )


def centred(of: Mapping[str, Tensor]) -> Tensor:
    """The elements about their mean."""
    return of["x"] - of["mean"] if "mean" in of else of["x"]
