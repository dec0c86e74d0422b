"""Write trace.json: a step's timeline for ui.perfetto.dev or chrome://tracing.

The Trace Event Format of Chrome: a track for each resource, and a counter for node memory. It does
not know how a timeline was found.
"""

import os
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from fsdtrain.errors import UserError
from fsdtrain.report.amounts import in_seconds
from fsdtrain.step_profile import StepProfile, TimelineEvent

MAX_BYTES = 50_000_000  # what Perfetto opens without delay
MAX_COUNTER_POINTS = 20_000
MICROSECONDS = 1e6
SAME_TIME_S = 1e-12  # ends and starts that are closer are sums of the same terms
NOTE_BYTES = 400  # of the sentence on what was left out

Track = tuple[str, int]  # a resource, and which of its tracks


@dataclass(frozen=True, kw_only=True)
class WrittenTrace:
    """What was written, and a sentence on what was left out; "" if nothing was."""

    path: Path
    num_events: int
    left_out: str


@dataclass(frozen=True, kw_only=True)
class TracedProcess:
    """One profile of a trace; a process of the trace has its own tracks.

    Args:
        profile: its timeline is shown.
        name: before the profile's backend, origin and device; "" for none.
    """

    profile: StepProfile
    name: str = ""


def write_trace(profile: StepProfile, path: Path, *, max_bytes: int = MAX_BYTES) -> WrittenTrace:
    """Write the timeline; if it is too long for `max_bytes`, without its shortest events.

    Raises:
        UserError: the file cannot be written.
    """
    return write_processes((TracedProcess(profile=profile),), path, max_bytes=max_bytes)


def write_processes(
    processes: Sequence[TracedProcess], path: Path, *, max_bytes: int = MAX_BYTES
) -> WrittenTrace:
    """Write the timelines of several profiles; what is too long loses its shortest events.

    Each has an equal part of `max_bytes`, and what the others leave of theirs: a machine whose step
    is short would otherwise lose all its events to one whose step is long.

    Raises:
        UserError: the file cannot be written.
    """
    frame = msgspec.json.encode(
        {"traceEvents": [], "displayTimeUnit": "ns", "otherData": _header(processes)}
    )
    # The list stays open at its end: `"traceEvents":[` and the rest.
    head, tail = frame.split(b"[]", 1)
    encoders = [_Encoder(process, number) for number, process in enumerate(processes, start=1)]
    fixed = [line for encoder in encoders for line in encoder.fixed]
    budget = max_bytes - len(head) - len(tail) - NOTE_BYTES - sum(len(line) + 2 for line in fixed)
    events, left_out = _share(encoders, budget)
    temporary = path.with_suffix(".json.partial")
    try:
        with temporary.open("wb") as file:
            file.write(head + b"[\n" + b",\n".join([*fixed, *events]) + b"\n]")
            # Which is where a reader of the file itself looks for it.
            note = msgspec.json.encode({"left_out": left_out}) if left_out else b"null"
            file.write(tail.removesuffix(b"}") + b',"note":' + note + b"}\n")
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise UserError(f"cannot write {path}: {error.strerror}") from error
    return WrittenTrace(path=path, num_events=len(events), left_out=left_out)


def _header(processes: Sequence[TracedProcess]) -> dict[str, Any]:
    found = [
        {
            "backend": process.profile.backend,
            "device": process.profile.device,
            "origin": process.profile.origin,
        }
        for process in processes
    ]
    if len(found) == 1:
        return found[0]
    return {process.name: each for process, each in zip(processes, found, strict=True)}


class _Encoder:
    """The lines of one process, its names and its events."""

    def __init__(self, process: TracedProcess, number: int) -> None:
        placed = _place(process.profile.timeline)
        threads = _number(placed)
        self.name = process.name
        self.fixed = [
            msgspec.json.encode({**each, "pid": number})
            for each in (*_names(process, threads), *_counter(process.profile))
        ]
        self.lengths = [event.end_s - event.start_s for _, event in placed]
        self.lines = [
            msgspec.json.encode(_complete(event, number, threads[track])) for track, event in placed
        ]
        self.num_bytes = sum(len(line) + 2 for line in self.lines)


