"""Measures what emulating Dojo's number formats costs a training step on this machine.

    python tools/bench_dojo_step.py [--models hydra_bev resnet18] [--rounds 20] [--threads 1]

Copies of one model train on one batch with AdamW: plain eager FP32, the same again (which shows how
far two equal things stand apart here), and compiled with each recipe. They take turns, step by
step, in one process, because a machine's speed drifts. Then each runs alone in a fresh process for
the time to its first step and its peak resident memory. All figures are MEASURED on the host; they
say nothing of Dojo's speed.
"""

import argparse
import copy
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from bench_overhead import make_batch
from fsdtrain_dojo.backend import DojoBackend
from omegaconf import OmegaConf
from torch import Tensor, nn

from fsdtrain.build import build_network
from fsdtrain.engine.module import DrivingModule
from fsdtrain.engine.step import TrainingStep
from fsdtrain.hydra_app import compose_config
from fsdtrain.settings import read_settings

EAGER, EAGER_AGAIN = "eager fp32", "eager fp32 again"
RECIPES = ("fp32", "bf16", "cfp8", "cfp8_stochastic")
GOALS = {"bf16": 1.25, "cfp8": 1.35, "cfp8_stochastic": 1.5}
RECIPE_FOLDER = Path(__file__).parents[1] / "configs" / "backend" / "recipe"
READ_EVERY_STEPS = 0  # numerics are not measured here

RunStep = Callable[[], None]


def main() -> None:
    """Parse the arguments; as a child process, measure one variant alone."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--alone", help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.alone:
        measure_alone(options.models[0], options.alone)
        return
    for model in options.models:
        compare(model, options.rounds, options.threads)


class BasicBlock(nn.Module):
    """ResNet's basic block (arXiv 1512.03385)."""

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(in_channels, channels, 3, stride, 1, bias=False)
        self.first_norm = nn.BatchNorm2d(channels)
        self.second = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.second_norm = nn.BatchNorm2d(channels)
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1 or in_channels != channels:
            self.shortcut = nn.Sequential(
                nn.Conv2d(in_channels, channels, 1, stride, bias=False), nn.BatchNorm2d(channels)
            )

    def forward(self, x: Tensor) -> Tensor:
        out = nn.functional.relu(self.first_norm(self.first(x)), inplace=True)
        out = self.second_norm(self.second(out))
        return nn.functional.relu(out + self.shortcut(x), inplace=True)


