"""Measures the kernels beside what the GPU reaches at best, and beside eager PyTorch.

    python tools/bench_kernels.py [--only bev_pool] [--runs 100] [--out tools/results]

First the limits of this very GPU: how fast it copies, how fast rows are gathered from its cache,
and how fast it multiplies in bf16. Then each case of kernel_cases.py, NUM_RUNS times with an empty
cache and with a full one, replayed as a CUDA graph so that the host's time does not count. The
limit of a case is the larger one of: its compulsory bytes at the rate of a copy, its gathered bytes
at the rate of the cache. Writes kernels-<device>.json and .md; without a GPU the rows say "not
measured".
"""

import argparse
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import quantiles
from typing import Any

import torch
import triton
import triton.language as tl
from fsdtrain_cuda.rates import measure_rates, measure_seconds
from kernel_cases import CASES, Bench, Case

CACHE_BYTES = 1 << 28  # more than any cache holds
TABLE_BYTES = 1 << 24  # fits into the cache of an A100 and of an H100
ROW = 128  # bf16 values: 256 bytes
ROWS_A_PROGRAM = 256
NUM_GATHERED = 1 << 23  # rows
NOT_MEASURED = "not measured"


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What this device reaches, MEASURED; per second."""

    copy_bytes: float
    gather_bytes: float
    bf16_flops: float


@dataclass(frozen=True, kw_only=True)
class Times:
    """Of one run, in microseconds."""

    median_us: float
    p10_us: float
    p90_us: float
    is_graph: bool  # replayed; otherwise the host launched each kernel in between


def main() -> None:
    """Measure what is asked for and write the rows."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="part of the names of the cases")
    parser.add_argument("--runs", type=int, default=100)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    cases = [case for case in CASES if options.only in case.name]
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    limits = measure_limits() if torch.cuda.is_available() else None
    rows = []
    for case in cases:
        rows.append(measure(case, limits, options.runs))
        print(rows[-1])
    record = {
        "device": device,
        "torch": torch.__version__,
        "triton": triton.__version__,
        "origin": NOT_MEASURED if limits is None else "MEASURED",
        "limits_per_s": None if limits is None else asdict(limits),
        "rows": rows,
    }
    write(record, options.out)


def measure_limits() -> Limits:
    """A second's work."""
    rates = measure_rates(torch.bfloat16)
    return Limits(
        copy_bytes=rates.bytes_per_s,
        gather_bytes=NUM_GATHERED * ROW * 2 / measure_gather(),
        bf16_flops=rates.flops_per_s,
    )


