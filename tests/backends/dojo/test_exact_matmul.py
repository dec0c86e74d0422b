"""Exact accumulation against rational arithmetic rounded as the documented order says.

The reference is written out here with `fractions`; it shares nothing with the kernel.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from fractions import Fraction

import numpy as np
import pytest
import torch
from fsdtrain_dojo.arithmetic import exact_matmul
from fsdtrain_dojo.arithmetic.exact_matmul import MatrixUnit, matmul_exact
from fsdtrain_dojo.formats import (
    ACCUMULATOR_21,
    BF16,
    CFLOAT8_1_4_3,
    CFLOAT16_UHP,
    FP32,
    Denormals,
    Format,
)
from numpy.typing import NDArray
from torch import Tensor

from fsdtrain.backend import BackendError

INF, NAN = float("inf"), float("nan")
ACCUMULATORS = [
    pytest.param(FP32, id="fp32"),
    pytest.param(ACCUMULATOR_21, id="accumulator_21"),
]
Number = Fraction | float  # a float is an infinity or NaN


def round_nearest_even(x: Number, target: Format) -> Number:
    """`x` in the format, by integer division; IEEE overflow for FP32, saturation for the other."""
    top = Fraction(target.max_finite(target.bias))
    if isinstance(x, float):
        if target == FP32:
            return x
        return -top if x == -INF else top
    if x == 0:
        return x
    exponent = abs(x.numerator).bit_length() - x.denominator.bit_length()
    if Fraction(2) ** exponent > abs(x):
        exponent -= 1
    exponent = max(exponent, target.min_normal_exponent(target.bias))
    unit = Fraction(2) ** (exponent - target.mantissa_bits)
    quotient, rest = divmod(abs(x), unit)
    if rest * 2 > unit or (rest * 2 == unit and quotient % 2):
        quotient += 1
    magnitude: Number = quotient * unit
    if magnitude > top:
        magnitude = INF if target == FP32 else top
    return -magnitude if x < 0 else magnitude


def add(x: Number, y: Number) -> Number:
    if isinstance(x, float) or isinstance(y, float):
        return (x if isinstance(x, float) else 0.0) + (y if isinstance(y, float) else 0.0)
    return x + y


def product(a: float, b: float) -> Number:
    if math.isfinite(a) and math.isfinite(b):
        return round_nearest_even(Fraction(a) * Fraction(b), FP32)
    return a * b


def dot(left: Sequence[float], right: Sequence[float], accumulator: Format, k_tile: int) -> float:
    """The documented order, one number at a time."""

    def rounded_sum(x: Number, y: Number) -> Number:
        return round_nearest_even(add(x, y), accumulator)

    total: Number = Fraction(0)
    for tile in range(0, len(left), k_tile):
        partial: Number = Fraction(0)
        for k in range(tile, min(tile + k_tile, len(left)), 4):
            pairs = list(zip(left[k : k + 4], right[k : k + 4], strict=True))
            p = [product(a, b) for a, b in pairs] + [Fraction(0)] * (4 - len(pairs))
            step = rounded_sum(rounded_sum(p[0], p[1]), rounded_sum(p[2], p[3]))
            partial = rounded_sum(partial, step)
        total = rounded_sum(total, partial)
    return float(total)


def matmul_reference(a: Tensor, b: Tensor, accumulator: Format, k_tile: int) -> Tensor:
    rows, columns = a.tolist(), b.mT.tolist()
    return torch.tensor(
        [[dot(row, column, accumulator, k_tile) for column in columns] for row in rows]
    ).view(a.shape[0], b.shape[1])


def assert_same_bits(given: Tensor, expected: Tensor) -> None:
    """Equal, and zeros of the same sign; every NaN counts as the same."""
    torch.testing.assert_close(given, expected, rtol=0, atol=0, equal_nan=True)
    is_number = ~expected.isnan()
    assert torch.equal(given.signbit()[is_number], expected.signbit()[is_number])


def draw_bf16(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(shape, generator=generator).bfloat16().float()


def draw_cfloat8(generator: torch.Generator, *shape: int) -> Tensor:
    values = [float(CFLOAT8_1_4_3.value(code, 7)) for code in range(256)]
    return torch.tensor(values)[torch.randint(256, shape, generator=generator)]


def draw_wide_exponents(generator: torch.Generator, *shape: int) -> Tensor:
    """Exponents so far apart that float64 loses the smaller addend."""
    exponent = torch.randint(-40, 41, shape, generator=generator).float()
    return draw_bf16(generator, *shape) * torch.exp2(exponent)


def draw_denormal(generator: torch.Generator, *shape: int) -> Tensor:
    """Products around the smallest numbers of the 21-bit format, 2^-75, and far below."""
    exponent = torch.randint(-45, -30, shape, generator=generator).float()
    return draw_bf16(generator, *shape) * torch.exp2(exponent)


def draw_tiny(generator: torch.Generator, *shape: int) -> Tensor:
    """Products among the denormal numbers of FP32, and below them."""
    exponent = torch.randint(-78, -60, shape, generator=generator).float()
    return draw_bf16(generator, *shape) * torch.exp2(exponent)


def draw_huge(generator: torch.Generator, *shape: int) -> Tensor:
    """Products around the largest numbers of either format."""
    exponent = torch.randint(28, 66, shape, generator=generator).float()
    return draw_bf16(generator, *shape) * torch.exp2(exponent)


def draw_float32(generator: torch.Generator, *shape: int) -> Tensor:
    """Full significands: products are rounded to FP32 first."""
    return torch.randn(shape, generator=generator)


DRAWS = [
    draw_bf16, draw_cfloat8, draw_wide_exponents, draw_denormal, draw_tiny, draw_huge, draw_float32,
]  # fmt: skip


@pytest.mark.parametrize("accumulator", ACCUMULATORS)
@pytest.mark.parametrize("draw", DRAWS)
def test_random_operands_equal_rational_arithmetic(
    draw: Callable[..., Tensor], accumulator: Format
) -> None:
    generator = torch.Generator().manual_seed(3)
    a, b = draw(generator, 5, 45), draw(generator, 45, 9)
    given = matmul_exact(a, b, accumulator, k_tile=16)
    assert_same_bits(given, matmul_reference(a, b, accumulator, 16))


@pytest.mark.parametrize("accumulator", ACCUMULATORS)
@pytest.mark.parametrize("draw", DRAWS)
def test_cancelling_operands_equal_rational_arithmetic(
    draw: Callable[..., Tensor], accumulator: Format
) -> None:
    generator = torch.Generator().manual_seed(4)
    half = draw(generator, 6, 24), draw(generator, 24, 4)
    small = draw(generator, 6, 3), draw(generator, 3, 4)
    order = torch.randperm(51, generator=generator)  # x, -x and what is left, in any places
    a = torch.cat([half[0], -half[0], small[0]], 1)[:, order]
    b = torch.cat([half[1], half[1], small[1]], 0)[order]
    given = matmul_exact(a, b, accumulator, k_tile=20)
    assert_same_bits(given, matmul_reference(a, b, accumulator, 20))


@pytest.mark.parametrize("accumulator", ACCUMULATORS)
@pytest.mark.parametrize(
    ("num_rows", "depth", "num_columns", "k_tile"),
    [(1, 1, 1, 4), (3, 2, 2, 4), (2, 5, 3, 4), (1, 31, 66, 8), (66, 7, 1, 4), (2, 40, 2, 400)],
)
def test_ragged_shapes_equal_rational_arithmetic(
    num_rows: int, depth: int, num_columns: int, k_tile: int, accumulator: Format
) -> None:
    generator = torch.Generator().manual_seed(5)
    a, b = draw_bf16(generator, num_rows, depth), draw_bf16(generator, depth, num_columns)
    given = matmul_exact(a, b, accumulator, k_tile)
    assert_same_bits(given, matmul_reference(a, b, accumulator, k_tile))


def test_half_way_products_and_an_addend_that_float64_cannot_hold_beside_them() -> None:
    """16-bit products lie half-way between 14-bit values: what is 2^-60 away decides."""
    half_way = [(1 + 2**-7, 1 + 2**-7), (129.0, 255.0), (1 + 2**-6, 1 + 3 * 2**-7)]
    addends = [sign * 2.0**exponent for sign in (1, -1) for exponent in (-30, -60, -70)]
    rows, columns = [], []
    for (x, y), tiny, sign in itertools.product(half_way, addends, (1, -1)):
        rows.append([sign * x, tiny, 0.0, 0.0])
        columns.append([y, 2.0**-4, 0.0, 0.0])
    a, b = torch.tensor(rows), torch.tensor(columns).T
    given = matmul_exact(a, b, ACCUMULATOR_21, k_tile=4)
    assert_same_bits(given, matmul_reference(a, b, ACCUMULATOR_21, 4))


def test_order_within_four_steps_is_pairs_first() -> None:
    ones = torch.ones(4, 1)
    a = torch.tensor([[1.0, 2.0**24, 1.0, -(2.0**24)]])
    # Pairs: 2^24 (the 1 is lost) - (2^24 - 1) = 1; one after the other would give 0.
    assert matmul_exact(a, ones, FP32, 4).item() == 1


def test_tile_starts_a_fresh_accumulator() -> None:
    a = torch.tensor([[2.0**24, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0]])
    ones = torch.ones(12, 1)
    assert matmul_exact(a, ones, FP32, 12).item() == 2**24  # each 1 is lost
    reversed_a = a.flip(1)  # 1 + 1 in the first tile, then 2^24
    assert matmul_exact(reversed_a, ones, FP32, 8).item() == 2**24 + 2
    late = torch.tensor([[2.0**24, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0]])
    assert matmul_exact(late, torch.ones(16, 1), FP32, 16).item() == 2**24
    assert matmul_exact(late, torch.ones(16, 1), FP32, 8).item() == 2**24 + 2


@pytest.mark.parametrize("accumulator", ACCUMULATORS)
@pytest.mark.parametrize("k_tile", [260, 4096])
def test_large_product_equals_the_same_order_in_numpy(accumulator: Format, k_tile: int) -> None:
    """Beyond every block of the kernel, in every direction."""
    generator = torch.Generator().manual_seed(6)
    a, b = draw_cfloat8(generator, 300, 530), draw_cfloat8(generator, 530, 70)
    given = matmul_exact(a, b, accumulator, k_tile)
    expected = accumulate_in_numpy(a.numpy(), b.numpy(), accumulator, k_tile)
    assert_same_bits(given, torch.from_numpy(expected))


def accumulate_in_numpy(
    a: NDArray[np.float32], b: NDArray[np.float32], accumulator: Format, k_tile: int
) -> NDArray[np.float32]:
    """All elements at once; CFloat8 operands, whose sums float64 holds."""

    def rounded(x: NDArray[np.float64]) -> NDArray[np.float64]:
        if accumulator == FP32:
            return x.astype(np.float32).astype(np.float64)
        exponent = np.maximum(np.frexp(x)[1] - 1, accumulator.min_normal_exponent(63))
        unit = np.ldexp(1.0, exponent - 13)
        top = accumulator.max_finite(63)
        return np.clip(np.rint(x / unit) * unit, -top, top) + 0.0

    total = np.zeros((a.shape[0], b.shape[1]))
    for tile in range(0, a.shape[1], k_tile):
        partial = np.zeros_like(total)
        for k in range(tile, min(tile + k_tile, a.shape[1]), 4):
            p = [
                np.multiply.outer(a[:, i], b[i]).astype(np.float64) if i < a.shape[1] else 0 * total
                for i in range(k, k + 4)
            ]
            partial = rounded(partial + rounded(rounded(p[0] + p[1]) + rounded(p[2] + p[3])))
        total = rounded(total + partial)
    return total.astype(np.float32)


TOP_21 = (2 - 2.0**-13) * 2.0**64


@pytest.mark.parametrize(
    ("left", "right", "in_fp32", "in_21_bits"),
    [
        pytest.param([INF, 1], [1, 1], INF, TOP_21, id="infinity"),
        pytest.param([-INF, 1], [1, 1], -INF, -TOP_21, id="minus infinity"),
        pytest.param([NAN, 1], [1, 1], NAN, TOP_21, id="nan"),
        pytest.param([INF, INF], [1, -1], NAN, TOP_21, id="infinities that cancel"),
        pytest.param([INF, 1], [0, 1], NAN, TOP_21, id="infinity times zero"),
        pytest.param([2.0**100, 0], [2.0**100, 0], INF, TOP_21, id="overflow of a product"),
        pytest.param([2.0**100, 0], [1, 0], 2.0**100, TOP_21, id="beyond 21 bits"),
        pytest.param([-0.0, -0.0], [1, 1], 0.0, 0.0, id="minus zeros"),
        pytest.param([1, -1], [1, 1], 0.0, 0.0, id="cancelled"),
        pytest.param([-(2.0**-76), 0], [1, 0], -(2.0**-76), 0.0, id="half the smallest"),
        pytest.param([-(2.0**-75), 0], [1, 0], -(2.0**-75), -(2.0**-75), id="the smallest"),
    ],
)
def test_special_values(
    left: list[float], right: list[float], in_fp32: float, in_21_bits: float
) -> None:
    a = torch.tensor([left], dtype=torch.float32)
    b = torch.tensor([right], dtype=torch.float32).T
    assert_same_bits(matmul_exact(a, b, FP32, 4), torch.tensor([[in_fp32]]))
    assert_same_bits(matmul_exact(a, b, ACCUMULATOR_21, 4), torch.tensor([[in_21_bits]]))


def test_what_fills_the_last_steps_is_zero_whatever_was_there_before() -> None:
    """257 steps: the kernel's second block of 256 has one, beside leftovers of the first."""
    a, b = torch.ones(2, 257), torch.ones(257, 2)
    a[1, 1], b[2, 0] = INF, INF
    assert_same_bits(matmul_exact(a, b, FP32, 512), torch.tensor([[INF, 257.0], [INF, INF]]))


