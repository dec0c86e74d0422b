"""How often a node loads its operands while it steps over its share of a kernel, and into how much.

The steps are a nest of counts, the outermost first (the order of `Mapping.steps`). An operand that
does not run over the innermost loops of the nest stays from step to step; one that does is loaded
again for every step of the loops further out, whether it runs over those or not, unless it is held
whole. Which are held follows from the room there is, so that the search for steps and the timing
of what it found agree without a word between them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import prod

from fsdtrain_dojo.timing.kernel_work import Operand, Sizes, Work, step_sizes
from fsdtrain_dojo.timing.node_rates import SUM_BYTES

DOUBLE = 2  # one is filled or emptied while the other is used


@dataclass(frozen=True, kw_only=True)
class Visits:
    """How one operand is loaded, in pieces.

    Args:
        pieces: that it is divided into.
        loads: of pieces, by level: loads[j] up to the end of the first step of the j outermost
            loops; loads[0] is all of them, the last one the first step of all.
    """

    pieces: int
    loads: tuple[int, ...]


_Both = tuple[Visits, Visits]


@dataclass(frozen=True, kw_only=True)
class StepPlan:
    """All operands over the steps of one node.

    Args:
        counts: of steps, the outermost first; empty: one step.
        reads: in the order of `Work.reads`.
        write_pieces: of each result, in the order of `Work.writes`.
        num_bytes: of buffers and sums.
        buffers: of each operand: with one, steps do not overlap with their transfers.
    """

    counts: tuple[int, ...]
    reads: tuple[Visits, ...]
    write_pieces: tuple[int, ...]
    num_bytes: int
    buffers: int = DOUBLE

    @property
    def num_steps(self) -> int:
        return prod(self.counts)


def plan_steps(
    work: Work,
    sizes: Sizes,
    steps: Mapping[int, int],
    *,
    room_bytes: float,
    local_reads: Sequence[bool],
    local_writes: Sequence[bool],
    is_partial: bool,
    keeps_sums: bool,
    buffers: int = DOUBLE,
) -> StepPlan:
    """What a node loads, and the buffers for it.

    Args:
        work: the kernel.
        sizes: of the node's range of every loop.
        steps: loop -> count, the outermost first.
        room_bytes: for buffers; operands that pay most are held whole while there is some.
        local_reads: which operands lie in the node's memory already, and need no buffer.
        local_writes: which results are written in their place.
        is_partial: whether results are sums of a part of the depth, which other nodes finish.
        keeps_sums: whether the unit keeps sums between steps over the depth.
        buffers: of every operand that is loaded in pieces: 2, or 1 where there is no more room.
    """
    loops = [loop for loop, count in steps.items() if count > 1]
    counts = tuple(steps[loop] for loop in loops)
    block = step_sizes(sizes, steps)
    both = [_visits(loops, counts, each) for each in work.reads]
    found = [streamed for streamed, _ in both]
    num_bytes = 0.0
    savings = []
    for number, (operand, visits) in enumerate(zip(work.reads, found, strict=True)):
        if local_reads[number]:
            continue
        piece = operand.num_bytes(block)
        buffer = piece * (buffers if visits.pieces > 1 else 1)
        num_bytes += buffer
        again = visits.loads[0] - visits.pieces
        if again:
            savings.append((-again * piece, number, operand.num_bytes(sizes) - buffer))
    pieces = []
    is_deep = any(loop in work.reductions for loop in loops)
    for number, operand in enumerate(work.writes):
        count = prod(c for loop, c in zip(loops, counts, strict=True) if loop in operand.loops)
        pieces.append(count)
        num_bytes += _write_bytes(
            operand,
            block,
            buffers=0 if local_writes[number] else buffers if count > 1 else 1,
            is_partial=is_partial,
            sums=is_deep and not keeps_sums,
        )
    for _, number, more in sorted(savings):
        if more <= 0 or num_bytes + more <= room_bytes:
            num_bytes += more
            found[number] = both[number][1]
    return StepPlan(
        counts=counts,
        reads=tuple(found),
        write_pieces=tuple(pieces),
        num_bytes=-int(-num_bytes // 1),
        buffers=buffers,
    )


def _write_bytes(
    operand: Operand, block: Sizes, *, buffers: int, is_partial: bool, sums: bool
) -> float:
    num_elements = operand.num_bytes(block) / operand.element_bytes
    width = SUM_BYTES if is_partial else operand.element_bytes
    found = num_elements * width * buffers
    # Sums need a place of their own where the result's is narrower, or is another node's.
    if sums and width < SUM_BYTES:
        found += num_elements * SUM_BYTES
    return found


def _visits(loops: Sequence[int], counts: tuple[int, ...], operand: Operand) -> _Both:
    return _count_visits(tuple(loop in operand.loops for loop in loops), counts)


@lru_cache(maxsize=65536)
def _count_visits(own: tuple[bool, ...], counts: tuple[int, ...]) -> _Both:
    """Streamed, and held; `own`: which loops of the nest the operand runs over."""
    streamed, held = [], []
    for level in range(len(counts) + 1):
        inner = range(level, len(counts))
        last = max((index for index in inner if own[index]), default=level - 1)
        streamed.append(prod(counts[level : last + 1]))
        held.append(prod(counts[index] for index in inner if own[index]))
    return (
        Visits(pieces=held[0], loads=tuple(streamed)),
        Visits(pieces=held[0], loads=tuple(held)),
    )
