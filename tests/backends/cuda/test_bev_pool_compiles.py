"""What the interpreter does not see: Triton compiles bev_pool's kernels for an H100, without one.

The interpreter has no types; the compiler also makes constants of all arguments that are one.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

# Triton interprets in this process, so that it compiles in another.
COMPILE = """
import sys
import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction
from fsdtrain_cuda.kernels.bev_pool_backward import send_back
from fsdtrain_cuda.kernels.bev_pool_kernels import sum_cells, sum_chunks
from fsdtrain_cuda.kernels.channel_groups import group_channels
from fsdtrain_cuda.kernels.frustum_cells import locate


def pointers(values, depth, geometry):
    wide = "fp64" if "fp64" in (values, depth) else "fp32"
    kinds = {
        "feats": values, "grad": values, "sums": values, "feats_grad": values,
        "depth": depth, "depth_grad": depth, "parts": wide,
        "keys": "i32", "starts": "i32", "order": "i64",
        "depths": geometry, "intrinsics": geometry, "poses": geometry,
    }
    return {name + "_ptr": "*" + kind for name, kind in kinds.items()}


def build(kernel, types, constants, config, sizes):
    '''`sizes`: how the other arguments are given: i64 (strides; others i32) or one.'''
    kernel = kernel if isinstance(kernel, JITFunction) else kernel.fn  # as `tuned` wraps it
    signature, known = {}, {}
    for place, name in enumerate(kernel.arg_names):
        if name in constants or (sizes == "one" and name not in types):
            signature[name], known[place,] = "constexpr", constants.get(name, 1)
        else:
            number = "i64" if sizes == "i64" and "stride" in name else "i32"
            signature[name] = types.get(name, number)
    options = {"num_warps": config.num_warps, "enable_fp_fusion": kernel is not locate}
    source = ASTSource(kernel, signature, known)
    done = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
    return done.asm["ptx"]


for case in sys.argv[1:]:
    values, depth, geometry, channels, sizes = case.split()
    types = pointers(values, depth, geometry)
    group, main, tail = group_channels(int(channels))
    wide = getattr(tl, "float" + types["parts_ptr"][-2:])
    tile = {
        "C": int(channels), "D": 59, "GROUP": group, "MAIN": main, "TAIL": tail, "CHUNK": 128,
        "ACCUMULATE": wide, "IS_DEPTH_DENSE": sizes != "i64", "NUM_BLOCKS": 1 + (sizes == "i64"),
    }
    for kernel in (sum_cells, send_back):
        config = kernel.configs[0]
        build(kernel, types, tile | config.kwargs, config, sizes)
    build(sum_chunks, types, tile | {"BLOCK_P": 32}, triton.Config({}, num_warps=2), sizes)
    place = {
        "ROW_SCALE": 16.0, "COLUMN_SCALE": 15.9, "X_MIN": -51.2, "Y_MIN": 0.0, "Z_MIN": -10.0,
        "PER_CELL": 1.25, "PER_HEIGHT": 0.05, "X": 128, "Y": 1, "BLOCK_P": 32, "BLOCK_D": 64,
        "DTYPE": getattr(tl, "float" + geometry[2:]),
    }
    ptx = build(locate, types, place, triton.Config({}), sizes)
    assert "fma." not in ptx, "coordinates would not be the reference's to the last bit"
"""


def test_kernels_compile_for_an_h100(tmp_path: Path) -> None:
    pytest.importorskip("triton")
    cases = ("bf16 fp32 fp32 80 i64", "fp64 fp64 fp64 1 one")
    command = [sys.executable, "-c", COMPILE, *cases]
    environment = {**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
