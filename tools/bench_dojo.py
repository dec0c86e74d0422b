"""Measures how long modelling a step on a Dojo machine takes on this host.

    python tools/bench_dojo.py [--cases gemm_4096 resnet50_training ...] [--rounds 3]

Each case runs in a process of its own, `--rounds` times. What is MEASURED: seconds to capture the
step (torch.compile traces it; nothing is computed), seconds to lower and time it, peak resident
memory, and clocks of the machine modelled a second of lowering and timing. The step time itself is
MODELLED. Published or measured times of other simulators stand beside; they are of other machines
(see docs/dojo.md), so a ratio to them tells the order only.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from bench_overhead import make_batch
from fsdtrain_dojo.lowering.kernel import KernelGraph
from fsdtrain_dojo.lowering.passes.expand_macros import expand_macros
from fsdtrain_dojo.lowering.record_step import record_forward, record_step
from fsdtrain_dojo.machine.catalog import read_machine
from fsdtrain_dojo.modelled_profile import make_profile
from fsdtrain_dojo.modelling import model_step
from fsdtrain_dojo.recipe import bf16_options, read_recipe
from torch import Tensor, nn

from fsdtrain.build import build_network
from fsdtrain.engine.module import DrivingModule
from fsdtrain.engine.step import TrainingStep
from fsdtrain.hydra_app import compose_config
from fsdtrain.ops.table import OpTable
from fsdtrain.report.trace import write_trace
from fsdtrain.settings import read_settings

RECIPE = read_recipe(bf16_options(), denormals="gradual", uhp_has_specials=False)


@dataclass(frozen=True, kw_only=True)
class Case:
    """One row: a step, a machine, the goal in seconds and what others take."""

    capture: Callable[[], KernelGraph]
    machine: str
    goal_s: float
    others: str


class Product(nn.Module):
    """A matrix product."""

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        return left @ right


class Bottleneck(nn.Module):
    """ResNet's bottleneck block (arXiv 1512.03385), with the stride in the 3 x 3 convolution."""

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        out_channels = 4 * channels
        self.branch = nn.Sequential(
            nn.Conv2d(in_channels, channels, 1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(inplace=True),
            nn.Conv2d(channels, channels, 3, stride, 1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(inplace=True),
            nn.Conv2d(channels, out_channels, 1, bias=False),
            nn.BatchNorm2d(out_channels),
        )
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1 or in_channels != out_channels:
            self.shortcut = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 1, stride, bias=False),
                nn.BatchNorm2d(out_channels),
            )

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.relu(self.branch(x) + self.shortcut(x), inplace=True)


