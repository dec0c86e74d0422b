"""The GPU kernel in Triton's interpreter against the CPU kernel: same bits, same counts."""

import os
import subprocess
import sys

import pytest

# The interpreter is chosen when triton is imported, so the comparison runs in a process of its own.
COMPARE = """
import sys
import numpy as np
import torch
from fsdtrain_dojo.arithmetic import rounding_triton
from fsdtrain_dojo.arithmetic.grid import make_grid, make_kind
from fsdtrain_dojo.arithmetic.rounding import NUM_COUNTS, Rounding, make_rounder
from fsdtrain_dojo.formats import Denormals, find_format

for case in sys.argv[1:]:
    name, rounding, denormals, specials, bias, *size = case.split()
    format = find_format(name).with_denormals(Denormals(denormals))
    if specials == "specials":
        format = format.with_specials(True)
    rounding, bias, key, first = Rounding(rounding), int(bias), (3 << 30, 77), 2**32 - 1000
    generator = np.random.default_rng(0)
    numbers = np.concatenate([
        generator.integers(0, 2**32, 1000, dtype=np.uint32).view(np.float32),
        (2.0 ** (generator.uniform(-20, 20, 2000) + 7 - bias)).astype(np.float32),
        np.array([0.0, -0.0, np.inf, -np.inf, np.nan, -np.nan, 1e-45, -1e-45], np.float32),
    ])
    if size:  # from the end, so that the special values are in the last block
        numbers = np.resize(numbers[::-1], int(size[0]))[::-1]
    ours = torch.from_numpy(numbers.copy())
    reference = ours.clone()
    counts = torch.ones(2, NUM_COUNTS, dtype=torch.int64)
    grid = torch.from_numpy(make_grid(format, bias).words().view("int32"))
    kind = make_kind(format, stochastic=rounding is Rounding.STOCHASTIC)
    rounding_triton.run(kind, ours, counts[0], grid, key, first)
    make_rounder(format, rounding)(reference, bias, counts[1], key, first)
    assert counts[0].tolist() == counts[1].tolist(), (case, counts)
    assert torch.equal(ours.view(torch.int32), reference.view(torch.int32)), case
"""
CASES = [
    f"{name} {rounding} {rest}"
    for rounding in ("nearest", "stochastic")
    for name, rest in [
        ("cfloat8_1_4_3", "gradual - 7"),
        ("cfloat8_1_4_3", "literal - 7"),
        ("cfloat8_1_5_2", "flush - 63"),
        ("cfloat8_1_5_2", "gradual specials 15"),
        ("cfloat16_shp", "gradual - 15"),
        ("cfloat16_uhp", "gradual - 31"),
        ("bf16", "gradual - 127"),
    ]
] + ["fp32 nearest gradual - 127"]
# Around the edges of a block and of what all programs take at once: 1,024 numbers, three programs.
SIZES = (1, 15, 1023, 1024, 1025, 2048, 3071, 3072, 3073, 4096, 7168, 10001)
CASES += [f"cfloat8_1_4_3 stochastic gradual - 7 {size}" for size in SIZES]
CASES += [f"cfloat16_uhp nearest gradual - 31 {size}" for size in (1, 1025, 3073)]
CASES += [f"fp32 nearest gradual - 127 {size}" for size in (1, 1025, 3073)]


def test_same_bits_and_counts_as_on_the_cpu() -> None:
    pytest.importorskip("triton")
    command = [sys.executable, "-c", COMPARE, *CASES]
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