def measure_gather() -> float:
    """Seconds to read NUM_GATHERED random rows of a table that lies in the cache."""
    table = torch.randn(TABLE_BYTES // (2 * ROW), ROW, device="cuda", dtype=torch.bfloat16)
    index = torch.randint(len(table), (NUM_GATHERED,), device="cuda", dtype=torch.int32)
    sums = torch.empty(NUM_GATHERED // ROWS_A_PROGRAM, ROW, device="cuda")

    def run() -> None:
        gather_rows[(len(sums),)](
            table, index, sums, NUM_ROWS=ROWS_A_PROGRAM, BLOCK_ROWS=32, ROW_WIDTH=ROW, num_warps=4
        )

    return measure_seconds(run)


@triton.jit
def gather_rows(
    table_ptr,
    index_ptr,
    sums_ptr,
    NUM_ROWS: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    ROW_WIDTH: tl.constexpr,
):
    """sums[p] = sum of table[index[i]] over the NUM_ROWS indices i of program p."""
    column = tl.arange(0, ROW_WIDTH)
    total = tl.zeros([ROW_WIDTH], tl.float32)
    first = tl.program_id(0) * NUM_ROWS
    for start in tl.static_range(0, NUM_ROWS, BLOCK_ROWS):
        row = tl.load(index_ptr + first + start + tl.arange(0, BLOCK_ROWS))
        values = tl.load(table_ptr + row[:, None] * ROW_WIDTH + column[None, :])
        total += tl.sum(values.to(tl.float32), 0)
    tl.store(sums_ptr + tl.program_id(0) * ROW_WIDTH + column, total)


def measure(case: Case, limits: Limits | None, num_runs: int) -> dict[str, Any]:
    """One row: sizes and goals, and what was measured or that nothing was."""
    bench = case.make("cpu" if limits is None else "cuda")
    row: dict[str, Any] = {
        "case": case.name,
        "sizes": case.sizes,
        "min_bytes": bench.min_bytes,
        "gather_bytes": bench.gather_bytes,
        "goal_of_limit": round(case.goal, 3),
        "goal_of_plain": case.plain_goal,
    }
    if limits is None:
        fields = ("limit_us", "cold", "hot", "plain_cold", "ratio_cold", "ratio_hot", "speed_up")
        return row | dict.fromkeys(fields, NOT_MEASURED)
    limit_us = 1e6 * max(
        bench.min_bytes / limits.copy_bytes, bench.gather_bytes / limits.gather_bytes
    )
    cold = time_runs(bench.kernel, num_runs, is_cold=True)
    hot = time_runs(bench.kernel, num_runs, is_cold=False)
    plain = time_plain(bench, num_runs)
    return row | {
        "limit_us": limit_us,
        "cold": asdict(cold),
        "hot": asdict(hot),
        "plain_cold": asdict(plain),
        "ratio_cold": cold.median_us / limit_us,
        "ratio_hot": hot.median_us / limit_us,
        "speed_up": plain.median_us / cold.median_us,
    }


def time_plain(bench: Bench, num_runs: int) -> Times:
    """Eager PyTorch, without what it does besides."""
    plain = time_runs(bench.plain, num_runs, is_cold=True)
    if bench.plain_before is None:
        return plain
    before = time_runs(bench.plain_before, num_runs, is_cold=True)
    return Times(
        median_us=plain.median_us - before.median_us,
        p10_us=plain.p10_us - before.p90_us,
        p90_us=plain.p90_us - before.p10_us,
        is_graph=plain.is_graph and before.is_graph,
    )


def time_runs(run: Callable[[], object], num_runs: int, *, is_cold: bool) -> Times:
    """By CUDA's events around each run; the cache is emptied before it if `is_cold`."""
    launch, is_graph = as_graph(run)
    flushed = torch.empty(CACHE_BYTES, dtype=torch.uint8, device="cuda")
    pairs = [
        (torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True))
        for _ in range(num_runs)
    ]
    for start, end in pairs:
        if is_cold:
            flushed.zero_()
        start.record()
        launch()
        end.record()
    torch.cuda.synchronize()
    return summarise([1e3 * start.elapsed_time(end) for start, end in pairs], is_graph=is_graph)


def summarise(times_us: Sequence[float], *, is_graph: bool) -> Times:
    """Median and the bounds of the middle four fifths."""
    tenths = quantiles(times_us, n=10, method="inclusive")
    return Times(median_us=tenths[4], p10_us=tenths[0], p90_us=tenths[8], is_graph=is_graph)


def as_graph(run: Callable[[], object]) -> tuple[Callable[[], object], bool]:
    """`run` captured, after it was tuned and warmed up; as it is, if it cannot be captured."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            run()
    torch.cuda.current_stream().wait_stream(side)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            run()
    except RuntimeError:  # it waits for the GPU somewhere
        torch.cuda.synchronize()
        return run, False
    return graph.replay, True


def write(record: dict[str, Any], folder: Path) -> None:
    """JSON for programs, a table for people."""
    folder.mkdir(parents=True, exist_ok=True)
    slug = re.sub(r"[^a-z0-9]+", "-", record["device"].lower()).strip("-")
    path = folder / f"kernels-{slug}.json"
    path.write_text(json.dumps(record, indent=1) + "\n")
    path.with_suffix(".md").write_text(as_markdown(record))
    print(f"wrote {path} and {path.with_suffix('.md').name}")


def as_markdown(record: dict[str, Any]) -> str:
    """The rows as a table, with the limits above."""
    lines = [
        f"# Kernels on {record['device']}: {record['origin']}",
        "",
        f"torch {record['torch']}, triton {record['triton']}. "
        + (
            "Limits: " + ", ".join(f"{name} {rate / 1e12:.2f} T/s" for name, rate in limits.items())
            if (limits := record["limits_per_s"])
            else "Limits: not measured."
        ),
        "",
        "| kernel | sizes | limit | cold (p10-p90) | hot | cold of limit | goal | eager | faster |",
        "|---|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    return "\n".join([*lines, *(_markdown_row(row) for row in record["rows"])]) + "\n"


def _markdown_row(row: dict[str, Any]) -> str:
    goal = f"{row['goal_of_limit']:g}"
    if row["cold"] == NOT_MEASURED:
        cells = [NOT_MEASURED] * 4 + [goal, NOT_MEASURED, NOT_MEASURED]
    else:
        cold, hot, plain = row["cold"], row["hot"], row["plain_cold"]
        cells = [
            f"{row['limit_us']:.1f} us",
            f"{cold['median_us']:.1f} ({cold['p10_us']:.1f}-{cold['p90_us']:.1f}) us",
            f"{hot['median_us']:.1f} us",
            f"{row['ratio_cold']:.2f}",
            goal,
            f"{plain['median_us']:.1f} us",
            f"{row['speed_up']:.1f}x",
        ]
    return "| " + " | ".join([row["case"], row["sizes"], *cells]) + " |"


if __name__ == "__main__":
    main()
