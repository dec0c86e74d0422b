"""What a profile of one training step holds: the same fields for a clock and for a machine model.

It does not know how a backend finds its figures, nor how they are shown. A backend fills in what it
can tell: None, or an empty tuple or mapping, means that it cannot. Seconds, bytes, joules, FLOPs.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

# MEASURED: a clock, or values, on real hardware. EMULATED: values computed with the target's number
# formats. MODELLED: time, traffic or energy from a machine model.
Origin = Literal["MEASURED", "EMULATED", "MODELLED"]

Phase = Literal["forward", "backward", "optimizer"]
PHASES: tuple[Phase, ...] = ("forward", "backward", "optimizer")


@dataclass(frozen=True, kw_only=True)
class OpProfile:
    """One op of a step, or all calls of it that are alike.

    Args:
        name: of the op: "aten::convolution", or a name of the program that was run.
        shapes: of its tensors, "4x24x48x48, 24x24x3x3".
        dtype: what it computes in.
        num_calls: of equal shapes in this phase.
        time_s: of all calls; what the ops add to the step, so that they can be added up.
        flops: of all calls; a multiply-add is two.
        num_bytes: that all calls read and write.
        bound_by: why it does not end sooner: "matrix", "HBM", ...
        phase: of the step.
        layer: path of the module, "network.backbone.stem.0".
        line: of the user's code, "fsdtrain/models/lift.py:41".
        start_s: of the first call, from the step's start.
        alone_s: of all calls, each by itself; None: as `time_s`, for nothing overlaps.
        utilisation: share of the machine's peak matrix rate by itself, 0 to 1.
        roofline_s: the least time that its work and traffic allow on the whole machine; no more
            than it takes by itself.
        bytes_by_level: traffic over each level of the machine, by the names of
            `Rooflines.bytes_per_s` where a roof belongs to the level.
        sram_peak_bytes: the most that lies in one node's memory while it runs.
        energy_j: of all calls, without idle power.
        explanation: why it was placed and tiled as it was; a sentence each.
    """

    name: str
    shapes: str
    dtype: str
    num_calls: int
    time_s: float
    flops: int | None
    num_bytes: int | None
    bound_by: str | None
    phase: Phase | None = None
    layer: str | None = None
    line: str | None = None
    start_s: float | None = None
    alone_s: float | None = None
    utilisation: float | None = None
    roofline_s: float | None = None
    bytes_by_level: Mapping[str, float] = field(default_factory=dict)
    sram_peak_bytes: int | None = None
    energy_j: float | None = None
    explanation: tuple[str, ...] = ()

    @property
    def alone(self) -> float:
        """Seconds of all calls, each by itself."""
        return self.time_s if self.alone_s is None else self.alone_s


@dataclass(frozen=True, kw_only=True)
class TimelineEvent:
    """Something that kept a resource busy, from the step's start; a resource is a track."""

    resource: str
    name: str
    start_s: float
    end_s: float


@dataclass(frozen=True, kw_only=True)
class MapLevel:
    """Parts that a machine's grid is made of: "die", `rows` x `columns` of its smallest places."""

    name: str
    rows: int
    columns: int


@dataclass(frozen=True, kw_only=True)
class MapSlices:
    """A heat map over the step, coarsely: a byte a place and slice of time.

    Args:
        edges_s: of the slices, from the step's start; one more than there are slices.
        top: the value that 254 stands for; 0 is 0, and 255 is where nothing is.
        cells: of every slice, row by row.
    """

    edges_s: tuple[float, ...]
    top: float
    cells: tuple[bytes, ...]


@dataclass(frozen=True, kw_only=True)
class HeatMap:
    """One quantity over the grid of a machine; row 0 is north. None: nothing is there.

    Args:
        title: what it is.
        unit: of the values; "share" is of 1.
        rows: of equal length.
        group: (rows, columns) of the parts that the grid is made of, such as dies; None: of none.
        levels: the parts by name, the smallest first; the place itself among them.
        slices: the same over the step; None: not known.
    """

    title: str
    unit: str
    rows: tuple[tuple[float | None, ...], ...]
    group: tuple[int, int] | None = None
    levels: tuple[MapLevel, ...] = ()
    slices: MapSlices | None = None


