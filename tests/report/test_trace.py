"""trace.json: what Perfetto asks of the format, and a file that stays small."""

import json
from pathlib import Path
from typing import Any

import pytest

from fsdtrain.errors import UserError
from fsdtrain.report.trace import MAX_COUNTER_POINTS, write_trace
from fsdtrain.step_profile import StepProfile, TimelineEvent


def make_profile(*events: tuple[str, str, float, float], **fields: Any) -> StepProfile:
    timeline = tuple(
        TimelineEvent(resource=resource, name=name, start_s=start, end_s=end)
        for resource, name, start, end in events
    )
    return StepProfile(
        backend="dojo", device='a "tile"', origin="MODELLED", step_time_s=1.0, ops=(),
        timeline=timeline, **fields,
    )  # fmt: skip


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def of_kind(trace: Any, kind: str) -> list[Any]:
    return [event for event in trace["traceEvents"] if event["ph"] == kind]


def test_every_resource_has_a_track_with_its_name(tmp_path: Path) -> None:
    profile = make_profile(
        ("HBM", "load w", 2e-6, 3e-6), ("matrix", "conv1", 1e-6, 4e-6), ("HBM", "load x", 0, 1e-6)
    )
    written = write_trace(profile, tmp_path / "trace.json")
    assert (written.num_events, written.left_out) == (3, "")
    trace = read(written.path)
    names = {
        event["tid"]: event["args"]["name"]
        for event in of_kind(trace, "M")
        if event["name"] == "thread_name"
    }
    assert sorted(names.values()) == ["HBM", "matrix"]
    shown = [
        (names[event["tid"]], event["name"], event["ts"], event["dur"])
        for event in of_kind(trace, "X")
    ]
    assert shown == [
        ("HBM", "load x", 0.0, 1.0), ("matrix", "conv1", 1.0, 3.0), ("HBM", "load w", 2.0, 1.0),
    ]  # fmt: skip
    assert "MODELLED" in of_kind(trace, "M")[0]["args"]["name"]
    assert trace["otherData"]["origin"] == "MODELLED"
    assert trace["note"] is None
    assert {event["pid"] for event in trace["traceEvents"]} == {1}


def test_what_holds_another_comes_first(tmp_path: Path) -> None:
    profile = make_profile(("cpu", "inner", 0.0, 1.0), ("cpu", "outer", 0.0, 2.0))
    trace = read(write_trace(profile, tmp_path / "trace.json").path)
    assert [event["name"] for event in of_kind(trace, "X")] == ["outer", "inner"]


def test_what_overlaps_has_a_track_of_its_own(tmp_path: Path) -> None:
    profile = make_profile(
        ("link", "a", 0.0, 2.0), ("link", "b", 1.0, 3.0), ("link", "within b", 1.5, 2.5),
        ("link", "c", 2.0, 4.0), ("HBM", "d", 0.5, 5.0), ("link", "e", 1.9, 6.0),
    )  # fmt: skip
    trace = read(write_trace(profile, tmp_path / "trace.json").path)
    names = {
        event["tid"]: event["args"]["name"]
        for event in of_kind(trace, "M")
        if event["name"] == "thread_name"
    }
    assert list(names.values()) == ["link", "link (2)", "link (3)", "HBM"]
    assert {event["name"]: names[event["tid"]] for event in of_kind(trace, "X")} == {
        "a": "link", "b": "link (2)", "within b": "link (2)", "c": "link", "d": "HBM",
        "e": "link (3)",
    }  # fmt: skip


def test_nanoseconds_are_kept(tmp_path: Path) -> None:
    profile = make_profile(("cpu", "late", 0.1234567891, 0.1234567896))
    (event,) = of_kind(read(write_trace(profile, tmp_path / "trace.json").path), "X")
    assert event["ts"] == pytest.approx(123456.7891, abs=1e-4)
    assert event["dur"] == pytest.approx(5e-4)


def test_node_memory_is_a_counter_with_its_peaks(tmp_path: Path) -> None:
    points = tuple((1e-6 * at, float(at % 1000)) for at in range(3 * MAX_COUNTER_POINTS))
    trace = read(write_trace(make_profile(sram_over_time=points), tmp_path / "trace.json").path)
    counted = of_kind(trace, "C")
    assert 0 < len(counted) <= MAX_COUNTER_POINTS
    assert max(event["args"]["bytes"] for event in counted) == 999.0
    times = [event["ts"] for event in counted]
    assert times == sorted(times)


def test_a_long_timeline_loses_its_shortest_events_and_says_so(tmp_path: Path) -> None:
    events = [("cpu", f"op{at}", at * 1e-3, at * 1e-3 + (at % 7 + 1) * 1e-6) for at in range(2000)]
    written = write_trace(make_profile(*events), tmp_path / "trace.json", max_bytes=60_000)
    assert 40_000 < written.path.stat().st_size <= 60_000
    trace = read(written.path)
    kept = of_kind(trace, "X")
    assert len(kept) == written.num_events < 2000
    shortest = min(event["dur"] for event in kept)
    out = [event for event in events if event[1] not in {each["name"] for each in kept}]
    longest_out = max(1e6 * (end - start) for _, _, start, end in out)
    assert longest_out <= shortest + 1e-3
    assert f"{2000 - len(kept):,} of 2,000 events, none longer than" in written.left_out
    assert trace["note"]["left_out"] == written.left_out
    starts = [event["ts"] for event in kept]
    assert starts == sorted(starts)


def test_a_trace_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "trace.json").mkdir()
    with pytest.raises(UserError, match="cannot write .*trace.json"):
        write_trace(make_profile(), tmp_path / "trace.json")
    assert list(tmp_path.iterdir()) == [tmp_path / "trace.json"]
