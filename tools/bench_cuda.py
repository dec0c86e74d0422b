"""Measures fsdtrain's training step on a GPU beside a raw twin: eager PyTorch with unfused ops.

    python tools/bench_cuda.py [--sizes tiny small base] [--blocks 15] [--device cuda|cpu]

The twin (tools/raw_hydra_bev.py) has the same parameters, function and losses; it runs NCHW, in
fp32 and under bf16 autocast, with AdamW as torch chooses it, and reads every loss each step to log
it. fsdtrain runs as `fit backend=cuda` does, without Lightning (tools/bench_overhead.py has that),
eager, compiled, and compiled with CUDA graphs; and, to show what the emulation costs, as `fit
backend=dojo backend/recipe=cfp8` does on the same device. They take turns in blocks of a few steps
in one process, because a machine's speed drifts; a ratio is of neighbouring blocks. Batches are on
the device already. Writes step-<device>.json and .md; without a GPU the rows say "not measured",
and --device cpu only tries that everything runs.
"""

import argparse
import json
import re
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import torch
import triton
from bench_overhead import make_batch
from fsdtrain_dojo.backend import DojoBackend
from raw_hydra_bev import RawHydraBev
from torch import Tensor, nn
from torch.utils import _pytree

from fsdtrain.backend import Backend, load_backend
from fsdtrain.build import build_network
from fsdtrain.data.batch import ClipBatch
from fsdtrain.engine.module import DrivingModule
from fsdtrain.engine.optimizer import build_optimizer
from fsdtrain.engine.step import TrainingStep
from fsdtrain.hydra_app import compose_config
from fsdtrain.ops.table import OpTable
from fsdtrain.settings import Settings, read_settings

SIZES = ("tiny", "small", "base")
NUM_CAMERAS = 8
NUM_BATCHES = 2  # different ones, in turn
NOT_MEASURED = "not measured"
RAW = ("raw fp32", "raw bf16")
# Options of backend=cuda beside precision.
OURS: dict[str, dict[str, Any]] = {
    "fsdtrain bf16": {},
    "fsdtrain bf16, compiled": {"compile": "default"},
    "fsdtrain bf16, compiled, graphs": {"compile": "default", "cuda_graphs": True},
}
EMULATED = "dojo cfp8, emulated on this device"  # at most 1.5 times the first of ours is wanted


@dataclass(frozen=True, kw_only=True)
class Variant:
    """`prepare` sets PyTorch's switches, which are the process's, before each turn."""

    prepare: Callable[[], object]
    step: Callable[[ClipBatch], None]


@dataclass(frozen=True, kw_only=True)
class Row:
    """One variant of one size; times in milliseconds, None where nothing was measured."""

    size: str
    variant: str
    step_ms: float | None = None
    quartiles_ms: tuple[float, float] | None = None
    peak_gib: float | None = None  # beyond the weights and states of all variants
    # Time of each raw twin over this one's: median and quartiles of neighbouring blocks.
    ratios: Mapping[str, tuple[float, float, float]] | None = None
    remark: str = NOT_MEASURED


