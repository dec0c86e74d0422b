"""Triton's compiler takes the kernels, for an H100 that need not be here.

The interpreter forgives what the compiler does not: types that change in a loop, constants that
are assigned twice. What is compiled is what the launchers pass; nothing is launched.
"""

import json
import os
import subprocess
import sys

import pytest

# Whether Triton compiles or interprets is settled when it is imported: in a process of its own.
COMPILE = """
import json
import re
import torch
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from fsdtrain_cuda.kernels import ms_deform_attn, ms_deform_attn_backward
from fsdtrain_cuda.tuning import TunedKernel

class H100:
    def get_current_target(self):
        return GPUTarget("cuda", 90, 32)
    def get_current_device(self):
        return 0
    def get_current_stream(self, device):
        return 0

found = {}

def compile_only(self, *args, **kwargs):
    chosen = self.configs[0].all_kwargs()
    ptx = self.fn.run(*args, **{**kwargs, **chosen, "warmup": True}).asm["ptx"]
    found[self.base_fn.__name__ + " adds" * bool(kwargs.get("ADDS"))] = {
        "vector_loads": len(re.findall(r"ld\\.global[.\\w:]*\\.v[24]\\.b32", ptx)),
        "atomics": len(re.findall(r"(?:red|atom)\\.global[.\\w]*", ptx)),
    }

driver.set_active(H100())
TunedKernel.run = compile_only
B, Q, H, P, C, sizes = 1, 16, 8, 4, 32, (4, 6, 2, 3)
value = torch.zeros(B, 30, H, C, dtype=torch.bfloat16)
locations, weights = torch.zeros(B, Q, H, 2, P, 2), torch.zeros(B, Q, H, 2, P)
ms_deform_attn.attend_op._init_fn(value, locations, weights, list(sizes))
for is_deterministic in (False, True):
    torch.use_deterministic_algorithms(is_deterministic)
    grad = torch.zeros(B, Q, H * C, dtype=torch.bfloat16)
    ms_deform_attn_backward.launch_backward(grad, value, locations, weights, sizes)
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def compiled() -> dict[str, dict[str, int]]:
    pytest.importorskip("triton")
    environment = {**os.environ, "TRITON_INTERPRET": "0"}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", COMPILE],
        capture_output=True, text=True, env=environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found: dict[str, dict[str, int]] = json.loads(done.stdout)
    return found


def test_every_kernel_compiles(compiled: dict[str, dict[str, int]]) -> None:
    assert set(compiled) == {
        "attend", "differentiate", "differentiate adds", "sum_pieces", "sum_cells",
    }  # fmt: skip


def test_channels_are_read_in_vectors(compiled: dict[str, dict[str, int]]) -> None:
    """The four pixels of a sample; in the backward pass the result's gradient, too."""
    assert compiled["attend"]["vector_loads"] >= 4
    assert compiled["differentiate adds"]["vector_loads"] >= 5
    assert compiled["differentiate"]["vector_loads"] >= 5
    assert compiled["sum_pieces"]["vector_loads"] >= 1
    assert compiled["sum_cells"]["vector_loads"] >= 4


def test_only_the_fast_gradient_has_atomics(compiled: dict[str, dict[str, int]]) -> None:
    with_atomics = [name for name, each in compiled.items() if each["atomics"]]
    assert with_atomics == ["differentiate adds"]
