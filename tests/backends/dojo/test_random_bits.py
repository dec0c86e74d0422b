"""The generator: reproducible, keyed by everything it should be, uniform and independent."""

import numpy as np
import pytest
from fsdtrain_dojo.arithmetic.random_bits import random_bits, stream_key
from scipy.stats import chi2

NUM = 1 << 22
ELEMENTS = np.arange(NUM, dtype=np.uint64)
KEY = stream_key(42, 100, 7)


def p_value(observed: np.ndarray, num_cells: int) -> float:
    """Chi-square: how likely a uniform source deviates at least as far."""
    counts = np.bincount(observed, minlength=num_cells)
    expected = len(observed) / num_cells
    return float(chi2.sf(np.sum((counts - expected) ** 2) / expected, num_cells - 1))


def test_written_down_once() -> None:
    """Runs resumed with a later version must go on with the same numbers."""
    assert stream_key(0, 0, 0) == (956087953, 595752380)
    elements = np.array([0, 1, 2**32, 2**40 + 5], np.uint64)
    expected = [3599786941, 3291408068, 632647616, 3513201046]
    assert random_bits((1, 2), elements).tolist() == expected


@pytest.mark.parametrize("shift", [0, 8, 16, 24])
def test_every_byte_is_uniform(shift: int) -> None:
    byte = random_bits(KEY, ELEMENTS) >> np.uint32(shift) & np.uint32(255)
    assert 1e-4 < p_value(byte, 256) < 1 - 1e-4


@pytest.mark.parametrize("num_bits", [10, 13, 16])
def test_the_bits_that_rounding_uses_are_uniform(num_bits: int) -> None:
    used = random_bits(KEY, ELEMENTS) >> np.uint32(32 - num_bits)
    assert 1e-4 < p_value(used, 1 << num_bits) < 1 - 1e-4


def test_a_high_word_of_the_index_is_as_uniform() -> None:
    used = random_bits(KEY, ELEMENTS + np.uint64(3 << 32)) >> np.uint32(20)
    assert 1e-4 < p_value(used, 1 << 12) < 1 - 1e-4


@pytest.mark.parametrize(
    ("key", "first_element"),
    [
        (stream_key(43, 100, 7), 0),
        (stream_key(42, 101, 7), 0),
        (stream_key(42, 100, 8), 0),
        (stream_key(42, 7, 100), 0),
        (KEY, 1),
        (KEY, 2),
        (KEY, 256),
        (KEY, 4096),
        (KEY, 1 << 16),
        (KEY, 1 << 32),
    ],
    ids=[
        "seed",
        "step",
        "site",
        "swapped",
        "next",
        "second",
        "row",
        "long row",
        "far",
        "high word",
    ],
)
def test_neighbours_are_independent(key: tuple[int, int], first_element: int) -> None:
    ours = random_bits(KEY, ELEMENTS) >> np.uint32(26)
    theirs = random_bits(key, ELEMENTS + np.uint64(first_element)) >> np.uint32(26)
    assert 1e-4 < p_value(ours * np.uint32(64) + theirs, 1 << 12) < 1 - 1e-4


def test_first_elements_of_many_tensors_are_uniform() -> None:
    keys = [stream_key(0, step, site) for step in range(100) for site in range(200)]
    first = np.array([random_bits(key, ELEMENTS[:1])[0] for key in keys])
    assert len(set(keys)) == len(keys)
    assert 1e-4 < p_value(first >> np.uint32(24), 256) < 1 - 1e-4