def main() -> None:
    """Measure each size, or say that there is nothing to measure with."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", nargs="+", default=list(SIZES), choices=SIZES)
    parser.add_argument("--blocks", type=int, default=15, help="turns of each variant")
    parser.add_argument("--steps", type=int, default=4, help="steps a turn")
    parser.add_argument("--batch-size", type=int, default=1)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    if options.device == "cpu":
        for row in measure("tiny", "cpu", blocks=2, steps=1, batch_size=1):
            print(row)
        print("a smoke test: nothing was written")
        return
    rows: list[Row] = []
    for size in options.sizes:
        if torch.cuda.is_available():
            rows += measure(
                size, "cuda", blocks=options.blocks, steps=options.steps,
                batch_size=options.batch_size,
            )  # fmt: skip
        else:
            rows += [Row(size=size, variant=variant) for variant in (*RAW, *OURS, EMULATED)]
    write(rows, options.out, batch_size=options.batch_size)


def measure(size: str, device: str, *, blocks: int, steps: int, batch_size: int) -> list[Row]:
    """The rows of one size: all variants in turn, after two blocks that do not count."""
    config = compose_config("fit", ["run_dir=.", f"model={size}", f"backend={device}"])
    settings = read_settings(config)
    model = TrainingStep(build_network(settings.model, OpTable()))
    variants: dict[str, Variant] = {
        name: raw_step(model, settings, device, is_bf16="bf16" in name) for name in RAW
    }
    ours = OURS if device == "cuda" else {"fsdtrain bf16": {}}
    for name, more in ours.items():
        backend = load_backend(device, {"precision": "bf16-mixed", **more})
        variants[name] = our_step(model, settings, backend)
    variants[EMULATED] = emulated_step(model, settings, size, device)
    batches = make_batches(model, settings, device, batch_size)
    times: dict[str, list[float]] = {name: [] for name in variants}
    peaks: dict[str, float | None] = {}
    failed: dict[str, str] = {}
    for _ in range(blocks + 2):
        for name, variant in variants.items():
            if name in failed:
                continue
            try:
                seconds, peaks[name] = time_block(variant, batches, steps, device)
            except torch.OutOfMemoryError:
                failed[name] = "out of memory"
            else:
                times[name].append(seconds)
    counted = {name: found[2:] for name, found in times.items() if name not in failed}
    return [make_row(size, name, counted, peaks.get(name), failed.get(name)) for name in variants]


def make_row(
    size: str,
    name: str,
    times: Mapping[str, Sequence[float]],
    peak_gib: float | None,
    failure: str | None,
) -> Row:
    """Medians and quartiles of one variant, and of its ratio to each raw twin, block by block."""
    if failure is not None:
        return Row(size=size, variant=name, remark=failure)
    low, _, high = quantiles(times[name], n=4, method="inclusive")
    ratios = {}
    for raw in RAW:
        if raw in times and raw != name:
            of_blocks = [slow / fast for slow, fast in zip(times[raw], times[name], strict=True)]
            quarter, middle, three = quantiles(of_blocks, n=4, method="inclusive")
            ratios[raw] = (middle, quarter, three)
    return Row(
        size=size,
        variant=name,
        step_ms=1e3 * median(times[name]),
        quartiles_ms=(1e3 * low, 1e3 * high),
        peak_gib=peak_gib,
        ratios=ratios,
        remark="MEASURED",
    )


def time_block(
    variant: Variant, batches: Sequence[ClipBatch], num_steps: int, device: str
) -> tuple[float, float | None]:
    """Seconds a step, from an idle device to an idle one, and GiB beyond what lay there before."""
    variant.prepare()
    held = 0
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        held = torch.cuda.memory_allocated()
    started = time.perf_counter()
    for number in range(num_steps):
        variant.step(batches[number % len(batches)])
    if device == "cuda":
        torch.cuda.synchronize()
    seconds = (time.perf_counter() - started) / num_steps
    peak = (torch.cuda.max_memory_allocated() - held) / 2**30 if device == "cuda" else None
    return seconds, peak


def set_defaults() -> None:
    """PyTorch's switches as it comes: TF32 in convolutions, cuDNN without timing."""
    torch.set_float32_matmul_precision("highest")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # some releases want a newer switch set instead
        torch.backends.cudnn.allow_tf32 = True
    torch.backends.cudnn.benchmark = torch.backends.cudnn.deterministic = False
    torch.use_deterministic_algorithms(False)


def raw_step(model: TrainingStep, settings: Settings, device: str, *, is_bf16: bool) -> Variant:
    """The loop of today's repositories, which reads each loss of each step."""
    twin = RawHydraBev(model).to(device).train()
    optimizer = torch.optim.AdamW(
        twin.parameters(), lr=settings.training.learning_rate, weight_decay=0.01
    )
    logged: dict[str, float] = {}

    def step(batch: ClipBatch) -> None:
        optimizer.zero_grad()
        with torch.autocast(device, torch.bfloat16, is_bf16):
            loss, losses = twin(batch)
        loss.backward()
        clip(twin, settings)
        optimizer.step()
        logged.update({name: value.item() for name, value in losses.items()})

    return Variant(prepare=set_defaults, step=step)