@pytest.mark.parametrize("accumulator", ACCUMULATORS)
def test_strides_of_the_operands_do_not_matter(accumulator: Format) -> None:
    generator = torch.Generator().manual_seed(7)
    a, b = draw_bf16(generator, 33, 50), draw_bf16(generator, 50, 90)
    expected = matmul_exact(a, b, accumulator, 16)
    sparse = torch.empty(99, 120)[::3, 5:105:2].copy_(a)
    assert torch.equal(matmul_exact(sparse, b.T.contiguous().T, accumulator, 16), expected)
    assert torch.equal(matmul_exact(b.T, a.T, accumulator, 16).T, expected)
    row = a[:1].expand(4, -1)
    assert torch.equal(matmul_exact(row, b, accumulator, 16), expected[:1].expand(4, -1))


@pytest.mark.parametrize("accumulator", ACCUMULATORS)
@pytest.mark.parametrize("shape", [(1, 2, 13, 200), (7, 2, 13, 10)])
def test_number_of_threads_does_not_matter(
    shape: tuple[int, int, int, int], accumulator: Format, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exact_matmul, "MIN_PRODUCTS_PER_THREAD", 1)
    num, num_rows, depth, num_columns = shape
    generator = torch.Generator().manual_seed(8)
    a, b = draw_bf16(generator, num, num_rows, depth), draw_bf16(generator, num, depth, num_columns)
    unit = MatrixUnit(accumulator, 16)
    expected = torch.stack(
        [matmul_reference(x, y, accumulator, 16) for x, y in zip(a, b, strict=True)]
    )
    num_threads = torch.get_num_threads()
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            assert_same_bits(unit.multiply(a, b), expected)
    finally:
        torch.set_num_threads(num_threads)


