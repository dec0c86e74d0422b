import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fsdtrain.planning.network import (
    Level,
    all_reduce,
    group_sizes,
    halving_doubling_s,
    ring_s,
    tree_s,
)

NVLINK = Level(name="NVLink", num_devices=8, alpha_s=3e-6, bytes_per_s=370e9)
INFINIBAND = Level(name="InfiniBand", num_devices=None, alpha_s=8e-6, bytes_per_s=45e9)
FLAT = Level(
    name="flat", num_devices=None, alpha_s=7e-6, bytes_per_s=2e9, reduce_s_per_byte=1.3e-10
)


class Machine:
    """Devices that hold vectors, send in rounds, and look at the clock after each."""

    def __init__(self, level: Level, size: int, num_elements: int) -> None:
        rng = np.random.default_rng(size)
        self.level = level
        self.held = rng.integers(-50, 50, (size, num_elements)).astype(np.float64)
        self.expected = self.held.sum(axis=0)
        self.seconds = 0.0

    def round(self, messages: list[tuple[int, int, slice, bool]]) -> None:
        """All messages (from, to, elements, whether they are added) leave at once."""
        assert len({each[0] for each in messages}) == len(messages), "one port to send"
        assert len({each[1] for each in messages}) == len(messages), "one port to receive"
        sent = [self.held[source, part].copy() for source, _, part, _ in messages]
        longest = 0.0
        for values, (_, target, part, adds) in zip(sent, messages, strict=True):
            self.held[target, part] = values + (self.held[target, part] if adds else 0.0)
            num_bytes = values.size * 8
            took = self.level.alpha_s + num_bytes / self.level.bytes_per_s
            longest = max(longest, took + adds * num_bytes * self.level.reduce_s_per_byte)
        self.seconds += longest

    def check(self) -> None:
        np.testing.assert_array_equal(self.held, np.broadcast_to(self.expected, self.held.shape))


def play_ring(machine: Machine) -> None:
    size, count = machine.held.shape
    part = count // size
    for adds in (True, False):
        for step in range(size - 1):
            messages = []
            for rank in range(size):
                chunk = (rank - step + (0 if adds else 1)) % size
                where = slice(chunk * part, (chunk + 1) * part)
                messages.append((rank, (rank + 1) % size, where, adds))
            machine.round(messages)


def play_halving_doubling(machine: Machine) -> None:
    size, count = machine.held.shape
    power = 2 ** int(math.log2(size))
    everything = slice(0, count)
    late = range(power, size)
    if late:
        machine.round([(rank, rank - power, everything, True) for rank in late])
    owned = dict.fromkeys(range(power), (0, count))
    steps = []
    distance = 1
    while distance < power:
        messages, rests = [], {}
        for rank, (low, high) in owned.items():
            middle = (low + high) // 2
            keeps_low = not rank & distance
            keep, give = ((low, middle), (middle, high))[:: 1 if keeps_low else -1]
            messages.append((rank, rank ^ distance, slice(*give), True))
            rests[rank] = keep
        machine.round(messages)
        steps.append(rests)
        owned = rests
        distance *= 2
    for rests in reversed(steps):
        distance //= 2
        machine.round([(rank, rank ^ distance, slice(*rests[rank]), False) for rank in rests])
    if late:
        machine.round([(rank - power, rank, everything, False) for rank in late])


@pytest.mark.parametrize("size", [2, 3, 4, 7, 8])
def test_ring_takes_as_long_as_its_messages_one_by_one(size: int) -> None:
    machine = Machine(FLAT, size, 1000 * size)
    play_ring(machine)
    machine.check()
    assert ring_s(FLAT, size, 8000 * size) == pytest.approx(machine.seconds, rel=1e-12)


@pytest.mark.parametrize("size", [2, 3, 4, 6, 8, 13, 16])
def test_halving_doubling_takes_as_long_as_its_messages_one_by_one(size: int) -> None:
    machine = Machine(FLAT, size, 1600)
    play_halving_doubling(machine)
    machine.check()
    assert halving_doubling_s(FLAT, size, 12800) == pytest.approx(machine.seconds, rel=1e-12)


class Trees:
    """Two binary trees over the same devices; chunks go up and come down, in turn by tree.

    A port is busy for a chunk's bytes; a chunk arrives alpha later. Each port takes what is ready
    first. Adding costs nothing here.
    """

    def __init__(self, level: Level, size: int, num_bytes: float, num_chunks: int) -> None:
        self.alpha_s = level.alpha_s
        self.chunk_s = num_bytes / num_chunks / level.bytes_per_s
        one = {rank: self.parent(rank, size) for rank in range(size)}
        # the same tree over devices in the opposite order: its leaves are not those of the first
        other = {
            size - 1 - rank: None if parent is None else size - 1 - parent
            for rank, parent in one.items()
        }
        if size % 2:
            other = {
                (rank + 1) % size: None if parent is None else (parent + 1) % size
                for rank, parent in one.items()
            }
        self.parents = (one, other)
        self.size, self.num_chunks = size, num_chunks

    @staticmethod
    def parent(rank: int, size: int) -> int | None:
        """A tree in the order of the ranks: odd ones are inside, even ones are leaves."""
        bit = 1
        while rank and not rank & bit:
            bit *= 2
        if rank == 0:
            return None
        up = (rank ^ bit) | (bit * 2)
        return up if up < size else rank ^ bit

    def seconds(self) -> float:
        children = [
            {rank: [kid for kid, up in tree.items() if up == rank] for rank in tree}
            for tree in self.parents
        ]
        send_free = [0.0] * self.size
        receive_free = [0.0] * self.size
        waits = {}
        ready: list[tuple[float, int, int, int, str]] = []
        for chunk in range(self.num_chunks):
            tree = chunk % 2
            for rank, kids in children[tree].items():
                waits[chunk, rank] = len(kids)
                if not kids:
                    ready.append((0.0, chunk, rank, self.parents[tree][rank], "up"))
        last = 0.0
        while ready:
            best = min(
                ready,
                key=lambda each: (max(each[0], send_free[each[2]], receive_free[each[3]]), each),
            )
            ready.remove(best)
            since, chunk, rank, target, way = best
            start = max(since, send_free[rank], receive_free[target])
            send_free[rank] = receive_free[target] = start + self.chunk_s
            arrived = start + self.chunk_s + self.alpha_s
            last = max(last, arrived)
            tree = chunk % 2
            if way == "up":
                waits[chunk, target] -= 1
                if waits[chunk, target]:
                    continue
                parent = self.parents[tree][target]
                if parent is not None:
                    ready.append((arrived, chunk, target, parent, "up"))
                    continue
            for kid in children[tree][target]:
                ready.append((arrived, chunk, target, kid, "down"))
        return last


