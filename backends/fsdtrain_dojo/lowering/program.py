"""The tile program: every kernel placed, tiled and scheduled, every transfer explicit.

What `verify` checks, what spatial execution runs and what timing schedules. Sizes are in bytes,
the order of steps is the order of the program. Knows no clock: when a step runs is `timing`'s.
"""

from collections.abc import Mapping as Dict
from dataclasses import dataclass, field
from enum import Enum

from fsdtrain_dojo.lowering.kernel import Kernel, KernelGraph
from fsdtrain_dojo.lowering.mapping import Boxes, Grid, Layout, Mapping


class Pattern(Enum):
    """What a transfer looks like on the mesh; for people, and for the choice of a formula."""

    LOCAL = "local"  # every node has what it needs
    MULTICAST = "multicast"  # a node's box, whole, to several others
    HALO = "halo exchange"  # borders from neighbours
    SHIFT = "shift"  # whole boxes, one to one, along an axis
    SCATTER = "scatter/gather"  # pieces of boxes from many to many: another layout
    HBM_LOAD = "HBM load"
    HBM_STORE = "HBM store"
    REDUCE = "reduce"  # partial results to one node of each group
    REDUCE_SCATTER = "reduce-scatter"  # to all of them, a piece each
    ALL_REDUCE = "all-reduce"  # to all of them, whole


@dataclass(frozen=True, kw_only=True)
class Transfer:
    """One value on its way between its layout and the boxes that nodes work on.

    Args:
        value: name.
        pattern: see `Pattern`.
        source: where it is; for stores, None: what the nodes have computed, `boxes` of it each.
        boxes: what every node needs (loads) or has computed, perhaps in part (stores).
        target: where it shall be (stores); None for loads.
    """

    value: str
    pattern: Pattern
    boxes: Boxes
    source: Layout | None = None
    target: Layout | None = None


@dataclass(frozen=True, kw_only=True)
class Step:
    """One kernel in its place.

    Args:
        kernel: what is computed.
        mapping: over nodes and time.
        loads: one for each read, in its order, then one for each read of the epilogue that is not
            the kernel's own result.
        stores: one for each of `finish.settled`: the writes that are not hidden, then those of the
            epilogue; where a reduction is divided, for every write, hidden or not.
        working_bytes: of buffers and accumulators at the fullest node, beside what layouts hold.
        buffers: 2 where the loads of a step of time go on while the one before is computed.
        is_continued: whether it goes on with the op of the step before without a start of its
            own: nodes at a switch hold what several kernels of one op work on.
        is_chained: whether it takes turns with the other kernels of its chain; then the steps of
            `mapping` are theirs as well, and `working_bytes` those of all of them.
        inside: numbers of `loads` that bring nothing: a kernel of the chain before this one has
            made the block, or loaded it.
        why: the mappings that were weighed, best first, in words with their seconds.
    """

    kernel: Kernel
    mapping: Mapping
    loads: tuple[Transfer, ...]
    stores: tuple[Transfer, ...]
    working_bytes: int
    buffers: int = 1
    is_continued: bool = False
    is_chained: bool = False
    inside: frozenset[int] = frozenset()
    why: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Spill:
    """A value that was moved out to make room.

    Args:
        value: name.
        num_bytes: of all nodes.
        out_before: number of the step before which it goes out; -1: it starts out there.
        back_before: number of the step before which it comes back; None: reads come from HBM.
    """

    value: str
    num_bytes: int
    out_before: int
    back_before: int | None


@dataclass(frozen=True, kw_only=True)
class TileProgram:
    """A lowered step.

    Args:
        graph: the kernels and values it was made of.
        grid: rows and columns of nodes that the mappings speak of.
        initial: layout of every value that is there when the step begins (inputs, weights, states).
        steps: in order.
        last_use: value -> number of the last step that needs it; values that outlive the step are
            left out.
        sram_bytes: at the fullest node, during each step: layouts and working bytes.
        spills: what did not fit.
    """

    graph: KernelGraph
    grid: Grid
    initial: Dict[str, Layout]
    steps: tuple[Step, ...]
    last_use: Dict[str, int] = field(default_factory=dict)
    sram_bytes: tuple[int, ...] = ()
    spills: tuple[Spill, ...] = ()
