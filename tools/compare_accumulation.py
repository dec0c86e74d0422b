"""States how far exact accumulation and the library's lie from float64, and from one another.

    python tools/compare_accumulation.py [--k-tile 256] [--seed 0] [--depths 64 1024 16384]

Operands are numbers of BF16 or CFloat8 1-4-3. "random" is a normal distribution; "cancelling" has
every product twice with opposite signs, in random places, beside a few that are left over and are
all there is to the result. Every figure is the norm of a difference relative to the norm of the
float64 result, whose own error is far below.
"""

import argparse
from collections.abc import Callable, Sequence

import torch
from fsdtrain_dojo.arithmetic.exact_ops import ExactOps
from fsdtrain_dojo.arithmetic.rounding import NUM_COUNTS, Rounding, make_rounder
from fsdtrain_dojo.formats import ACCUMULATOR_21, BF16, CFLOAT8_1_4_3, FP32, Format
from torch import Tensor

SIZE = 32  # rows and columns of the matrices
NUM_LEFT_OVER = 8  # products of a cancelling sum that have no partner
IMAGE = (4, 12, 12)  # images, height, width of the convolutions
ROW = "{:12} {:14} {:11} {:>6} | {:>9} {:>10} {:>13} | {:>10} {:>13}"


def main() -> None:
    """Parse the arguments, print a row per operator, operands, inputs, depth and accumulation."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--k-tile", type=int, default=256)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--depths", type=int, nargs="+", default=[64, 256, 1024, 4096, 16384])
    options = parser.parse_args()
    torch.manual_seed(options.seed)
    print(f"EMULATED: relative errors of accumulation, K-tile {options.k_tile}")
    print(ROW.format("", "", "", "", "from", "float64", "", "from", "library"))
    names = ("exact fp32", "exact 21 bits")
    print(ROW.format("operator", "operands", "inputs", "K", "library", *names, *names))
    for operands in (CFLOAT8_1_4_3, BF16):
        for draw in (draw_random, draw_cancelling):
            for depth in options.depths:
                left, right = draw(operands, depth)
                compare("mm", operands, draw, [left, right], options.k_tile)
    for operands in (CFLOAT8_1_4_3, BF16):
        for num_channels in (16, 256):
            images, height, width = IMAGE
            input = quantize(torch.randn(images, num_channels, height, width), operands)
            weight = quantize(torch.randn(SIZE, num_channels, 3, 3), operands)
            compare("convolution", operands, draw_random, [input, weight], options.k_tile)


def quantize(values: Tensor, target: Format) -> Tensor:
    """`values` as the format holds them, at a bias that suits numbers around one."""
    counts = torch.zeros(NUM_COUNTS, dtype=torch.int64)
    make_rounder(target, Rounding.NEAREST)(values, target.bias, counts)
    return values


def draw_random(operands: Format, depth: int) -> tuple[Tensor, Tensor]:
    """Normally distributed matrices [SIZE, depth] and [depth, SIZE]."""
    left, right = torch.randn(SIZE, depth), torch.randn(depth, SIZE)
    return quantize(left, operands), quantize(right, operands)


def draw_cancelling(operands: Format, depth: int) -> tuple[Tensor, Tensor]:
    """The same with a partner of opposite sign for all columns but a few, in random places."""
    half = (depth - NUM_LEFT_OVER) // 2
    left, right = draw_random(operands, depth - half)
    places = torch.randperm(depth)
    left = torch.cat([left, -left[:, :half]], 1)[:, places]
    right = torch.cat([right, right[:half]])[places]
    return left, right


def compare(
    operator: str,
    operands: Format,
    draw: Callable[..., object],
    tensors: Sequence[Tensor],
    k_tile: int,
) -> None:
    """Print the row of one operator on one pair of tensors."""
    arguments: tuple[object, ...] = ()
    depth = tensors[1].shape[0]
    if operator == "convolution":
        arguments = (None, [1, 1], [1, 1], [1, 1], False, [0, 0], 1)
        depth = tensors[1][0].numel()
    library_op = getattr(torch.ops.aten, operator)
    reference = library_op(*(tensor.double() for tensor in tensors), *arguments)
    library = library_op(*tensors, *arguments).double()
    exact = [
        getattr(ExactOps(accumulator, k_tile), operator)(*tensors, *arguments).double()
        for accumulator in (FP32, ACCUMULATOR_21)
    ]
    from_reference = [result - reference for result in (library, *exact)]
    from_library = [result - library for result in exact]
    errors = [
        f"{(difference.norm() / reference.norm()).item():.2e}"
        for difference in from_reference + from_library
    ]
    inputs = draw.__name__.removeprefix("draw_")
    print(ROW.format(operator, operands.name, inputs, depth, *errors))


if __name__ == "__main__":
    main()