def our_step(model: TrainingStep, settings: Settings, backend: Backend) -> Variant:
    """What `fit` does between a batch and the next one, without Lightning."""
    device = backend.to_device(torch.zeros(1)).device.type
    own = TrainingStep(build_network(settings.model, backend.op_table()))
    own.load_state_dict(model.state_dict())
    own.to(device).train()
    backend.compile_step(own)
    optimizer = build_optimizer(own, settings.training, is_fused=backend.fuses_optimizer)

    def step(batch: ClipBatch) -> None:
        optimizer.zero_grad()
        with torch.autocast(device, torch.bfloat16):
            loss: Tensor = own(batch).loss
        loss.backward()
        clip(own, settings)
        optimizer.step()

    return Variant(prepare=backend.trainer_parts, step=step)


def emulated_step(model: TrainingStep, settings: Settings, size: str, device: str) -> Variant:
    """As `our_step`, in Dojo's number formats; numerics are not read."""
    config = compose_config(
        "fit",
        [
            "run_dir=.", f"model={size}", "backend=dojo", "backend/recipe=cfp8",
            f"backend.host={device}", "backend.read_every_steps=0",
        ],
    )  # fmt: skip
    backend = DojoBackend(**read_settings(config).backend_options)
    own = TrainingStep(build_network(settings.model, backend.op_table()))
    own.load_state_dict(model.state_dict())
    own.to(device).train()
    backend.compile_step(own)
    optimizer = build_optimizer(own, settings.training)

    def step(batch: ClipBatch) -> None:
        optimizer.zero_grad()
        own(batch).loss.backward()
        clip(own, settings)
        backend.optimizers.step(optimizer)

    return Variant(prepare=set_defaults, step=step)


def clip(step: nn.Module, settings: Settings) -> None:
    """As the configuration says."""
    if settings.training.gradient_clip_norm is not None:
        nn.utils.clip_grad_norm_(step.parameters(), settings.training.gradient_clip_norm)


def make_batches(
    model: TrainingStep, settings: Settings, device: str, batch_size: int
) -> list[ClipBatch]:
    """Noise in the model's sizes, on the device."""
    heads = DrivingModule(model, settings.training).heads()
    made = [
        make_batch(
            [head.target_builder() for _, head in heads],
            batch_size=batch_size,
            num_frames=settings.model.num_frames,
            image_size=settings.model.image_size,
            num_cameras=NUM_CAMERAS,
            seed=seed,
        )
        for seed in range(NUM_BATCHES)
    ]
    return [_pytree.tree_map(lambda value: value.to(device), batch) for batch in made]


def write(rows: Sequence[Row], folder: Path, *, batch_size: int) -> None:
    """JSON for programs, a table for people."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    slug = re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-")
    record = {
        "device": device,
        "torch": torch.__version__,
        "triton": triton.__version__,
        "batch_size": batch_size,
        "cameras": NUM_CAMERAS,
        "rows": [vars(row) for row in rows],
    }
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"step-{slug}.json"
    path.write_text(json.dumps(record, indent=1) + "\n")
    path.with_suffix(".md").write_text(as_markdown(record, rows))
    print(f"wrote {path} and {path.with_suffix('.md').name}")


def as_markdown(record: Mapping[str, Any], rows: Sequence[Row]) -> str:
    """The rows as a table."""
    lines = [
        f"# A training step of hydra-bev on {record['device']}",
        "",
        f"Batch {record['batch_size']}, {record['cameras']} cameras; torch {record['torch']}, "
        f"triton {record['triton']}. Medians, quartiles in brackets.",
        "",
        "| model | variant | step | working memory | raw fp32 / this | raw bf16 / this | |",
        "|---|---|--:|--:|--:|--:|---|",
    ]
    return "\n".join([*lines, *map(_markdown_row, rows)]) + "\n"


def _markdown_row(row: Row) -> str:
    cells = [NOT_MEASURED if row.remark == NOT_MEASURED else ""] * 4
    if row.step_ms is not None and row.quartiles_ms is not None and row.ratios is not None:
        low, high = row.quartiles_ms
        cells[0] = f"{row.step_ms:.2f} ({low:.2f}-{high:.2f}) ms"
        cells[1] = "" if row.peak_gib is None else f"{row.peak_gib:.2f} GiB"
        for number, raw in enumerate(RAW):
            if raw in row.ratios:
                middle, low, high = row.ratios[raw]
                cells[2 + number] = f"{middle:.2f} ({low:.2f}-{high:.2f})"
    return f"| {row.size} | {row.variant} | " + " | ".join([*cells, row.remark]) + " |"


if __name__ == "__main__":
    main()