class ResNet50(nn.Module):
    """Images in, scores of 1000 classes out."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, 64, 7, 2, 3, bias=False),
            nn.BatchNorm2d(64),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(3, 2, 1),
        )
        blocks, in_channels = [], 64
        for channels, count, stride in ((64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2)):
            for block in range(count):
                blocks.append(Bottleneck(in_channels, channels, stride if block == 0 else 1))
                in_channels = 4 * channels
        self.blocks = nn.Sequential(*blocks)
        self.last = nn.Linear(2048, 1000)

    def forward(self, images: Tensor) -> Tensor:
        return self.last(self.blocks(self.stem(images)).mean((2, 3)))


def nothing(*shape: int) -> Tensor:
    """A tensor of this shape that takes no memory; only its shape is captured."""
    return torch.zeros(()).expand(shape)


def capture_product(size: int) -> KernelGraph:
    """Square, of BF16 operands."""
    recorded = record_forward(Product(), nothing(size, size), nothing(size, size), recipe=RECIPE)
    return expand_macros(recorded)


def capture_resnet50_forward() -> KernelGraph:
    """Inference on one image."""
    return expand_macros(record_forward(ResNet50(), nothing(1, 3, 224, 224), recipe=RECIPE))


def capture_resnet50_training() -> KernelGraph:
    """Batch 256, AdamW."""
    module = ResNet50()
    batch = (nothing(256, 3, 224, 224), torch.zeros(256, dtype=torch.int64))
    recorded = record_step(
        module,
        batch,
        torch.optim.AdamW(module.parameters()),
        recipe=RECIPE,
        run=lambda net, given: nn.functional.cross_entropy(net(given[0]), given[1]),
    )
    return expand_macros(recorded)


def capture_hydra_bev() -> KernelGraph:
    """hydra-bev base: a clip of 8 cameras, 4 frames of 448 x 800, AdamW."""
    with TemporaryDirectory() as folder:
        settings = read_settings(compose_config("fit", [f"run_dir={folder}", "model=base"]))
    step = TrainingStep(build_network(settings.model, OpTable()))
    heads = DrivingModule(step, settings.training).heads()
    batch = make_batch(
        [head.target_builder() for _, head in heads],
        batch_size=1,
        num_frames=settings.model.num_frames,
        image_size=settings.model.image_size,
        num_cameras=8,
        seed=0,
    )
    recorded = record_step(step, batch, torch.optim.AdamW(step.parameters()), recipe=RECIPE)
    return expand_macros(recorded)


CASES: dict[str, Case] = {
    "gemm_4096": Case(
        capture=lambda: capture_product(4096),
        machine="d1_tile",
        goal_s=1.0,
        others="LLMCompass 185 s, SCALE-Sim about 3.8 h (extrapolated)",
    ),
    "gemm_16384": Case(
        capture=lambda: capture_product(16384),
        machine="d1_tile",
        goal_s=5.0,
        others="PyTorchSim crashes",
    ),
    "resnet50_forward": Case(
        capture=capture_resnet50_forward,
        machine="d1_tile",
        goal_s=2.0,
        others="mNPUSim 294 s, SCALE-Sim over 420 s and unfinished",
    ),
    "resnet50_training": Case(
        capture=capture_resnet50_training,
        machine="d1_tile",
        goal_s=10.0,
        others="none does it",
    ),
    "hydra_bev_base": Case(
        capture=capture_hydra_bev, machine="d1_tray", goal_s=30.0, others="none does it"
    ),
}


def main() -> None:
    """Parse the arguments; as a child process, measure one case."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--alone", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.alone:
        print(json.dumps(measure(CASES[options.cases[0]])))
        return
    print("MEASURED on this host, one thread; step times MODELLED. Median (least .. most).")
    for name in options.cases:
        report(name, [run_alone(name) for _ in range(options.rounds)])


def measure(case: Case) -> dict[str, float]:
    """Capture, lower and time one step; all that is measured of it."""
    torch.set_num_threads(1)
    started = time.perf_counter()
    graph = case.capture()
    captured = time.perf_counter()
    machine = read_machine(case.machine)
    modelled = model_step(graph, machine)
    done = time.perf_counter()
    with TemporaryDirectory() as folder:
        trace = Path(folder) / "trace.json"
        write_trace(make_profile(modelled, backend="dojo"), trace)
        trace_mb = trace.stat().st_size / 1e6
    lower_s = done - captured
    return {
        "capture_s": captured - started,
        "lower_s": lower_s,
        "memory_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6,
        "trace_mb": trace_mb,
        "step_us": 1e6 * modelled.time.seconds,
        "clocks_per_s": modelled.time.seconds * machine.node.clock_hz / lower_s,
    }


def run_alone(name: str) -> dict[str, float]:
    """One case in a process of its own."""
    command = [sys.executable, __file__, "--alone", "--cases", name]
    finished = subprocess.run(command, check=True, capture_output=True, text=True)
    found: dict[str, float] = json.loads(finished.stdout.splitlines()[-1])
    return found


def report(name: str, rounds: list[dict[str, float]]) -> None:
    """One case in a few lines."""
    case = CASES[name]

    def spread(key: str) -> str:
        values = [each[key] for each in rounds]
        return f"{statistics.median(values):.3g} ({min(values):.3g} .. {max(values):.3g})"

    print(f"{name} on {case.machine}: lower and time {spread('lower_s')} s, goal {case.goal_s:g} s")
    print(f"  others: {case.others}")
    print(
        f"  capture {spread('capture_s')} s, memory {spread('memory_gb')} GB, "
        f"trace {spread('trace_mb')} MB"
    )
    print(
        f"  MODELLED step {rounds[0]['step_us']:,.1f} us: {spread('clocks_per_s')} clocks of all "
        "nodes a second"
    )


if __name__ == "__main__":
    main()
