"""The benches run what they say, and count what must move; on small inputs, in the interpreter."""

from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")
pytest.importorskip("fsdtrain_cuda.kernels.occupancy_loss")

from bench_kernels import NOT_MEASURED, as_markdown, gather_rows, measure, summarise
from fsdtrain_dojo.arithmetic.rounding import Rounding
from kernel_cases import (
    CASES,
    Case,
    bev_pool_case,
    ms_deform_attn_case,
    occupancy_loss_case,
    round_plainly,
    round_to_case,
    yuv_to_input_case,
)

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SMALL_POOL = {"batch": 1, "cameras": 1, "depths": 2, "channels": 3, "cells": 8}
SMALL = [
    bev_pool_case(**SMALL_POOL, is_backward=False),
    bev_pool_case(**SMALL_POOL, is_backward=True),
    ms_deform_attn_case(is_backward=False, cameras=1, queries=2, levels=((3, 4), (2, 3))),
    ms_deform_attn_case(is_backward=True, cameras=1, queries=2, levels=((3, 4), (2, 3))),
    yuv_to_input_case(num_pictures=2, stored=(32, 48), size=(8, 16)),
    occupancy_loss_case(shape=(1, 4, 5, 3), num_classes=4),
]


@pytest.mark.parametrize("case", SMALL, ids=lambda case: case.name)
def test_kernel_and_plain_do_the_same(case: Case) -> None:
    torch.manual_seed(0)
    bench = case.make(DEVICE)
    found, expected = as_tensors(bench.kernel()), as_tensors(bench.plain())
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        scale = other.double().abs().max().item()
        assert (one.double() - other.double()).abs().max().item() <= 0.02 * scale
    assert bench.min_bytes > 0


def as_tensors(result: Any) -> list[Tensor]:
    return [result] if isinstance(result, Tensor) else list(result)


def test_bytes_by_hand() -> None:
    bench = occupancy_loss_case(shape=(1, 4, 5, 3), num_classes=4).make("cpu")
    # Per voxel: four logits and their gradient of two bytes, a class of eight, a flag of one.
    assert bench.min_bytes == 60 * (4 * 2 * 2 + 8 + 1)
    bench = round_to_case(Rounding.NEAREST, share_of_copy=0.85, num_elements=100).make("cpu")
    assert bench.min_bytes == 800
    bench = yuv_to_input_case(num_pictures=2, stored=(32, 48), size=(8, 16)).make("cpu")
    assert bench.min_bytes == 2 * (32 * 48 * 3 // 2 + 3 * 8 * 16 * 2)


def test_the_plain_rounding_is_the_kernels() -> None:
    generator = torch.Generator().manual_seed(3)
    values = torch.randn(1000, generator=generator) * 10
    from fsdtrain_dojo.arithmetic.rounding import NUM_COUNTS, make_rounder
    from fsdtrain_dojo.formats import find_format

    plain = round_plainly(values, is_stochastic=False)[0]
    make_rounder(find_format("cfloat8_1_4_3"), Rounding.NEAREST)(
        values, 7, torch.zeros(NUM_COUNTS, dtype=torch.int64)
    )
    assert torch.equal(plain, values)


def test_rows_are_gathered_and_summed() -> None:
    table = torch.randn(40, 16).to(torch.bfloat16)
    index = torch.randint(40, (3 * 8,), dtype=torch.int32)
    sums = torch.empty(3, 16)
    inputs = [each.to(DEVICE) for each in (table, index, sums)]
    gather_rows[(3,)](*inputs, NUM_ROWS=8, BLOCK_ROWS=4, ROW_WIDTH=16)
    expected = table.float()[index.long()].view(3, 8, 16).sum(1)
    assert torch.allclose(inputs[2].cpu(), expected, atol=1e-4)


def test_a_row_without_a_gpu_says_so() -> None:
    row = measure(SMALL[-1], None, 100)
    assert row["cold"] == row["ratio_cold"] == row["speed_up"] == NOT_MEASURED
    record = {"device": "no GPU", "torch": "2", "triton": "3", "origin": NOT_MEASURED,
              "limits_per_s": None, "rows": [row]}  # fmt: skip
    text = as_markdown(record)
    assert text.count(NOT_MEASURED) >= 6
    assert "us" not in text.splitlines()[-1].replace(NOT_MEASURED, "").replace("occupancy_loss", "")


def test_a_measured_row_is_a_line_of_figures() -> None:
    times = {"median_us": 20.0, "p10_us": 19.0, "p90_us": 22.0, "is_graph": True}
    row = {
        "case": "k", "sizes": "s", "goal_of_limit": 1.25, "limit_us": 16.0, "cold": times,
        "hot": times, "plain_cold": times | {"median_us": 200.0}, "ratio_cold": 1.25,
        "speed_up": 10.0,
    }  # fmt: skip
    record = {"device": "GPU", "torch": "2", "triton": "3", "origin": "MEASURED",
              "limits_per_s": {"copy_bytes": 3e12}, "rows": [row]}  # fmt: skip
    text = as_markdown(record)
    expected = (
        "| k | s | 16.0 us | 20.0 (19.0-22.0) us | 20.0 us | 1.25 | 1.25 | 200.0 us | 10.0x |"
    )
    assert text.splitlines()[-1] == expected
    assert "copy_bytes 3.00 T/s" in text


def test_medians_and_tenths() -> None:
    times = summarise([float(value) for value in range(101)], is_graph=False)
    assert (times.p10_us, times.median_us, times.p90_us) == (10.0, 50.0, 90.0)


def test_every_kernel_of_the_figures_has_a_case() -> None:
    names = {case.name for case in CASES}
    assert names >= {
        "bev_pool forward", "bev_pool backward", "yuv_to_input", "round_to nearest",
        "round_to stochastic", "occupancy_loss forward + backward", "ms_deform_attn forward",
        "ms_deform_attn backward",
    }  # fmt: skip