class ResNet18(nn.Module):
    """Images and classes in, loss out."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, 64, 7, 2, 3, bias=False),
            nn.BatchNorm2d(64),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(3, 2, 1),
        )
        widths = (64, 64, 128, 256, 512)
        self.stages = nn.Sequential(
            *(
                nn.Sequential(
                    BasicBlock(before, width, 1 if width == 64 else 2), BasicBlock(width, width, 1)
                )
                for before, width in zip(widths, widths[1:], strict=False)
            )
        )
        self.last = nn.Linear(512, 1000)

    def forward(self, images: Tensor, classes: Tensor) -> Tensor:
        features = self.stages(self.stem(images)).mean((2, 3))
        return nn.functional.cross_entropy(self.last(features), classes)


def make_resnet() -> tuple[nn.Module, Callable[[nn.Module], Tensor]]:
    """ResNet-18 on eight images of 128 x 128."""
    torch.manual_seed(0)
    images, classes = torch.randn(8, 3, 128, 128), torch.randint(0, 1000, (8,))
    return ResNet18(), lambda module: module(images, classes)


def make_hydra_bev() -> tuple[nn.Module, Callable[[nn.Module], Tensor]]:
    """hydra-bev tiny as `fit` trains it: batch 4, 5 cameras, 2 frames of 48 x 96."""
    settings = read_settings(compose_config("fit", ["run_dir=."]))
    torch.manual_seed(0)
    step = TrainingStep(build_network(settings.model, DojoBackend().op_table()))
    heads = DrivingModule(step, settings.training).heads()
    batch = make_batch(
        [head.target_builder() for _, head in heads],
        batch_size=settings.data.batch_size,
        num_frames=settings.model.num_frames,
        image_size=settings.model.image_size,
        num_cameras=5,
        seed=0,
    )
    return step, lambda module: module(batch).loss


MODELS: dict[str, Callable[[], tuple[nn.Module, Callable[[nn.Module], Tensor]]]] = {
    "hydra_bev": make_hydra_bev,
    "resnet18": make_resnet,
}


def make_step(module: nn.Module, loss: Callable[[nn.Module], Tensor], variant: str) -> RunStep:
    """One training step of the module: eager, or compiled with a recipe."""
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-4)
    update: Callable[[], Any] = optimizer.step
    if variant not in (EAGER, EAGER_AGAIN):
        plain: Any = OmegaConf.to_container(OmegaConf.load(RECIPE_FOLDER / f"{variant}.yaml"))
        backend = DojoBackend(recipe=plain, read_every_steps=READ_EVERY_STEPS)
        backend.compile_step(module)

        def update() -> None:
            backend.optimizers.step(optimizer)

    def run_step() -> None:
        optimizer.zero_grad()
        loss(module).backward()
        update()

    return run_step


def compare(model: str, num_rounds: int, num_threads: int) -> None:
    """All variants of one model, in turn; prints the table."""
    module, loss = MODELS[model]()
    variants = (EAGER, EAGER_AGAIN, *RECIPES)
    steps = {name: make_step(copy.deepcopy(module), loss, name) for name in variants}
    times: dict[str, list[float]] = {name: [] for name in variants}
    for number in range(num_rounds + 2):  # the first two capture, and fill caches
        for name, run_step in steps.items():
            started = time.process_time()
            run_step()
            if number >= 2:
                times[name].append(time.process_time() - started)
    print(f"\n{model}: {num_threads} threads, {num_rounds} rounds, {torch.__version__}, MEASURED")
    print("| variant | CPU ms a step, median (quartiles) | ratio to eager, median (quartiles) | "
          "goal | first step, s | peak memory, ratio |\n|---|---|---|---|---|---|")  # fmt: skip
    base_memory = 0.0
    for name in variants:
        first_s, memory_mib = run_alone(model, name, num_threads)
        base_memory = base_memory or memory_mib
        ratios = [one / other for one, other in zip(times[name], times[EAGER], strict=True)]
        print(
            f"| {name} | {spread([1e3 * each for each in times[name]], 1)} | {spread(ratios, 3)} | "
            f"{GOALS.get(name, '')} | {first_s:.1f} | "
            f"{memory_mib:.0f} MiB, {memory_mib / base_memory:.2f} |"
        )


def spread(values: Sequence[float], digits: int) -> str:
    """Median and quartiles."""
    low, middle, high = statistics.quantiles(values, n=4)
    return f"{middle:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def run_alone(model: str, variant: str, num_threads: int) -> tuple[float, float]:
    """(seconds to the end of the first step, peak resident MiB) of a fresh process."""
    command = [sys.executable, __file__, "--models", model, "--alone", variant]
    command += ["--threads", str(num_threads)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    first_s, memory_mib = (float(word) for word in done.stdout.split()[-2:])
    return first_s, memory_mib


def measure_alone(model: str, variant: str) -> None:
    """Prints the two figures `run_alone` reads."""
    module, loss = MODELS[model]()
    run_step = make_step(module, loss, variant)
    started = time.perf_counter()
    run_step()
    first_s = time.perf_counter() - started
    for _ in range(3):
        run_step()
    print(first_s, peak_memory_mib())


def peak_memory_mib() -> float:
    """Of this process; getrusage would count its parent's from before it was started."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    raise SystemExit("this system does not tell the peak memory of a process")


if __name__ == "__main__":
    main()
