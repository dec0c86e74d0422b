"""Codes against the exact value of each; two formats also against ml_dtypes."""

from dataclasses import replace

import ml_dtypes
import numpy as np
import pytest
import torch
from fsdtrain_dojo.arithmetic.codes import code_dtype, decode, encode
from fsdtrain_dojo.formats import (
    ACCUMULATOR_21,
    BF16,
    CFLOAT8_1_4_3,
    CFLOAT8_1_5_2,
    CFLOAT16_SHP,
    CFLOAT16_UHP,
    FP32,
    Denormals,
    Format,
)

from fsdtrain.backend import BackendError

TINY = replace(CFLOAT8_1_4_3, name="tiny", exponent_bits=2, mantissa_bits=2)
CASES = [
    (format.with_denormals(denormals), bias)
    for format in (CFLOAT8_1_4_3, CFLOAT8_1_5_2, CFLOAT8_1_5_2.with_specials(True), TINY)
    for denormals in Denormals
    for bias in (0, 15, 63)
] + [
    (CFLOAT16_SHP, 63),
    (CFLOAT16_SHP.with_denormals(Denormals.LITERAL), 15),
    (CFLOAT16_UHP, 31),
    (BF16, 127),
]


def all_codes(format: Format) -> torch.Tensor:
    return torch.arange(1 << format.num_bits).to(code_dtype(format))


@pytest.mark.parametrize(("format", "bias"), CASES)
def test_every_code_decodes_to_its_exact_value_and_back(format: Format, bias: int) -> None:
    codes = all_codes(format)
    numbers = decode(codes, format, bias)
    exact = np.array([float(format.value(code, bias)) for code in range(len(codes))])
    np.testing.assert_array_equal(numbers.numpy(), exact)
    if format.sign_bits:
        assert torch.equal(torch.signbit(numbers), torch.arange(len(codes)) >= len(codes) // 2)
    again = encode(numbers, format, bias)
    kept = ~torch.isnan(numbers)
    if format.denormals is Denormals.FLUSH:  # several codes of zero
        kept &= (numbers != 0) | (codes == 0)
    assert again.dtype == codes.dtype
    assert torch.equal(again[kept], codes[kept])
    assert torch.isnan(decode(again, format, bias)[torch.isnan(numbers)]).all()


@pytest.mark.parametrize(
    ("format", "bias", "code", "value"),
    [
        (CFLOAT8_1_4_3, 0, 0x08, 2.0),
        (CFLOAT8_1_4_3, 0, 0x7F, 1.875 * 2.0**15),
        (CFLOAT8_1_4_3, 31, 0x08, 2.0**-30),
        (CFLOAT8_1_4_3, 31, 0x7F, 1.875 * 2.0**-16),
        (CFLOAT8_1_4_3, 63, 0xFF, -1.875 * 2.0**-48),
        (CFLOAT8_1_5_2, 31, 0x04, 2.0**-30),
        (CFLOAT8_1_5_2, 31, 0x7F, 1.75),
        (CFLOAT8_1_5_2, 63, 0x7F, 1.75 * 2.0**-32),
    ],
)
def test_the_white_papers_own_examples(format: Format, bias: int, code: int, value: float) -> None:
    assert decode(torch.tensor(code, dtype=torch.uint8), format, bias).item() == value
    assert encode(torch.tensor(value), format, bias).item() == code


def test_bfloat16_codes_are_those_of_ml_dtypes() -> None:
    numbers = np.random.default_rng(0).standard_normal(5000).astype(np.float32)
    numbers[:4] = np.inf, -np.inf, 0, -0.0
    expected = numbers.astype(ml_dtypes.bfloat16).view(np.int16)
    assert np.array_equal(encode(torch.from_numpy(numbers), BF16, 127).numpy(), expected)


def test_codes_of_ieee_like_e5m2_are_those_of_ml_dtypes() -> None:
    ieee = CFLOAT8_1_5_2.with_specials(True)
    numbers = np.random.default_rng(0).standard_normal(5000).astype(np.float32)
    numbers *= np.float32(2) ** np.random.default_rng(1).integers(-20, 18, 5000)
    expected = numbers.astype(ml_dtypes.float8_e5m2).view(np.uint8)
    assert np.array_equal(encode(torch.from_numpy(numbers), ieee, 15).numpy(), expected)


@pytest.mark.parametrize(("number", "code"), [(1e9, 0x7F), (-1e9, 0xFF), (np.nan, 0x7F)])
def test_what_cfloat8_cannot_hold_is_clamped(number: float, code: int) -> None:
    assert encode(torch.tensor(number), CFLOAT8_1_4_3, 7).item() == code


def test_memory_order_is_kept_and_holes_are_closed() -> None:
    image = torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last)
    codes = encode(image, CFLOAT8_1_4_3, 7)
    assert codes.stride() == image.stride()
    assert torch.equal(codes.contiguous(), encode(image.contiguous(), CFLOAT8_1_4_3, 7))
    assert torch.equal(
        decode(codes[:, ::2], CFLOAT8_1_4_3, 7), decode(codes, CFLOAT8_1_4_3, 7)[:, ::2]
    )


def test_decoding_into_given_memory() -> None:
    codes = torch.arange(256).to(torch.uint8).view(16, 16)
    out = torch.empty(16, 16)
    assert decode(codes, CFLOAT8_1_5_2, 15, out=out) is out
    assert torch.equal(out, decode(codes, CFLOAT8_1_5_2, 15))
    with pytest.raises(BackendError, match=r"strides \(1, 16\)"):
        decode(codes, CFLOAT8_1_5_2, 15, out=out.t())


def test_encoding_leaves_its_operand_alone() -> None:
    numbers = torch.randn(100)
    before = numbers.clone()
    encode(numbers, CFLOAT16_SHP, 15)
    assert torch.equal(numbers, before)


@pytest.mark.parametrize("format", [FP32, ACCUMULATOR_21])
def test_wide_formats_have_no_codes(format: Format) -> None:
    with pytest.raises(BackendError, match=f"{format.name} has {format.num_bits} bits"):
        encode(torch.zeros(3), format, format.bias)


def test_bad_operands_are_named() -> None:
    with pytest.raises(BackendError, match=r"uint8, not torch\.int16"):
        decode(torch.zeros(3, dtype=torch.int16), CFLOAT8_1_4_3, 7)
    with pytest.raises(BackendError, match="bias 64"):
        decode(torch.zeros(3, dtype=torch.uint8), CFLOAT8_1_4_3, 64)
    with pytest.raises(BackendError, match=r"not torch\.float64"):
        encode(torch.zeros(3, dtype=torch.float64), CFLOAT8_1_4_3, 7)
    with pytest.raises(BackendError, match="on meta"):
        encode(torch.zeros(3, device="meta"), CFLOAT8_1_4_3, 7)
