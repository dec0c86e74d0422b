"""Kernels compiled for a GPU that is not here: the interpreter takes programs the compiler refuses.

Also that loads and stores of the hot loops are 16 bytes wide where the layout allows it.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

# The interpreter is chosen when triton is imported, so this runs in a process of its own.
COMPILE = """
import importlib, json, sys
import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

found = {}
for label, (module, name, types, constants, _) in json.loads(sys.argv[1]).items():
    kernel = getattr(importlib.import_module(module), name)
    while not isinstance(kernel, JITFunction):
        kernel = kernel.fn
    signature, constexprs, attributes = {}, {}, {}
    for i, argument in enumerate(kernel.arg_names):
        if argument in constants:
            value = constants[argument]
            constexprs[i,] = getattr(tl, value, value) if isinstance(value, str) else value
            signature[argument] = "constexpr"
        else:
            signature[argument] = types.get(argument, "i32")
            if signature[argument] != "fp32":
                # Sizes and strides are multiples of 16 here, as they mostly are.
                attributes[i,] = [["tt.divisibility", 16]]
    source = ASTSource(fn=kernel, signature=signature, constexprs=constexprs, attrs=attributes)
    compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32))
    found[label] = compiled.asm["ptx"]
print(json.dumps(found))
"""

KERNELS = "fsdtrain_cuda.kernels"
VIEWS = {"views_ptr": "*i32", "pixels_ptr": "*i32", "fractions_ptr": "*fp32", "counts_ptr": "*i32"}
LOSS = {"logits_ptr": "*bf16", "gradient_ptr": "*bf16", "valid_ptr": "*u8", "parts_ptr": "*fp32"}
# module, kernel, types of what is no int32, constants, instructions
CASES: dict[str, tuple[str, str, dict[str, str], dict[str, Any], list[str]]] = {
    "locate": (
        f"{KERNELS}.project_sample_kernels", "locate",
        VIEWS | {"points_ptr": "*fp32", "intrinsics_ptr": "*fp32", "poses_ptr": "*fp32"},
        {"V": 3, "IS_KEY": False, "BLOCK_P": 128},
        [],
    ),
    "sample": (
        f"{KERNELS}.project_sample_kernels", "sample",
        VIEWS | {"feats_ptr": "*bf16", "sampled_ptr": "*bf16"},
        {"V": 3, "ACCUMULATE": "float32", "BLOCK_C": 64, "BLOCK_P": 64, "stride_c": 1},
        ["ld.global.v4.b32", "st.global.v4.b32"],
    ),
    "gather": (
        f"{KERNELS}.project_sample_kernels", "gather",
        VIEWS
        | {"grad_ptr": "*bf16", "order_ptr": "*i64", "starts_ptr": "*i32"}
        | {"feats_grad_ptr": "*bf16"},
        {"V": 3, "ACCUMULATE": "float32", "BLOCK_C": 64, "BLOCK_E": 32}
        | {"grad_stride_c": 1, "stride_c": 1},
        ["ld.global.v4.b32"],
    ),
    "turn": (
        f"{KERNELS}.project_sample_kernels", "turn",
        {"source_ptr": "*bf16", "turned_ptr": "*bf16"},
        {"BLOCK_P": 64, "BLOCK_C": 64, "stride_p": 1},
        ["ld.global.v4.b32", "st.global.v4.b32"],
    ),
    "occupancy_loss": (
        f"{KERNELS}.occupancy_loss", "_cross_entropy",
        LOSS | {"target_ptr": "*i64", "weights_ptr": "*fp32"},
        {"K": 18, "NEEDS_GRADIENT": True, "BLOCK_K": 32, "BLOCK_M": 128, "STRIDE_M": 18}
        | {"STRIDE_K": 1, "GRADIENT_STRIDE_M": 18, "GRADIENT_STRIDE_K": 1},
        ["ld.global.b32", "st.global.b32"],  # a row has 36 bytes: no wider
    ),
    "focal_loss": (
        f"{KERNELS}.focal_loss", "_focal", LOSS | {"target_ptr": "*u8"},
        {"ALPHA": 0.25, "GAMMA": 2.0, "NEEDS_GRADIENT": True, "BLOCK_N": 1024},
        ["ld.global.v4.b32", "st.global.v4.b32"],
    ),
    **{
        f"yuv_to_input, {layout}, {dtype}": (
            f"{KERNELS}.yuv_to_input_kernels", "sample",
            {"yuv": "*u8", "mirrors": "*u8", "result": f"*{dtype}"}
            | dict.fromkeys(["windows", "sites", "to_rgb", "colours"], "*fp32")
            | {f"{of}_{colour}": "fp32" for of in ("mean", "scale") for colour in "rgb"},
            {"LAYOUT": layout, "PRODUCT": product, "PRECISION": precision}
            | {"BLOCK_h": 16, "BLOCK_w": 32, "BLOCK_R": 32, "BLOCK_C": 128},
            instructions,
        )
        for layout, dtype, product, precision, instructions in (
            ("i420", "bf16", "float16", "tf32", ["mma"]),
            ("nv12", "bf16", "float16", "tf32", ["mma"]),
            ("planar444", "bf16", "float16", "tf32", ["mma"]),
            ("i420", "fp32", "float32", "ieee", []),
        )
    },
    "round_to": (
        "fsdtrain_dojo.arithmetic.rounding_triton", "_round_elements",
        {"numbers_ptr": "*fp32", "counts_ptr": "*i64", "grid_ptr": "*i32"},
        {"COUNTS_ONLY": False, "IS_STOCHASTIC": True, "FLOAT32_EXPONENTS": False}
        | {"HAS_GAP": True, "HAS_SPECIALS": False, "IS_SIGNED": True, "BLOCK_SIZE": 1024},
        ["ld.global.v4.b32", "st.global.v4.b32"],
    ),
}  # fmt: skip


def test_compile_for_hopper(tmp_path: Path) -> None:
    pytest.importorskip("triton")
    environment = {**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, "-W", "ignore", "-c", COMPILE, json.dumps(CASES)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assembly = json.loads(done.stdout)
    missing = {
        label: [instruction for instruction in case[-1] if instruction not in assembly[label]]
        for label, case in CASES.items()
    }
    assert not any(missing.values()), missing