@pytest.mark.parametrize(("accumulator", "unit"), [(FP32, 2.0**-24), (ACCUMULATOR_21, 2.0**-14)])
@pytest.mark.parametrize("depth", [16, 256, 4096])
def test_distance_from_the_library_is_what_the_adders_allow(
    depth: int, accumulator: Format, unit: float
) -> None:
    """A number passes at most this many adders, and each rounds by half a unit at most."""
    generator = torch.Generator().manual_seed(9)
    a, b = draw_cfloat8(generator, 8, depth), draw_cfloat8(generator, depth, 8)
    k_tile = 128
    num_adders = 2 + min(depth, k_tile) // 4 + -(-depth // k_tile)
    magnitudes = a.abs().double() @ b.abs().double()
    given = matmul_exact(a, b, accumulator, k_tile).double()
    distance_exact = (given - a.double() @ b.double()).abs()
    assert (distance_exact <= num_adders * unit * magnitudes).all()
    distance_library = (given - (a @ b).double()).abs()
    assert (distance_library <= (num_adders * unit + depth * 2.0**-24) * magnitudes).all()
    if accumulator == ACCUMULATOR_21 and depth == 4096:  # it does round coarsely
        assert (distance_library > 8 * 2.0**-24 * given.abs()).any()


@pytest.mark.parametrize("shape", [(0, 5, 3), (4, 0, 3), (4, 5, 0)])
def test_empty_operands(shape: tuple[int, int, int]) -> None:
    num_rows, depth, num_columns = shape
    given = matmul_exact(torch.ones(num_rows, depth), torch.ones(depth, num_columns), FP32, 4)
    assert torch.equal(given, torch.zeros(num_rows, num_columns))


