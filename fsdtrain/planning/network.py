"""How long an all-reduce takes on a network of levels, by alpha-beta models of its algorithms.

A message of m bytes takes alpha + m / bandwidth; every device sends and receives at a time, at the
level's rate; adding up costs `reduce_s_per_byte`. Sums over p devices of n bytes each:

    ring               2 (p - 1) alpha + 2 (p - 1) / p n beta + (p - 1) / p n gamma
                       Patarasuk and Yuan 2009: no algorithm sends fewer bytes
    halving-doubling   2 log2(p) alpha, and bytes and adds as the ring; where p is no power of two,
                       the devices over it hand theirs in and get the sum back: 2 alpha + 2 n beta
                       + n gamma more. Rabenseifner 2004; Thakur, Rabenseifner, Gropp 2005
    tree               2 ceil(log2 p) alpha + 2 n beta + n gamma: two binary trees, each for half
                       of the bytes, so that all links carry data; chunks follow each other, so that
                       alpha counts once a hop. Sanders, Speck, Traeff 2009; NCCL 2.4 and later

Levels are done as NCCL and Horovod do: groups of the inner level scatter-reduce, each device then
sums its part with its likes in other groups, and the groups gather. Every time here is MODELLED. It
does not know what is summed, nor when; that is bucket_replay.py.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

Algorithm = Literal["ring", "halving-doubling", "tree"]


@dataclass(frozen=True, kw_only=True)
class Level:
    """A network that joins groups of the level before it, or single devices at the first.

    Args:
        name: "NVLink".
        num_devices: of a group that it joins, those of the levels inside it counted; None: as many
            as there are.
        alpha_s: of a message between two neighbours, without its bytes.
        bytes_per_s: that each device sends, and receives at the same time, when all do.
        reduce_s_per_byte: to add up a byte that came.
        call_s: of an all-reduce before its first message.
    """

    name: str
    num_devices: int | None
    alpha_s: float
    bytes_per_s: float
    reduce_s_per_byte: float = 0.0
    call_s: float = 0.0

    def __post_init__(self) -> None:
        assert self.num_devices is None or self.num_devices >= 1
        assert self.alpha_s >= 0
        assert self.bytes_per_s > 0
        assert self.reduce_s_per_byte >= 0
        assert self.call_s >= 0


@dataclass(frozen=True, kw_only=True)
class LevelTime:
    """What one level adds to an all-reduce.

    Args:
        level: its name.
        algorithm: that was the quickest.
        group_size: members of a group.
        num_bytes: that each member sums at this level.
        time_s: all messages there.
    """

    level: str
    algorithm: Algorithm
    group_size: int
    num_bytes: float
    time_s: float


@dataclass(frozen=True, kw_only=True)
class AllReduce:
    """One all-reduce; levels where there is nothing to sum are left out."""

    time_s: float
    levels: tuple[LevelTime, ...]

    @property
    def how(self) -> str:
        """In words: "ring of 8 over NVLink, tree of 512 over InfiniBand"."""
        return ", ".join(
            f"{each.algorithm} of {each.group_size} over {each.level}" for each in self.levels
        )


def all_reduce(
    levels: Sequence[Level],
    num_devices: int,
    num_bytes: float,
    *,
    algorithms: Sequence[Algorithm] = ("ring", "halving-doubling", "tree"),
) -> AllReduce:
    """The quickest hierarchical all-reduce; the last group of a level may be only partly filled.

    Only the outermost level can use a tree: it leaves the whole sum at a device, not a part.

    Args:
        levels: from the inside out; the last one joins all.
        num_devices: that sum.
        num_bytes: that each of them has.
        algorithms: to choose from.
    """
    parts: list[LevelTime] = []
    rest = num_bytes
    seconds = 0.0
    sizes = group_sizes(levels, num_devices)
    last = max((at for at, size in enumerate(sizes) if size > 1), default=0)
    for at, (level, size) in enumerate(zip(levels, sizes, strict=True)):
        if size == 1:
            continue
        times = {
            each: TIMES[each](level, size, rest)
            for each in algorithms
            if at == last or _leaves_parts(each, size)
        }
        assert times, f"none of {algorithms} can scatter over {size} devices of {level.name}"
        quickest = min(times, key=times.__getitem__)
        part = LevelTime(
            level=level.name,
            algorithm=quickest,
            group_size=size,
            num_bytes=rest,
            time_s=times[quickest],
        )
        parts.append(part)
        seconds += part.time_s + level.call_s
        rest /= size
    return AllReduce(time_s=seconds, levels=tuple(parts))


def group_sizes(levels: Sequence[Level], num_devices: int) -> tuple[int, ...]:
    """How many members a group of each level has when so many devices sum.

    Args:
        levels: from the inside out; each joins more devices than the one before it.
        num_devices: all that take part.
    """
    assert num_devices >= 1
    assert levels[-1].num_devices is None or levels[-1].num_devices >= num_devices
    sizes: list[int] = []
    inside = 1
    for level in levels:
        whole = num_devices if level.num_devices is None else level.num_devices
        size = max(1, -(-min(whole, num_devices) // inside))
        sizes.append(size)
        inside *= size
    return tuple(sizes)


def ring_s(level: Level, size: int, num_bytes: float) -> float:
    """Seconds of a ring: scatter-reduce, then gather, in 2 (size - 1) steps of 1 / size each."""
    share = (size - 1) / size * num_bytes
    return (
        2 * (size - 1) * level.alpha_s
        + 2 * share / level.bytes_per_s
        + share * level.reduce_s_per_byte
    )


def halving_doubling_s(level: Level, size: int, num_bytes: float) -> float:
    """Seconds of recursive vector halving with distance doubling, and back."""
    power = 1 << (size.bit_length() - 1)
    share = (power - 1) / power * num_bytes
    seconds = (
        2 * (power.bit_length() - 1) * level.alpha_s
        + 2 * share / level.bytes_per_s
        + share * level.reduce_s_per_byte
    )
    if power == size:
        return seconds
    hand_in = level.alpha_s + num_bytes / level.bytes_per_s
    return seconds + 2 * hand_in + num_bytes * level.reduce_s_per_byte


def tree_s(level: Level, size: int, num_bytes: float) -> float:
    """Seconds of two binary trees, chunks so small that filling them costs no time by itself."""
    if size == 1:
        return 0.0
    return (
        2 * math.ceil(math.log2(size)) * level.alpha_s
        + 2 * num_bytes / level.bytes_per_s
        + num_bytes * level.reduce_s_per_byte
    )


TIMES: dict[Algorithm, Callable[[Level, int, float], float]] = {
    "ring": ring_s,
    "halving-doubling": halving_doubling_s,
    "tree": tree_s,
}


def _leaves_parts(algorithm: Algorithm, size: int) -> bool:
    """Whether its first half leaves an equal part of the sum at each device, as levels need."""
    return algorithm == "ring" or (algorithm == "halving-doubling" and size & (size - 1) == 0)
