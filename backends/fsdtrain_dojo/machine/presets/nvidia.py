"""The figures of A100, H100 and H200 (SXM).

Peaks and capacities are the datasheets', as others print them; latencies were measured by others
and are recalled; energies are assumed.
"""

from functools import partial

from fsdtrain_dojo.machine.preset import Preset
from fsdtrain_dojo.machine.presets.gpu import build_gpu
from fsdtrain_dojo.machine.quantity import Confidence, Quantity, constant

ATTRIBUTED, DERIVED, INFERRED = Confidence.ATTRIBUTED, Confidence.DERIVED, Confidence.INFERRED
RECALLED, ASSUMED = Confidence.RECALLED, Confidence.ASSUMED

Table = dict[str, Quantity]

AMPERE = "NVIDIA A100 architecture white paper"
HOPPER = "NVIDIA H100 architecture white paper"
A100_SHEET = "NVIDIA A100 80GB SXM datasheet"
H100_SHEET = "NVIDIA H100 SXM datasheet"
H200_SHEET = "NVIDIA H200 SXM datasheet"
LESSONS = "Jouppi et al., Ten Lessons, ISCA 2021, table 2 (7 nm), recalled"
MICROBENCHMARKS = "published micro-benchmarks"
CC_H100 = "Chips and Cheese, Nvidia's H100: Funny L2 (PCIe part)"
NOT_PUBLIC = "not public"

ALIKE: Table = {
    "num_matrix_units": constant(4, "count", ATTRIBUTED, f"tensor cores an SM; {AMPERE}; {HOPPER}"),
    "num_accumulators": constant(
        8,
        "count",
        ASSUMED,
        "blocks of sums that fill half of the registers, as CUTLASS's tile of 256 x 128 does",
        (4, 8),
    ),
    "matrix_depth": constant(16, "count", RECALLED, "of an mma at 16 bits; PTX ISA"),
    "vector_latency_cycles": constant(4, "cycles", RECALLED, MICROBENCHMARKS, (4, 6)),
    "special_per_cycle": constant(
        16, "1/cycle", RECALLED, "CUDA C++ Programming Guide, arithmetic throughput"
    ),
    "register_kib": constant(256, "KiB", ATTRIBUTED, f"{AMPERE}; {HOPPER}"),
    "shared_bytes_per_cycle": constant(
        128, "B/cycle", RECALLED, "32 banks of 4 B; CUDA C++ Programming Guide"
    ),
    "shared_accesses_per_cycle": constant(1, "count", ASSUMED, "a load or a store", (1, 2)),
    "sm_link_bytes_per_cycle": constant(64, "B/cycle", RECALLED, f"L2 to an SM; {AMPERE}"),
    "line_bytes": constant(128, "B", RECALLED, "cache line; CUDA C++ Programming Guide"),
    "hbm_efficiency_share": constant(0.9, "share", INFERRED, "copy kernels", (0.85, 0.94)),
    "hbm_access_bytes": constant(64, "B", RECALLED, "two sectors of 32 B", (32, 64)),
    "op_start_ns": constant(
        3000, "ns", ASSUMED, "launch of a kernel that waited for another", (1000, 20000)
    ),
    "shared_pj_per_byte": constant(
        1.2, "pJ/B", ASSUMED, f"32 KB, 8.5 pJ for 64 bits; {LESSONS}", (0.5, 2)
    ),
    "crossbar_pj_per_byte": constant(8, "pJ/B", ASSUMED, "a centimetre at 0.1 pJ/bit/mm", (4, 20)),
    "l2_pj_per_byte": constant(2, "pJ/B", ASSUMED, f"1 MB, 14 pJ for 64 bits; {LESSONS}", (1, 4)),
    "pcie_latency_ns": constant(1000, "ns", ASSUMED, NOT_PUBLIC, (500, 2000)),
    "pcie_pj_per_byte": constant(50, "pJ/B", ASSUMED, "6 pJ/bit", (30, 100)),
    "peer_latency_ns": constant(2300, "ns", ASSUMED, "a figure quoted for NVLink", (700, 9000)),
    "peer_pj_per_byte": constant(64, "pJ/B", ASSUMED, "8 pJ/bit with the switch", (10, 100)),
    "idle_share": constant(0.2, "share", ASSUMED, "of the limit", (0.1, 0.3)),
}