@pytest.mark.parametrize(("size", "num_bytes"), [(8, 4e6), (16, 1e6), (16, 2e4)])
def test_tree_is_near_what_two_trees_of_chunks_take(size: int, num_bytes: float) -> None:
    level = replace(FLAT, reduce_s_per_byte=0.0)
    played = Trees(level, size, num_bytes, 48).seconds()
    assert tree_s(level, size, num_bytes) == pytest.approx(played, rel=0.25)


# 60 M parameters in bf16; 370 GB/s inside 8 GPUs and 45 GB/s of each between the nodes.
@pytest.mark.parametrize(
    ("num_nodes", "algorithms", "milliseconds"),
    [
        (1, ("ring",), 0.61),
        (16, ("ring",), 1.5),
        (512, ("ring",), 9.5),
        (512, ("ring", "halving-doubling"), 1.4),
        (512, ("ring", "tree"), 1.4),
    ],
)
def test_anchors_of_nodes_of_eight(num_nodes, algorithms, milliseconds) -> None:
    found = all_reduce((NVLINK, INFINIBAND), 8 * num_nodes, 120e6, algorithms=algorithms)
    assert found.time_s * 1e3 == pytest.approx(milliseconds, rel=0.04)


def test_levels_say_what_they_did() -> None:
    found = all_reduce((NVLINK, INFINIBAND), 4096, 120e6, algorithms=("ring", "tree"))
    assert found.how == "ring of 8 over NVLink, tree of 512 over InfiniBand"
    assert [each.num_bytes for each in found.levels] == [120e6, 15e6]
    assert sum(each.time_s for each in found.levels) == pytest.approx(found.time_s)


@pytest.mark.parametrize(
    ("num_devices", "sizes"), [(1, (1, 1)), (5, (5, 1)), (8, (8, 1)), (9, (8, 2)), (80, (8, 10))]
)
def test_groups_are_filled_from_the_inside(num_devices: int, sizes: tuple[int, int]) -> None:
    assert group_sizes((NVLINK, INFINIBAND), num_devices) == sizes


def test_one_device_has_nothing_to_sum() -> None:
    assert all_reduce((NVLINK, INFINIBAND), 1, 120e6).time_s == 0.0


def test_a_call_costs_what_the_level_says() -> None:
    called = replace(FLAT, call_s=1e-3)
    more = all_reduce((called,), 4, 1e6).time_s - all_reduce((FLAT,), 4, 1e6).time_s
    assert more == pytest.approx(1e-3)


SIZES = st.integers(2, 3000)
BYTES = st.floats(1.0, 1e10)


@given(num_devices=SIZES, num_bytes=BYTES, factor=st.floats(1.0, 100.0))
def test_more_bandwidth_or_less_latency_is_never_slower(num_devices, num_bytes, factor) -> None:
    levels = (NVLINK, INFINIBAND)
    slow = all_reduce(levels, num_devices, num_bytes).time_s
    for at in (0, 1):
        for better in (
            replace(levels[at], bytes_per_s=levels[at].bytes_per_s * factor),
            replace(levels[at], alpha_s=levels[at].alpha_s / factor),
        ):
            changed = tuple(better if each is levels[at] else each for each in levels)
            assert all_reduce(changed, num_devices, num_bytes).time_s <= slow * (1 + 1e-12)
    assert all_reduce(levels, num_devices, num_bytes * factor).time_s >= slow * (1 - 1e-12)


@given(num_devices=SIZES, num_bytes=BYTES)
def test_nothing_beats_the_bound_of_bytes(num_devices, num_bytes) -> None:
    """Each device has to send 2 (p - 1) / p of its bytes (Patarasuk and Yuan 2009)."""
    least = 2 * (num_devices - 1) / num_devices * num_bytes / FLAT.bytes_per_s
    assert all_reduce((FLAT,), num_devices, num_bytes).time_s >= least


@given(num_devices=SIZES, num_bytes=BYTES)
def test_a_second_level_of_the_same_kind_costs_no_bytes(num_devices, num_bytes) -> None:
    """Scatter inside, sum across, gather inside: the bytes of one flat ring."""
    free = Level(name="free", num_devices=None, alpha_s=0.0, bytes_per_s=1e9)
    inner = replace(free, name="inner", num_devices=num_devices)
    two = all_reduce((inner, free), 7 * num_devices, num_bytes, algorithms=("ring",)).time_s
    assert two == pytest.approx(ring_s(free, 7 * num_devices, num_bytes))
