"""What is lowered: a training step as kernels, each a nest of loops over values.

A kernel visits every point of its loops once. At each point it reads and writes the elements of
its values that lie at affine functions of the loops. What a range of every loop touches of a value
is therefore a box, which is all that placement, transfers, memory and verification go by; what is
computed with it is `Kernel.compute`, which only spatial execution calls. Knows no machine.

    y[n, k, oh, ow] += x[n, c, 2 oh + r - 1, 2 ow + s - 1] * w[k, c, r, s]      a convolution

    loops   n k oh ow | c r s      (those after the bar are not in y: reductions)
    x       n,  c,  2 oh + r - 1,  2 ow + s - 1
    w       k,  c,  r,  s
    y       n,  k,  oh,  ow
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from functools import cached_property
from math import prod

from torch import Tensor

from fsdtrain_dojo.lowering.chain import Chain

Range = tuple[int, int]  # first, and one past the last


class Phase(Enum):
    """Of a training step."""

    FORWARD = "forward"
    BACKWARD = "backward"
    OPTIMIZER = "optimizer"


class Unit(Enum):
    """What of a node does the work."""

    MATRIX = "matrix"  # multiply-accumulate, with `Kernel.epilogue` on the vector unit
    VECTOR = "vector"
    MOVE = "move"  # nothing is computed: reshapes, permutations, copies


class ValueKind(Enum):
    """Where a value comes from, and how long it has to be kept."""

    INPUT = "input"  # of the step: the batch
    WEIGHT = "weight"  # lives on from step to step
    STATE = "state"  # of the optimiser, or a buffer of a layer: lives on from step to step
    ACTIVATION = "activation"  # everything that the step makes
    CONSTANT = "constant"  # known when the program is built


class Combine(Enum):
    """How partial results of a reduction that was divided become one."""

    SUM = "sum"
    MAX = "max"
    MIN = "min"


@dataclass(frozen=True, kw_only=True)
class Value:
    """A tensor of the step.

    Args:
        name: unique.
        shape: elements along each dimension; () is a scalar.
        format: it is stored in: "bf16", "fp32", "cfloat8_1_4_3", "int64", "bool", ...
        element_bytes: of this format.
        kind: where it comes from.
        is_output: whether it is wanted when the step has ended (losses, new weights and states).
    """

    name: str
    shape: tuple[int, ...]
    format: str
    element_bytes: int
    kind: ValueKind
    is_output: bool = False

    def __hash__(self) -> int:
        return hash(self.name)  # which is unique, and quicker to look up than all of it

    @property
    def num_elements(self) -> int:
        return prod(self.shape)

    @property
    def num_bytes(self) -> int:
        return self.num_elements * self.element_bytes


@dataclass(frozen=True)
class Loop:
    """One loop of a kernel.

    Args:
        name: of its meaning: "n", "channel", "row".
        size: points.
        is_splittable: whether its range may be divided, over nodes or over time. False where the
            computation needs all of it at once: the length of a sort, the window of a pool.
    """

    name: str
    size: int
    is_splittable: bool = True


@dataclass(frozen=True)
class Span:
    """Which indices of one dimension of a value ranges of loops touch.

    From floor((sum of scale x first + low) / divide) to
    floor((sum of scale x last + high) / divide), cut to the dimension. A window of 3 with stride 2
    and padding 1 is Span(((oh, 2),), low=-1, high=1); its gradient, which goes back from an input
    to the outputs it is in, Span(((ih, 1),), divide=2, low=0, high=1). Scales are positive.

    Args:
        terms: (number of the loop, scale); none: always the same indices.
        divide: see above.
        low: see above.
        high: see above.
        modulo: the index is taken modulo this, as the inner of two dimensions that a view has
            merged is: Span(((ab, 1),), divide=b) is a, Span(((ab, 1),), modulo=b) is b. A range
            that goes past a multiple of it touches all. None: it is not.
    """

    terms: tuple[tuple[int, int], ...] = ()
    divide: int = 1
    low: int = 0
    high: int = 0
    modulo: int | None = None

    def touched(self, ranges: Sequence[Range], size: int) -> Range:
        """Indices of a dimension of `size` that these ranges of all loops touch, cut to it.

        Ranges without points touch nothing.
        """
        if any(ranges[loop][0] >= ranges[loop][1] for loop, _ in self.terms):
            return 0, 0
        first = sum(scale * ranges[loop][0] for loop, scale in self.terms) + self.low
        last = sum(scale * (ranges[loop][1] - 1) for loop, scale in self.terms) + self.high
        first, last = first // self.divide, last // self.divide
        if self.modulo is not None:
            if first // self.modulo != last // self.modulo:
                return 0, min(self.modulo, size)
            first, last = first % self.modulo, last % self.modulo
        first = min(max(first, 0), size)
        return first, max(min(last + 1, size), first)  # empty where all of it is outside


def along(loop: int, scale: int = 1) -> Span:
    """The indices that one loop runs over, `scale` of them at each point."""
    return Span(((loop, scale),), high=scale - 1)


def whole(size: int) -> Span:
    """All of a dimension, at every point."""
    return Span(low=0, high=size - 1)


@dataclass(frozen=True)
class Access:
    """The box of a value that a kernel reads or writes: a span for each of its dimensions.

    Args:
        value: name of the value.
        spans: by dimension.
        is_gathered: whether the elements within the spans are picked by other values (an index, a
            coordinate), so that a node needs `gathered_share` of the box, nobody knows which.
        gathered_share: of the box's elements that are read, each counted as often as it is; 1
            where not gathered.
    """

    value: str
    spans: tuple[Span, ...]
    is_gathered: bool = False
    gathered_share: float = 1.0

    @cached_property
    def spans_number(self) -> int:
        """The same for equal spans, and quicker to look up than these."""
        return _SPANS_NUMBERS.setdefault(self.spans, len(_SPANS_NUMBERS))


_SPANS_NUMBERS: dict[tuple[Span, ...], int] = {}


@dataclass(frozen=True, kw_only=True)
class Block:
    """One node's share of a kernel, as `compute` is told.

    Args:
        ranges: of every loop.
        boxes: of every read, then of every write: a range for each dimension, cut to the value.
    """

    ranges: tuple[Range, ...]
    boxes: tuple[tuple[Range, ...], ...]


# Local tensors of the reads' boxes -> local tensors of the writes' boxes. A box of a write that
# lacks a divided reduction's other parts is a partial result, to be combined.
Compute = Callable[[Sequence[Tensor], Block], list[Tensor]]


@dataclass(frozen=True, kw_only=True)
class Rescale:
    """How results follow reads that are sums in the making; see `chain`.

    Args:
        reads: numbers of the kernel's reads that may be used before they are complete.
        factor: of what these were before and are now: by what results made with the former are
            multiplied; 0: they are to be forgotten.
    """

    reads: tuple[int, ...]
    factor: Callable[[Sequence[Tensor], Sequence[Tensor]], Tensor]


@dataclass(frozen=True, kw_only=True)
class Kernel:
    """A nest of loops.

    Args:
        name: unique; of the FX node, with a suffix where an op became several kernels.
        op: "aten.convolution".
        call: the op call that it is a part of: "" stands for one of its own.
        phase: of the step.
        layer: module path; "" where not known.
        line: "file.py:12" of the user's code; "" where not known.
        unit: that does the work.
        loops: all of them. A loop that no span of a write runs over is a reduction.
        reads: boxes read at each point.
        writes: boxes written. Every element of every written value lies in the box of at least
            one point of the loops that are no reductions, and of one only.
        combine: of divided reductions, for all writes.
        macs: multiply-adds of all points together, on the matrix unit; 0 for other units.
        flops: of the vector unit, over all points together; a multiply-add counts 2.
        specials: of those, results of exp, log, reciprocal, square root (not counted in flops).
        compute: see `Compute`.
        epilogue: element-wise kernels that were fused into this one: they read its first write
            while that is still in registers. Their loops are those of this kernel.
        hidden: values that fusing took off the memory: made and used within the kernel.
        is_random: its result cannot be computed again: spatial execution takes it as given.
        counted_flops: what torch's FlopCounterMode counts for the op; for conservation checks.
        rescale: None: what it reads has to be complete.
        is_sum_of_products: whether its result is the sum of the products of its two reads.
        repeated_specials: of `specials`, those that kernels of the same call before it have
            computed as well: in a chain they are still there.
    """

    name: str
    op: str
    call: str = ""
    phase: Phase
    layer: str = ""
    line: str = ""
    unit: Unit
    loops: tuple[Loop, ...]
    reads: tuple[Access, ...]
    writes: tuple[Access, ...]
    combine: Combine = Combine.SUM
    macs: int = 0
    flops: int = 0
    specials: int = 0
    compute: Compute = field(repr=False, compare=False)
    epilogue: tuple["Kernel", ...] = ()
    hidden: frozenset[str] = frozenset()
    is_random: bool = False
    counted_flops: int = 0
    rescale: Rescale | None = field(default=None, repr=False, compare=False)
    is_sum_of_products: bool = False
    repeated_specials: int = 0

    def __hash__(self) -> int:
        return hash(self.name)

    @cached_property
    def sizes(self) -> tuple[int, ...]:
        """Of all loops."""
        return tuple(loop.size for loop in self.loops)

    @property
    def num_points(self) -> int:
        return prod(loop.size for loop in self.loops)

    @cached_property
    def reductions(self) -> frozenset[int]:
        """Numbers of the loops that no write runs over."""
        written = {loop for each in self.writes for span in each.spans for loop, _ in span.terms}
        return frozenset(range(len(self.loops))) - written

    @cached_property
    def loaded(self) -> tuple[Access, ...]:
        """Its reads, then those of its epilogue that it has not made itself, in order."""
        made = {each.value for each in self.writes}
        found = list(self.reads)
        for each in self.epilogue:
            found += [read for read in each.reads if read.value not in made]
            made |= {write.value for write in each.writes}
        return tuple(found)

    @cached_property
    def stored(self) -> tuple[Access, ...]:
        """Its writes, then those of its epilogue, in order, without the hidden ones."""
        writes = [*self.writes, *(write for each in self.epilogue for write in each.writes)]
        return tuple(each for each in writes if each.value not in self.hidden)

    def matrix_loops(self) -> tuple[frozenset[int], frozenset[int], frozenset[int], frozenset[int]]:
        """Loops of a MATRIX kernel by what they are to the product A B: (batch, M, N, K).

        A is the first read, B the second: batch loops are in both and in the result, M in A and
        the result, N in B and the result, K in no result.
        """
        assert self.unit is Unit.MATRIX, self.name
        in_a, in_b = (
            {loop for span in read.spans for loop, _ in span.terms} for read in self.reads[:2]
        )
        result = set(range(len(self.loops))) - self.reductions
        return (
            frozenset(result & in_a & in_b),
            frozenset(result & in_a - in_b),
            frozenset(result & in_b - in_a),
            self.reductions,
        )

    def touched(
        self, access: Access, ranges: Sequence[Range], shape: Sequence[int]
    ) -> tuple[Range, ...]:
        """The box of a value of `shape` that these ranges of all loops touch."""
        return tuple(
            span.touched(ranges, size) for span, size in zip(access.spans, shape, strict=True)
        )


@dataclass(frozen=True, kw_only=True)
class KernelGraph:
    """A step: kernels in an order in which they can run.

    Every ACTIVATION is written by one kernel before others read it. A WEIGHT or STATE that the
    optimiser renews appears as two values, the old and the new one; `renews` pairs them.

    Args:
        values: by name.
        kernels: in program order.
        renews: new value -> the old one whose memory it takes.
        chains: kernels that take turns over blocks.
    """

    values: Mapping[str, Value]
    kernels: tuple[Kernel, ...]
    renews: Mapping[str, str] = field(default_factory=dict)
    chains: tuple[Chain, ...] = ()

    def value_shape(self, name: str) -> tuple[int, ...]:
        return self.values[name].shape
