"""Signal to noise and histograms against numpy."""

import numpy as np
import pytest
import torch
from fsdtrain_dojo.measurement import measure

from fsdtrain.backend import HISTOGRAM_BINS, HISTOGRAM_MIN_EXPONENT


@pytest.mark.parametrize("shape", [(1,), (3, 5, 7), (2, 8, 4, 6)])
@pytest.mark.parametrize("channels_last", [False, True])
def test_against_numpy(shape: tuple[int, ...], channels_last: bool) -> None:
    generator = torch.Generator().manual_seed(len(shape))
    before = torch.randn(shape, generator=generator) * torch.exp2(
        torch.randint(-90, 50, shape, generator=generator)
    )
    if channels_last and len(shape) == 4:
        before = before.contiguous(memory_format=torch.channels_last)
    after = before.bfloat16().float()
    if before.numel() > 1:
        before[0], after[0] = 0.0, 0.0
    found = measure(before, after, bias=3)
    x, q = before.double().numpy(), after.double().numpy()
    wanted = 10 * np.log10((x**2).sum() / ((q - x) ** 2).sum())
    assert found.snr_db == pytest.approx(wanted, rel=1e-9)
    assert found.bias == 3
    exponents = np.floor(np.log2(np.abs(x[x != 0]))).astype(int)
    places = np.clip(exponents - HISTOGRAM_MIN_EXPONENT, 0, HISTOGRAM_BINS - 1)
    assert list(found.exponent_histogram) == np.bincount(places, minlength=HISTOGRAM_BINS).tolist()


def test_what_is_not_finite_counts_for_nothing() -> None:
    before = torch.tensor([float("nan"), float("inf"), 3.0, 1.0, 0.0])
    after = torch.tensor([480.0, 480.0, float("inf"), 1.5, 0.0])
    found = measure(before, after, bias=7)
    assert found.snr_db == pytest.approx(10 * np.log10(1 / 0.25))
    assert sum(found.exponent_histogram) == 1
    assert found.exponent_histogram[-HISTOGRAM_MIN_EXPONENT] == 1


@pytest.mark.parametrize("after", [[1.0, 2.0], [0.0, 0.0]])
def test_without_noise_or_without_signal_there_is_no_ratio(after: list[float]) -> None:
    rounded = torch.tensor(after)
    assert measure(rounded.clone(), rounded, bias=7).snr_db is None


def test_denormals_of_float32_are_in_the_first_bin() -> None:
    before = torch.tensor([2.0**-149, 2.0**-64, 2.0**-63])
    histogram = measure(before, torch.zeros(3), bias=7).exponent_histogram
    assert histogram[:2] == (2, 1)