A100: Table = ALIKE | {
    "num_sms": constant(108, "count", ATTRIBUTED, AMPERE),
    "clock_ghz": constant(1.41, "GHz", ATTRIBUTED, f"boost; {AMPERE}"),
    "matrix_clock_ghz": constant(1.41, "GHz", ATTRIBUTED, f"boost; {AMPERE}"),
    "matrix_rows": constant(
        32,
        "count",
        ASSUMED,
        "the least block of sums of a warp that its operands keep up with",
        (32, 64),
    ),
    "matrix_columns": constant(32, "count", ASSUMED, "see matrix_rows", (32, 64)),
    "half_macs_per_cycle": constant(
        1024, "1/cycle", ATTRIBUTED, f"FMA an SM; 312 TFLOPS; {AMPERE}"
    ),
    "tf32_macs_per_cycle": constant(512, "1/cycle", DERIVED, f"156 TFLOPS; {A100_SHEET}"),
    "matrix_latency_cycles": constant(
        33, "cycles", RECALLED, f"m16n8k16; {MICROBENCHMARKS}", (24, 40)
    ),
    "fp32_lanes": constant(64, "count", ATTRIBUTED, f"FP32 cores an SM; {AMPERE}"),
    "half_lanes": constant(128, "count", DERIVED, f"39 TFLOPS BF16 without tensor cores; {AMPERE}"),
    "shared_kib": constant(164, "KiB", ATTRIBUTED, f"at most, of 192 with L1; {AMPERE}"),
    "shared_latency_cycles": constant(23, "cycles", RECALLED, MICROBENCHMARKS, (20, 30)),
    "sm_link_latency_cycles": constant(
        50, "cycles", ASSUMED, "a quarter of an L2 hit of 200 cycles, each way", (30, 100)
    ),
    "l2_mib": constant(40, "MiB", ATTRIBUTED, AMPERE),
    "l2_tb_per_s": constant(
        7.2, "TB/s", ATTRIBUTED, "5120 B a clock at 1.41 GHz; LLMCompass, GA100", (4.5, 7.2)
    ),
    "multicast_sms": constant(1, "count", ATTRIBUTED, f"clusters came with Hopper; {HOPPER}"),
    "l2_latency_ns": constant(
        71, "ns", RECALLED, "a hit takes 200 cycles with the links", (50, 110)
    ),
    "num_hbm_stacks": constant(5, "count", ATTRIBUTED, AMPERE),
    "num_hbm_channels": constant(8, "count", RECALLED, "HBM2e, of a stack", (8, 16)),
    "hbm_gb": constant(80, "GB", ATTRIBUTED, A100_SHEET),
    "hbm_tb_per_s": constant(2.039, "TB/s", ATTRIBUTED, A100_SHEET),
    "hbm_latency_ns": constant(
        260, "ns", RECALLED, f"beyond the L2; {MICROBENCHMARKS}", (200, 400)
    ),
    "hbm_pj_per_byte": constant(28, "pJ/B", ASSUMED, "3.5 pJ/bit", (20, 56)),
    "pcie_gb_per_s": constant(32, "GB/s", ATTRIBUTED, f"Gen4 x16, each way; {A100_SHEET}"),
    "num_peer_links": constant(12, "count", ATTRIBUTED, f"NVLink 3; {AMPERE}"),
    "peer_gb_per_s": constant(25, "GB/s", ATTRIBUTED, f"each way; {AMPERE}"),
    "half_mac_pj": constant(0.6, "pJ", ASSUMED, f"multiply 0.21, add 0.38; {LESSONS}", (0.4, 1.2)),
    "vector_flop_pj": constant(2, "pJ", ASSUMED, "0.9 and as much again for registers", (1, 5)),
    "gpu_watts": constant(400, "W", ATTRIBUTED, A100_SHEET),
}

