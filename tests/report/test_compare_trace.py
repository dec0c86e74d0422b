"""Both timelines of a comparison in one trace."""

import json
from pathlib import Path
from typing import Any

from sample_compare import make_side_profile

from fsdtrain.report.compare_trace import write_compare_trace


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def events_of(trace: Any, process: int) -> list[Any]:
    return [each for each in trace["traceEvents"] if each["pid"] == process and each["ph"] == "X"]


def test_each_side_is_a_process_with_its_origin_in_its_name(tmp_path: Path) -> None:
    a = make_side_profile("cpu", "2 cores", "MEASURED", 0.4, 30)
    b = make_side_profile("dojo", "Tesla D1 tile", "MODELLED", 0.001, 40)
    written = write_compare_trace(a, b, tmp_path / "trace.json")
    trace = read(written.path)
    names = {
        each["pid"]: each["args"]["name"]
        for each in trace["traceEvents"]
        if each["name"] == "process_name"
    }
    assert names == {1: "a: cpu, MEASURED: 2 cores", 2: "b: dojo, MODELLED: Tesla D1 tile"}
    for process, profile in ((1, a), (2, b)):
        found = events_of(trace, process)
        assert [each["name"] for each in found] == [one.name for one in profile.timeline]
        assert sum(each["dur"] for each in found) * 1e-6 - profile.step_time_s < 1e-8
    tracks = {
        (each["pid"], each["args"]["name"])
        for each in trace["traceEvents"]
        if each["name"] == "thread_name"
    }
    assert tracks == {(1, "cpu"), (2, "matrix"), (2, "HBM")}
    assert (written.num_events, written.left_out) == (70, "")
    assert trace["otherData"]["b"]["origin"] == "MODELLED"


def test_a_short_step_keeps_its_events_beside_a_long_one(tmp_path: Path) -> None:
    a = make_side_profile("cpu", "2 cores", "MEASURED", 0.4, 2000)
    b = make_side_profile("dojo", "Tesla D1 tile", "MODELLED", 0.001, 50)
    written = write_compare_trace(a, b, tmp_path / "trace.json", max_bytes=100_000)
    assert 80_000 < written.path.stat().st_size <= 100_000
    trace = read(written.path)
    assert len(events_of(trace, 2)) == 50
    kept = len(events_of(trace, 1))
    assert 500 < kept < 2000
    assert written.left_out.startswith(f"a: {2000 - kept:,} of 2,000 events, none longer than")
    assert trace["note"]["left_out"] == written.left_out