ONES = torch.ones(4, 4)


@pytest.mark.parametrize(
    ("a", "b", "accumulator", "k_tile", "message"),
    [
        (ONES, torch.ones(3, 4), FP32, 4, r"mm of \[4, 4\] and \[3, 4\]: these shapes do not fit"),
        (ONES, torch.ones(4), FP32, 4, "these shapes do not fit"),
        (ONES, ONES.double(), FP32, 4, r"\[4, 4\] is torch.float64 on cpu; supported is"),
        (ONES, torch.ones(4, 4, device="meta"), FP32, 4, "on meta; supported is"),
        (ONES, ONES, FP32, 6, "K-tile of 6 steps: allowed are positive multiples of 4"),
        (ONES, ONES, FP32, 0, "K-tile of 0 steps"),
        (ONES, ONES, BF16, 4, "format bf16 as an accumulator: allowed are fp32 and"),
        (ONES, ONES, CFLOAT16_UHP, 4, "format cfloat16_uhp as an accumulator"),
        (ONES, ONES, ACCUMULATOR_21.with_denormals(Denormals.LITERAL), 4, "gradual denormals"),
    ],
)
def test_refusals(a: Tensor, b: Tensor, accumulator: Format, k_tile: int, message: str) -> None:
    with pytest.raises(BackendError, match=message):
        matmul_exact(a, b, accumulator, k_tile)
