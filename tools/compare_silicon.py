"""Published cycles of a TPU v3 core beside those of the model: square products, fp32 in memory.

    python tools/compare_silicon.py [--kernels]

Each product is captured and lowered as any step is, the machine is the preset as it is: no figure
was set by these rows' sizes. With `--kernels`, a second table has other kernels on this core and on
an A100, for which nothing is published here: they are MODELLED only.
"""

import argparse
from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from fsdtrain_dojo.lowering.passes.expand_macros import expand_macros
from fsdtrain_dojo.lowering.record_step import record_forward
from fsdtrain_dojo.machine.catalog import read_machine
from fsdtrain_dojo.modelling import ModelledStep, model_step
from fsdtrain_dojo.recipe import Recipe, bf16_options, read_recipe
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn import functional as F

# Cycles at 940 MHz of m = n = k, measured by others (PyTorchSim, MICRO 2025).
PUBLISHED = {256: 3101, 512: 9490, 1024: 47099, 2048: 317435}
ROLES = ("activation", "weight", "vector", "master_weight")
FP32 = read_recipe({role: {"format": "fp32"} for role in ROLES})
BF16 = read_recipe(bf16_options())
RECIPES: Mapping[str, Recipe] = {"tpu_v3": FP32, "a100": BF16}


class Apply(nn.Module):
    """A function as a module."""

    def __init__(self, function: Callable[..., Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.function(*inputs)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kernels", action="store_true", help="further kernels, MODELLED only")
    options = parser.parse_args()
    console = Console()
    print_products(console)
    if options.kernels:
        print_kernels(console)


def print_products(console: Console) -> None:
    """Published and MODELLED cycles of every size, and the mean error."""
    table = Table(title="tpu_v3, products n x n x n: MODELLED beside published silicon")
    for head in ("n", "published cycles", "MODELLED cycles", "ratio", "bound by", "steps"):
        table.add_column(head, justify="right")
    errors = []
    for size, published in PUBLISHED.items():
        modelled = model_product(size)
        cycles = cycles_of(modelled)
        errors.append(abs(cycles / published - 1))
        table.add_row(
            str(size),
            f"{published:,}",
            f"{cycles:,.0f}",
            f"{cycles / published:.3f}",
            bounds(modelled),
            " ".join(steps_over_time(modelled)),
        )
    console.print(table)
    console.print(f"mean error {sum(errors) / len(errors):.1%}, largest {max(errors):.1%}")


def print_kernels(console: Console) -> None:
    """Kernels without a published figure."""
    table = Table(title="other kernels: MODELLED, with nothing published beside")
    for head in ("machine", "kernel", "us", "cycles", "bound by"):
        table.add_column(head, justify="right")
    for machine in RECIPES:
        for name, function, shapes in further_kernels():
            modelled = model_function(machine, function, shapes)
            table.add_row(
                machine,
                name,
                f"{modelled.time.seconds * 1e6:,.2f}",
                f"{cycles_of(modelled):,.0f}",
                bounds(modelled),
            )
    console.print(table)


def further_kernels() -> Iterator[tuple[str, Callable[..., Tensor], list[tuple[int, ...]]]]:
    """Name, function and shapes of its inputs."""
    for rows, columns in ((512, 768), (4096, 4096)):
        shapes = [(rows, columns)]
        yield (
            f"layer norm {rows} x {columns}",
            lambda x: F.layer_norm(x, (x.shape[-1],)),
            shapes,
        )
        yield f"softmax {rows} x {columns}", lambda x: F.softmax(x, -1), shapes
        yield f"GELU {rows} x {columns}", F.gelu, shapes
    yield (
        "attention 12 heads x 512 x 64",
        F.scaled_dot_product_attention,
        [(1, 12, 512, 64)] * 3,
    )
    for channels, size in ((64, 56), (256, 14)):
        yield (
            f"convolution 3 x 3, {channels} channels, {size} x {size}",
            lambda x, weight: F.conv2d(x, weight, padding=1),
            [(1, channels, size, size), (channels, channels, 3, 3)],
        )


def model_product(size: int) -> ModelledStep:
    """A square fp32 product on a TPU v3 core."""
    return model_function("tpu_v3", torch.matmul, [(size, size), (size, size)])


def model_function(
    machine: str, function: Callable[..., Tensor], shapes: Sequence[tuple[int, ...]]
) -> ModelledStep:
    """A function of tensors of these shapes on a machine, in its recipe."""
    inputs = [torch.zeros(()).expand(shape) for shape in shapes]
    recorded = record_forward(Apply(function), *inputs, recipe=RECIPES[machine])
    return model_step(expand_macros(recorded), read_machine(machine))


def cycles_of(modelled: ModelledStep) -> float:
    """Of the nodes' clock."""
    return modelled.time.seconds * modelled.costs.fabric.clock_hz


def bounds(modelled: ModelledStep) -> str:
    """Of every kernel, in order."""
    return ", ".join(dict.fromkeys(each.alone.bound.value for each in modelled.time.steps))


def steps_over_time(modelled: ModelledStep) -> Iterator[str]:
    """Loops that a node steps over, and in how many pieces."""
    for step in modelled.program.steps:
        for loop, count in step.mapping.steps.items():
            yield f"{step.kernel.loops[loop].name} {count}"


if __name__ == "__main__":
    main()