def _share(encoders: Sequence[_Encoder], budget: int) -> tuple[list[bytes], str]:
    """The events of all, and what was left out."""
    events: dict[int, list[bytes]] = {}
    notes: dict[int, str] = {}
    # The smallest first: what it leaves goes to the others.
    order = sorted(range(len(encoders)), key=lambda at: encoders[at].num_bytes)
    for rank, at in enumerate(order):
        events[at], notes[at] = _fit(encoders[at], budget // (len(order) - rank))
        budget -= sum(len(line) + 2 for line in events[at])
    said = [
        f"{encoders[at].name}: {note}" if encoders[at].name else note
        for at, note in sorted(notes.items())
        if note
    ]
    return [line for at in sorted(events) for line in events[at]], "; ".join(said)


def _place(timeline: Sequence[TimelineEvent]) -> list[tuple[Track, TimelineEvent]]:
    """Every event with its track, in the order of their starts; what holds others comes first.

    Events of one track may lie within each other and not overlap otherwise: of a resource that does
    several things at a time, each further one has a track of its own.
    """
    lanes: dict[str, list[list[float]]] = defaultdict(list)
    return [
        ((event.resource, _choose_lane(lanes[event.resource], event)), event)
        for event in sorted(timeline, key=lambda each: (each.start_s, -each.end_s))
    ]


def _choose_lane(lanes: list[list[float]], event: TimelineEvent) -> int:
    """The first that is free, or whose event holds this one; `lanes` are ends still to come."""
    for number, ends in enumerate(lanes):
        while ends and ends[-1] <= event.start_s + SAME_TIME_S:
            ends.pop()
        if not ends or event.end_s <= ends[-1] + SAME_TIME_S:
            ends.append(event.end_s)
            return number
    lanes.append([event.end_s])
    return len(lanes) - 1


def _number(placed: Sequence[tuple[Track, TimelineEvent]]) -> dict[Track, int]:
    """Resources in the order of their first events, the tracks of each together."""
    resources = list(dict.fromkeys(resource for (resource, _), _ in placed))
    tracks = sorted(
        {track for track, _ in placed}, key=lambda each: (resources.index(each[0]), each[1])
    )
    return {track: number + 1 for number, track in enumerate(tracks)}


def _fit(encoder: _Encoder, budget: int) -> tuple[list[bytes], str]:
    """The encoded events in the order of their starts, and what was left out."""
    lines, lengths = encoder.lines, encoder.lengths
    if encoder.num_bytes <= budget:
        return lines, ""
    longest = sorted(range(len(lines)), key=lambda at: -lengths[at])
    kept: list[int] = []
    for at in longest:
        budget -= len(lines[at]) + 2
        if budget < 0:
            break
        kept.append(at)
    text = (
        f"{len(lines) - len(kept):,} of {len(lines):,} events, none longer than "
        f"{in_seconds(lengths[longest[len(kept)]])}, to keep the file small"
    )
    return [lines[at] for at in sorted(kept)], text


def _complete(event: TimelineEvent, process: int, thread: int) -> dict[str, Any]:
    return {
        "name": event.name,
        "ph": "X",
        "pid": process,
        "tid": thread,
        "ts": round(event.start_s * MICROSECONDS, 4),
        "dur": round(max(event.end_s - event.start_s, 0.0) * MICROSECONDS, 4),
    }


def _names(process: TracedProcess, threads: Mapping[Track, int]) -> Iterator[dict[str, Any]]:
    profile = process.profile
    name = f"{profile.backend}, {profile.origin}: {profile.device}"
    title = f"{process.name}: {name}" if process.name else name
    yield {"name": "process_name", "ph": "M", "args": {"name": title}}
    for (resource, lane), number in threads.items():
        where = {"ph": "M", "tid": number}
        name = resource if lane == 0 else f"{resource} ({lane + 1})"
        yield {"name": "thread_name", **where, "args": {"name": name}}
        yield {"name": "thread_sort_index", **where, "args": {"sort_index": number}}


def _counter(profile: StepProfile) -> Iterator[dict[str, Any]]:
    """Memory of the fullest node; of many points, the highest of each stretch."""
    points = profile.sram_over_time
    stride = -(-len(points) // MAX_COUNTER_POINTS) or 1
    for first in range(0, len(points), stride):
        time_s, num_bytes = max(points[first : first + stride], key=lambda point: point[1])
        yield {
            "name": "SRAM of the fullest node",
            "ph": "C",
            "ts": round(time_s * MICROSECONDS, 4),
            "args": {"bytes": num_bytes},
        }