@dataclass(frozen=True, kw_only=True)
class Rooflines:
    """What the whole machine can do at best.

    Args:
        flops_per_s: peak rate of the matrix units by number format.
        bytes_per_s: bandwidth by level, as `OpProfile.bytes_by_level` counts.
    """

    flops_per_s: Mapping[str, float]
    bytes_per_s: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class Assumption:
    """A figure of the machine that the result rests on, and how much it matters.

    Args:
        name: of the knob, "die_crossing_ns".
        value: in `unit`.
        unit: in words.
        source: where the value is from.
        confidence: how far to trust it: "stated", "assumed", ...
        low: with `high` the range within which the truth is thought to lie; None: not judged.
        high: see `low`.
        step_time_at_low_s: with this figure at `low` and all others as they are.
        step_time_at_high_s: see `step_time_at_low_s`.
    """

    name: str
    value: float
    unit: str
    source: str
    confidence: str
    low: float | None = None
    high: float | None = None
    step_time_at_low_s: float | None = None
    step_time_at_high_s: float | None = None


@dataclass(frozen=True, kw_only=True)
class ScaleRow:
    """The same training on more of the machine.

    Args:
        machine: in words, "d1_tile x 6".
        num_replicas: of the model, each with a batch of its own.
        placement: in words, "data parallel over 6 tiles".
        num_samples: of one step over all replicas.
        step_time_s: with the exchange of gradients.
        all_reduce_s: of the gradients, by itself.
        exposed_s: of the exchange, what is not hidden behind the backward pass.
        efficiency: samples a second for each replica, as a share of those of one alone.
        energy_j: of one step.
    """

    machine: str
    num_replicas: int
    placement: str
    num_samples: int
    step_time_s: float
    all_reduce_s: float | None = None
    exposed_s: float | None = None
    efficiency: float | None = None
    energy_j: float | None = None


@dataclass(frozen=True, kw_only=True)
class ScaleProfile:
    """How the step scales, from the smallest machine to the largest; `note` says what is shared."""

    rows: tuple[ScaleRow, ...]
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class MemoryUse:
    """The most that one memory holds at a time: "SRAM of a node", "HBM"."""

    name: str
    peak_bytes: int
    capacity_bytes: int | None = None


@dataclass(frozen=True, kw_only=True)
class StepProfile:
    """One training step (forward, loss, backward, optimiser). All figures have one origin.

    Args:
        backend: its name.
        device: in words.
        origin: of every figure here.
        step_time_s: from the start to the last weight written.
        ops: the slowest first.
        flops: of the step, as torch's FlopCounterMode counts.
        peak_flops_per_s: of the whole machine in the format that its matrix products have.
        roofline_s: the least time for the whole step on this machine.
        energy_j: of one step, with idle power.
        power_limit_watts: of the machine.
        memory: high-water marks.
        busy_s: for how long each resource was busy.
        data_wait_s: of the step, for its batch, by the rate of the loader by itself.
        timeline: what kept them busy, and when.
        sram_over_time: (seconds, bytes in the fullest node) at every change.
        sram_capacity_bytes: of a node.
        heat_maps: over the machine's grid.
        rooflines: of the machine.
        assumptions: what the result rests on.
        scale: on more machines.
        notes: what a reader must know: what was spilled, what does not fit, what would make it fit.
        validation: of a model: what is known of its error, in words.
    """

    backend: str
    device: str
    origin: Origin
    step_time_s: float
    ops: tuple[OpProfile, ...]
    flops: float | None = None
    peak_flops_per_s: float | None = None
    roofline_s: float | None = None
    energy_j: float | None = None
    power_limit_watts: float | None = None
    memory: tuple[MemoryUse, ...] = ()
    busy_s: Mapping[str, float] = field(default_factory=dict)
    data_wait_s: float | None = None
    timeline: tuple[TimelineEvent, ...] = ()
    sram_over_time: tuple[tuple[float, float], ...] = ()
    sram_capacity_bytes: int | None = None
    heat_maps: tuple[HeatMap, ...] = ()
    rooflines: Rooflines | None = None
    assumptions: tuple[Assumption, ...] = ()
    scale: ScaleProfile | None = None
    notes: tuple[str, ...] = ()
    validation: str = ""

    @property
    def utilisation(self) -> float | None:
        """Share of the peak rate that the whole step reaches."""
        if self.flops is None or not self.peak_flops_per_s or not self.step_time_s:
            return None
        return self.flops / self.step_time_s / self.peak_flops_per_s