H100: Table = ALIKE | {
    "num_sms": constant(132, "count", ATTRIBUTED, HOPPER),
    "clock_ghz": constant(1.98, "GHz", DERIVED, "66.9 TFLOPS FP32 of 132 x 128 cores"),
    "matrix_clock_ghz": constant(1.83, "GHz", DERIVED, "989.4 TFLOPS of 132 x 2048 FMA a clock"),
    "matrix_rows": constant(64, "count", RECALLED, "wgmma m64; PTX ISA"),
    "matrix_columns": constant(
        64, "count", RECALLED, "wgmma n64; four of them side by side are n256, the widest; PTX ISA"
    ),
    # A wgmma is an instruction of a warp group: the four tensor cores work on one block.
    "num_matrix_units": constant(1, "count", DERIVED, "four tensor cores work on one wgmma"),
    "half_macs_per_cycle": constant(2048, "1/cycle", ATTRIBUTED, f"FMA an SM; {HOPPER}"),
    "tf32_macs_per_cycle": constant(1024, "1/cycle", ATTRIBUTED, f"FMA an SM; {HOPPER}"),
    "fp8_macs_per_cycle": constant(4096, "1/cycle", ATTRIBUTED, f"FMA an SM; {HOPPER}"),
    "matrix_latency_cycles": constant(33, "cycles", RECALLED, f"mma; {MICROBENCHMARKS}", (24, 130)),
    "fp32_lanes": constant(128, "count", ATTRIBUTED, f"FP32 cores an SM; {HOPPER}"),
    "half_lanes": constant(256, "count", DERIVED, f"133.8 TFLOPS without tensor cores; {HOPPER}"),
    "shared_kib": constant(228, "KiB", ATTRIBUTED, f"at most, of 256 with L1; {HOPPER}"),
    "shared_latency_cycles": constant(29, "cycles", RECALLED, MICROBENCHMARKS, (20, 33)),
    "sm_link_latency_cycles": constant(
        65, "cycles", ASSUMED, "a quarter of an L2 hit of 260 cycles, each way", (40, 120)
    ),
    "l2_mib": constant(50, "MiB", ATTRIBUTED, HOPPER),
    "l2_tb_per_s": constant(5.5, "TB/s", RECALLED, f"measured; {CC_H100}", (5.5, 10)),
    "multicast_sms": constant(
        2,
        "count",
        ASSUMED,
        "SMs of a cluster that share an operand, of 8 in a 2 x 4 cluster at most; CUTLASS's choice",
        (1, 4),
    ),
    "l2_latency_ns": constant(
        65, "ns", RECALLED, "a hit takes 260 cycles with the links", (50, 110)
    ),
    "num_hbm_stacks": constant(5, "count", ATTRIBUTED, HOPPER),
    "num_hbm_channels": constant(16, "count", RECALLED, "HBM3, of a stack", (16, 32)),
    "hbm_gb": constant(80, "GB", ATTRIBUTED, H100_SHEET),
    "hbm_tb_per_s": constant(3.35, "TB/s", ATTRIBUTED, H100_SHEET),
    "hbm_latency_ns": constant(
        300, "ns", RECALLED, f"beyond the L2; {MICROBENCHMARKS}", (200, 450)
    ),
    "hbm_pj_per_byte": constant(28, "pJ/B", ASSUMED, "3.5 pJ/bit", (20, 45)),
    "pcie_gb_per_s": constant(64, "GB/s", ATTRIBUTED, f"Gen5 x16, each way; {H100_SHEET}"),
    "num_peer_links": constant(18, "count", DERIVED, f"900 GB/s of links of 50; {H100_SHEET}"),
    "peer_gb_per_s": constant(25, "GB/s", ATTRIBUTED, f"each way; {HOPPER}"),
    "half_mac_pj": constant(0.4, "pJ", ASSUMED, "two thirds of 7 nm", (0.25, 0.8)),
    "vector_flop_pj": constant(1.5, "pJ", ASSUMED, "three quarters of 7 nm", (0.8, 4)),
    "gpu_watts": constant(700, "W", ATTRIBUTED, H100_SHEET),
}

H200: Table = H100 | {
    "num_hbm_stacks": constant(6, "count", ATTRIBUTED, H200_SHEET),
    "hbm_gb": constant(141, "GB", ATTRIBUTED, H200_SHEET),
    "hbm_tb_per_s": constant(4.8, "TB/s", ATTRIBUTED, H200_SHEET),
}

AMPERE_FORMATS = {
    "bf16": "half_macs_per_cycle",
    "fp16": "half_macs_per_cycle",
    "tf32": "tf32_macs_per_cycle",
}
HOPPER_FORMATS = AMPERE_FORMATS | {
    "fp8_e4m3": "fp8_macs_per_cycle",
    "fp8_e5m2": "fp8_macs_per_cycle",
}

PRESETS = (
    Preset(
        name="a100",
        summary="NVIDIA A100 SXM, 80 GB",
        constants=A100,
        build=partial(build_gpu, matrix_formats=AMPERE_FORMATS),
    ),
    Preset(
        name="h100",
        summary="NVIDIA H100 SXM, 80 GB",
        constants=H100,
        build=partial(build_gpu, matrix_formats=HOPPER_FORMATS),
    ),
    Preset(
        name="h200",
        summary="NVIDIA H200 SXM, 141 GB",
        constants=H200,
        build=partial(build_gpu, matrix_formats=HOPPER_FORMATS),
    ),
)
