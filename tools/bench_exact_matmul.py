"""Measures exact accumulation, in products (multiply-accumulates) a second.

    python tools/bench_exact_matmul.py [--rounds 15] [--k-tile 256] [--threads 1]

Beside it stand torch.matmul in FP32, which accumulates as its library likes, and apytypes' matrix
product with an FP32 accumulator if that package is installed (it is not needed for anything else).
The rows take turns in one process, because a machine's speed drifts; figures are medians with
their quartiles.
"""

import argparse
import importlib.util
import statistics
import time
from collections.abc import Callable

import torch
from fsdtrain_dojo.arithmetic.exact_matmul import matmul_exact
from fsdtrain_dojo.arithmetic.exact_ops import ExactOps
from fsdtrain_dojo.formats import ACCUMULATOR_21, FP32, Format
from torch import Tensor

SHAPES = [(256, 256, 256), (512, 1024, 512), (64, 576, 4096), (16, 10_000, 144)]  # M, K, N
CONVOLUTION = ((8, 64, 32, 64), (64, 64, 3, 3))  # input and weight, padding 1
APYTYPES_SIZE = 96  # M, K and N: it is slow
SHORTEST_S = 0.02  # a measurement repeats its work for so long


def main() -> None:
    """Parse the arguments, measure shape by shape."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--k-tile", type=int, default=256)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(
        f"MEASURED million products a second, {options.threads} threads, K-tile {options.k_tile}, "
        f"median of {options.rounds} [quartiles]"
    )
    for num_rows, depth, num_columns in SHAPES:
        a, b = draw(num_rows, depth), draw(depth, num_columns)
        rows = {
            f"exact {accumulator.name}": multiply_exact(a, b, accumulator, options.k_tile)
            for accumulator in (FP32, ACCUMULATOR_21)
        }
        rows["torch.matmul fp32"] = multiply_with_library(a, b)
        report(
            f"{num_rows} x {depth} x {num_columns}", a.shape[0] * b.numel(), rows, options.rounds
        )
    measure_convolution(options.k_tile, options.rounds)
    if importlib.util.find_spec("apytypes") is None:
        print("apytypes is not installed")
        return
    a, b = draw(APYTYPES_SIZE, APYTYPES_SIZE), draw(APYTYPES_SIZE, APYTYPES_SIZE)
    rows = {
        "exact fp32": multiply_exact(a, b, FP32, options.k_tile),
        "apytypes": multiply_with_apytypes(a, b),
    }
    report(f"{APYTYPES_SIZE} cubed", APYTYPES_SIZE**3, rows, options.rounds)


def draw(*shape: int) -> Tensor:
    """Numbers of BF16."""
    return torch.randn(shape).bfloat16().float()


def multiply_exact(a: Tensor, b: Tensor, accumulator: Format, k_tile: int) -> Callable[[], object]:
    """The call to measure."""
    return lambda: matmul_exact(a, b, accumulator, k_tile)


def multiply_with_library(a: Tensor, b: Tensor) -> Callable[[], object]:
    """The call to measure."""
    return lambda: a @ b


def multiply_with_apytypes(a: Tensor, b: Tensor) -> Callable[[], object]:
    """Operands in BF16, the accumulator in FP32."""
    import apytypes

    left, right = (
        apytypes.APyFloatArray.from_array(each.numpy(), exp_bits=8, man_bits=7) for each in (a, b)
    )

    def run() -> object:
        with apytypes.APyFloatAccumulatorContext(exp_bits=8, man_bits=23):
            return left @ right

    return run


def measure_convolution(k_tile: int, num_rounds: int) -> None:
    """Forward and both gradients of one layer, which are three times the products."""
    input, weight = (draw(*shape) for shape in CONVOLUTION)
    grad = draw(*input.shape)
    window = ([1, 1], [1, 1], [1, 1], False, [0, 0], 1)

    def train_with(
        convolve: Callable[..., object], convolve_backward: Callable[..., object]
    ) -> Callable[[], object]:
        def run() -> None:
            convolve(input, weight, None, *window)
            convolve_backward(grad, input, weight, None, *window, [True, True, False])

        return run

    rows = {}
    for accumulator in (FP32, ACCUMULATOR_21):
        ops = ExactOps(accumulator, k_tile)
        rows[f"exact {accumulator.name}"] = train_with(ops.convolution, ops.convolution_backward)
    aten = torch.ops.aten
    rows["torch fp32"] = train_with(aten.convolution, aten.convolution_backward)
    num_products = 3 * input.numel() * weight.numel() // weight.shape[1]
    report(
        f"convolution {CONVOLUTION[0]} * {CONVOLUTION[1]} and its gradients",
        num_products, rows, num_rounds,
    )  # fmt: skip


def report(
    title: str, num_products: int, rows: dict[str, Callable[[], object]], num_rounds: int
) -> None:
    """Measure the rows in turn, print each."""
    repeats = {}
    for name, run in rows.items():
        run()  # compiles
        start = time.perf_counter()
        run()
        repeats[name] = max(1, int(SHORTEST_S / (time.perf_counter() - start)))
    rates: dict[str, list[float]] = {name: [] for name in rows}
    for _ in range(num_rounds):
        for name, run in rows.items():
            start = time.perf_counter()
            for _ in range(repeats[name]):
                run()
            elapsed_s = time.perf_counter() - start
            rates[name].append(num_products * repeats[name] / elapsed_s / 1e6)
    print(title)
    for name, values in rates.items():
        low, middle, high = statistics.quantiles(values, n=4)
        print(f"  {name:22} {middle:9.0f} [{low:.0f} .. {high:.0f}]")


if __name__ == "__main__":
    main()
