"""The figures of MI300X.

An SM is a compute unit here. Peaks and capacities are the datasheet's, as others print them;
latencies were measured by others and are recalled; energies are assumed.
"""

from functools import partial

from fsdtrain_dojo.machine.preset import Preset
from fsdtrain_dojo.machine.presets.gpu import build_chiplet_gpu
from fsdtrain_dojo.machine.quantity import Confidence, Quantity, constant

ATTRIBUTED, DERIVED, INFERRED = Confidence.ATTRIBUTED, Confidence.DERIVED, Confidence.INFERRED
RECALLED, ASSUMED = Confidence.RECALLED, Confidence.ASSUMED

SHEET = "AMD Instinct MI300X datasheet"
CDNA3 = "AMD CDNA 3 white paper"
CC = "Chips and Cheese on CDNA 3 and MI300X"
LESSONS = "Jouppi et al., Ten Lessons, ISCA 2021, table 2 (7 nm), recalled"

MI300X: dict[str, Quantity] = {
    "num_compute_dies": constant(8, "count", ATTRIBUTED, f"XCDs; {SHEET}"),
    "num_sms": constant(38, "count", ATTRIBUTED, f"compute units an XCD; {SHEET}"),
    "clock_ghz": constant(2.1, "GHz", ATTRIBUTED, f"peak; {SHEET}"),
    "matrix_clock_ghz": constant(2.1, "GHz", ATTRIBUTED, f"peak; {SHEET}"),
    "matrix_rows": constant(
        32,
        "count",
        ASSUMED,
        "the least block of sums of a wave that its operands keep up with",
        (32, 64),
    ),
    "matrix_columns": constant(32, "count", ASSUMED, "see matrix_rows", (32, 64)),
    "matrix_depth": constant(16, "count", RECALLED, "v_mfma 16x16x16 at 16 bits", (8, 16)),
    "num_matrix_units": constant(4, "count", RECALLED, f"matrix cores a unit; {CDNA3}"),
    "half_macs_per_cycle": constant(
        1024, "1/cycle", DERIVED, f"1307.4 TFLOPS of 304 units at 2.1 GHz; {SHEET}"
    ),
    "tf32_macs_per_cycle": constant(512, "1/cycle", DERIVED, f"653.7 TFLOPS; {SHEET}"),
    "fp8_macs_per_cycle": constant(2048, "1/cycle", DERIVED, f"2614.9 TFLOPS; {SHEET}"),
    "num_accumulators": constant(4, "count", ASSUMED, "an eighth of the registers", (2, 8)),
    "matrix_latency_cycles": constant(32, "cycles", ASSUMED, "passes of an mfma", (16, 64)),
    "fp32_lanes": constant(128, "count", DERIVED, f"163.4 TFLOPS FP32; {SHEET}"),
    "half_lanes": constant(128, "count", RECALLED, f"163.4 TFLOPS FP16 without matrix; {SHEET}"),
    "vector_latency_cycles": constant(4, "cycles", RECALLED, "16 lanes a wave of 64", (4, 8)),
    "special_per_cycle": constant(16, "1/cycle", RECALLED, "a quarter of 64 lanes", (16, 32)),
    "register_kib": constant(512, "KiB", RECALLED, f"128 KiB a SIMD; {CDNA3}"),
    "shared_kib": constant(64, "KiB", RECALLED, f"LDS; {CC}"),
    "shared_bytes_per_cycle": constant(128, "B/cycle", RECALLED, f"LDS; {CDNA3}"),
    "shared_accesses_per_cycle": constant(1, "count", ASSUMED, "a load or a store", (1, 2)),
    "shared_latency_cycles": constant(64, "cycles", RECALLED, f"LDS; {CC}", (50, 70)),
    "sm_link_bytes_per_cycle": constant(64, "B/cycle", RECALLED, f"L2 to a unit; {CDNA3}"),
    "sm_link_latency_cycles": constant(60, "cycles", ASSUMED, "a quarter of an L2 hit", (40, 120)),
    "line_bytes": constant(128, "B", RECALLED, CDNA3),
    "l2_mib": constant(4, "MiB", RECALLED, f"of an XCD; {CDNA3}"),
    "l2_tb_per_s": constant(4.3, "TB/s", RECALLED, f"of an XCD: 2 kB a clock; {CDNA3}", (3.4, 4.3)),
    "l2_latency_ns": constant(
        60, "ns", RECALLED, f"a hit, half of it in the links; {CC}", (50, 110)
    ),
    "fabric_clock_ghz": constant(
        2.1, "GHz", ASSUMED, "17.2 TB/s of 128 slices of 64 B", (1.8, 2.1)
    ),
    "fabric_bytes_per_cycle": constant(
        1024, "B/cycle", RECALLED, f"an XCD, 16 channels of 64 B; {CDNA3}"
    ),
    "fabric_latency_ns": constant(
        50, "ns", ASSUMED, "an XCD to the dies below, each way", (30, 100)
    ),
    "fabric_pj_per_byte": constant(4, "pJ/B", ASSUMED, "0.5 pJ/bit, stacked dies", (2, 10)),
    "last_cache_mib": constant(256, "MiB", ATTRIBUTED, f"Infinity Cache; {SHEET}"),
    "last_cache_tb_per_s": constant(17.2, "TB/s", ATTRIBUTED, f"peak; {SHEET}", (10, 17.2)),
    "last_cache_latency_ns": constant(60, "ns", RECALLED, f"beyond L2 and links; {CC}", (40, 120)),
    "last_cache_pj_per_byte": constant(4, "pJ/B", ASSUMED, "larger than an L2", (2, 8)),
    "num_hbm_stacks": constant(8, "count", ATTRIBUTED, SHEET),
    "num_hbm_channels": constant(16, "count", DERIVED, "128 channels of 8 stacks; ServeTheHome"),
    "hbm_gb": constant(192, "GB", ATTRIBUTED, SHEET),
    "hbm_tb_per_s": constant(5.3, "TB/s", ATTRIBUTED, SHEET),
    "hbm_efficiency_share": constant(0.85, "share", INFERRED, "copy kernels", (0.75, 0.92)),
    "hbm_latency_ns": constant(350, "ns", RECALLED, f"beyond the caches; {CC}", (250, 500)),
    "hbm_access_bytes": constant(64, "B", RECALLED, "HBM3: 8 bursts of 8 B", (32, 128)),
    "pcie_gb_per_s": constant(64, "GB/s", ATTRIBUTED, f"Gen5 x16, each way; {SHEET}"),
    "pcie_latency_ns": constant(1000, "ns", ASSUMED, "not public", (500, 2000)),
    "num_peer_links": constant(7, "count", ATTRIBUTED, f"Infinity Fabric; {SHEET}"),
    "peer_gb_per_s": constant(64, "GB/s", ATTRIBUTED, f"each way; {SHEET}"),
    "peer_latency_ns": constant(2000, "ns", ASSUMED, "not public", (700, 9000)),
    "op_start_ns": constant(
        5000, "ns", ASSUMED, "launch of a kernel that waited for another", (1000, 20000)
    ),
    "half_mac_pj": constant(0.4, "pJ", ASSUMED, f"two thirds of 7 nm; {LESSONS}", (0.25, 0.8)),
    "vector_flop_pj": constant(1.5, "pJ", ASSUMED, "three quarters of 7 nm", (0.8, 4)),
    "shared_pj_per_byte": constant(
        1.2, "pJ/B", ASSUMED, f"32 KB, 8.5 pJ a 64 bits; {LESSONS}", (0.5, 2)
    ),
    "crossbar_pj_per_byte": constant(4, "pJ/B", ASSUMED, "5 mm at 0.1 pJ/bit/mm", (2, 10)),
    "l2_pj_per_byte": constant(2, "pJ/B", ASSUMED, f"1 MB, 14 pJ a 64 bits; {LESSONS}", (1, 4)),
    "hbm_pj_per_byte": constant(28, "pJ/B", ASSUMED, "3.5 pJ/bit", (20, 45)),
    "pcie_pj_per_byte": constant(50, "pJ/B", ASSUMED, "6 pJ/bit", (30, 100)),
    "peer_pj_per_byte": constant(64, "pJ/B", ASSUMED, "8 pJ/bit", (10, 100)),
    "gpu_watts": constant(750, "W", ATTRIBUTED, SHEET),
    "idle_share": constant(0.2, "share", ASSUMED, "of the limit", (0.1, 0.3)),
}

FORMATS = {
    "bf16": "half_macs_per_cycle",
    "fp16": "half_macs_per_cycle",
    "tf32": "tf32_macs_per_cycle",
    "fp8_e4m3": "fp8_macs_per_cycle",
    "fp8_e5m2": "fp8_macs_per_cycle",
}

PRESETS = (
    Preset(
        name="mi300x",
        summary="AMD Instinct MI300X: 8 compute dies, 192 GB",
        constants=MI300X,
        build=partial(build_chiplet_gpu, matrix_formats=FORMATS),
    ),
)
