"""Write trace.json: a step's timeline for ui.perfetto.dev or chrome://tracing.

The Trace Event Format of Chrome: a track for each resource, and a counter for node memory. It does
not know how a timeline was found.
"""

import os
from collections.abc import Iterator, Sequence
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
PROCESS = 1


@dataclass(frozen=True, kw_only=True)
class WrittenTrace:
    """What was written, and a sentence on what was left out; "" if nothing was."""

    path: Path
    num_events: int
    left_out: str


def write_trace(profile: StepProfile, path: Path, *, max_bytes: int = MAX_BYTES) -> WrittenTrace:
    """Write the timeline; if it is too long for `max_bytes`, without its shortest events.

    Raises:
        UserError: the file cannot be written.
    """
    frame = msgspec.json.encode(
        {
            "traceEvents": [],
            "displayTimeUnit": "ns",
            "otherData": {
                "backend": profile.backend,
                "device": profile.device,
                "origin": profile.origin,
            },
        }
    )
    # The list stays open at its end: `"traceEvents":[` and the rest.
    head, tail = frame.split(b"[]", 1)
    resources = list(dict.fromkeys(event.resource for event in profile.timeline))
    threads = {resource: number + 1 for number, resource in enumerate(resources)}
    fixed = [msgspec.json.encode(each) for each in (*_names(profile, threads), *_counter(profile))]
    budget = max_bytes - len(head) - len(tail) - 200 - sum(len(line) + 2 for line in fixed)
    events, left_out = _fit(profile.timeline, threads, budget)
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


def _fit(
    timeline: Sequence[TimelineEvent], threads: dict[str, int], budget: int
) -> tuple[list[bytes], str]:
    """The encoded events in the order of their starts, and what was left out."""
    # An event that holds others comes before them.
    ordered = sorted(timeline, key=lambda event: (event.start_s, -event.end_s))
    lines = [msgspec.json.encode(_complete(event, threads)) for event in ordered]
    if sum(len(line) + 2 for line in lines) <= budget:
        return lines, ""
    longest = sorted(range(len(ordered)), key=lambda at: ordered[at].start_s - ordered[at].end_s)
    kept: list[int] = []
    for at in longest:
        budget -= len(lines[at]) + 2
        if budget < 0:
            break
        kept.append(at)
    num_left_out = len(lines) - len(kept)
    longest_out = ordered[longest[len(kept)]]
    text = (
        f"{num_left_out:,} of {len(lines):,} events, none longer than "
        f"{in_seconds(longest_out.end_s - longest_out.start_s)}, to keep the file small"
    )
    return [lines[at] for at in sorted(kept)], text


def _complete(event: TimelineEvent, threads: dict[str, int]) -> dict[str, Any]:
    return {
        "name": event.name,
        "ph": "X",
        "pid": PROCESS,
        "tid": threads[event.resource],
        "ts": round(event.start_s * MICROSECONDS, 4),
        "dur": round(max(event.end_s - event.start_s, 0.0) * MICROSECONDS, 4),
    }


def _names(profile: StepProfile, threads: dict[str, int]) -> Iterator[dict[str, Any]]:
    process = f"{profile.backend}, {profile.origin}: {profile.device}"
    yield {"name": "process_name", "ph": "M", "pid": PROCESS, "args": {"name": process}}
    for resource, number in threads.items():
        where = {"ph": "M", "pid": PROCESS, "tid": number}
        yield {"name": "thread_name", **where, "args": {"name": resource}}
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
            "pid": PROCESS,
            "ts": round(time_s * MICROSECONDS, 4),
            "args": {"bytes": num_bytes},
        }
