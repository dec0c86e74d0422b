"""A profile of a tile as `profile` writes it, made up, with every field filled."""

from random import Random

import numpy as np

from fsdtrain.step_profile import (
    Assumption,
    HeatMap,
    MapLevel,
    MapSlices,
    MemoryUse,
    OpProfile,
    Phase,
    Rooflines,
    ScaleProfile,
    ScaleRow,
    StepProfile,
)

MB = 10**6
PEAK = 9.06e15
BANDWIDTHS = {"SRAM": 3.4e15, "node link": 1.1e15, "die edge": 9e13, "HBM": 4e12}
BOUNDS = ("matrix", "HBM", "link", "vector", "SRAM port", "latency", "imbalance")


def make_ops(num_ops: int = 150) -> tuple[OpProfile, ...]:
    """As a convolutional network has them: few are long; the long ones are bound by something."""
    random = Random(0)
    ops, start_s = [], 0.0
    phases: tuple[Phase, ...] = ("forward", "backward", "optimizer")
    for number in range(num_ops):
        phase = phases[0 if number < num_ops // 3 else 1 if number < 5 * num_ops // 6 else 2]
        bound = BOUNDS[min(int(random.expovariate(1 / 1.8)), 6)] if phase != "optimizer" else "HBM"
        flops = int(10 ** random.uniform(10.5, 13)) if phase != "optimizer" else int(1e9)
        num_bytes = flops / 10 ** random.uniform(2.2, 4)
        by_level = {
            "HBM": num_bytes * random.choice((0, 0.3, 1)),
            "die edge": num_bytes * random.uniform(0.5, 3),
            "node link": num_bytes * random.uniform(5, 25),
            "SRAM": num_bytes * random.uniform(20, 80),
        }
        roofline_s = max(
            flops / PEAK, *(amount / BANDWIDTHS[level] for level, amount in by_level.items())
        )
        time_s = roofline_s * random.uniform(1.1, 2.2) + 1e-6
        kind = ("conv", "batch_norm", "relu", "addmm")[number % 4]
        ops.append(
            OpProfile(
                name=f"{kind}_{number}" + ("" if phase == "forward" else ".dw"),
                shapes=f"256x{64 << number % 4}x{56 >> number % 3}x56, 64x64x3x3",
                dtype="cfloat8_1_4_3", num_calls=1, time_s=time_s, flops=flops,
                num_bytes=int(num_bytes), bound_by=bound, phase=phase,
                layer=f"network.backbone.stage{number % 4}.{number % 7}.{kind}",
                line=f"fsdtrain/models/backbone.py:{20 + number % 40}", start_s=start_s,
                utilisation=flops / time_s / PEAK, roofline_s=roofline_s, bytes_by_level=by_level,
                sram_peak_bytes=int(random.uniform(0.1, 1.2) * MB),
                energy_j=flops * 1e-12,
                explanation=(
                    "output-stationary, K whole: 31.2 \u00b5s; weight-stationary: 44.0 \u00b5s, "
                    "more node link traffic",
                    "batch over 90 rows, channels over 100 columns; 4 steps of 64 images",
                ),
            )
        )  # fmt: skip
        start_s += time_s
    return tuple(sorted(ops, key=lambda op: -op.time_s))


def make_maps(step_time_s: float) -> tuple[HeatMap, ...]:
    edges_s = tuple(np.linspace(0, step_time_s, 9).tolist())
    levels = (
        MapLevel(name="node", rows=1, columns=1), MapLevel(name="die", rows=18, columns=20),
    )  # fmt: skip
    random = np.random.default_rng(1)
    rows, columns = np.mgrid[0:90, 0:100]
    compute = 0.62 - 0.1 * (rows > 80) + random.normal(0, 0.015, (90, 100))
    links = np.exp(-columns / 45) * (0.6 + 0.3 * np.cos(rows / 9)) + 0.05
    maps = []
    for title, unit, values in (
        ("Compute", "share", compute),
        ("Links", "B", 3e9 * links),
    ):
        cells: list[list[float | None]] = values.tolist()
        for row in range(5, 90, 18):
            for column in range(7, 100, 20):
                cells[row][column] = None
        top = float(values.max())
        slices = tuple(
            np.clip(values / top * 254 * (0.3 + 0.08 * at), 0, 254).astype(np.uint8).tobytes()
            for at in range(8)
        )
        maps.append(
            HeatMap(
                title=title, unit=unit, rows=tuple(map(tuple, cells)), group=(18, 20),
                levels=levels, slices=MapSlices(edges_s=edges_s, top=top, cells=slices),
            )
        )  # fmt: skip
    memory = HeatMap(title="HBM", unit="B", rows=((3.1e9, 3.0e9, 3.4e9, 2.2e9, 0.0),))
    return (*maps, memory)


ASSUMPTIONS = (
    # name, value, unit, source, low, high, and the step time at these, relative
    ("hbm_efficiency_share", 0.85, "share", "measured on a similar part", 0.7, 0.95, 1.09, 0.95),
    ("die_crossing_ns", 100, "ns", "an attendee's notes of a talk", 50, 200, 0.97, 1.06),
    ("op_start_ns", 50, "ns", "100 clocks to pass a semaphore", 0, 1000, 0.99, 1.31),
    ("special_per_cycle", 2, "1/cycle", "8 operations a result", 0.5, 16, 1.02, 0.995),
    ("num_accumulators", 4, "count", "several a processing element", 1, 16, 1.0, 1.0),
)


def make_assumptions(step_time_s: float) -> tuple[Assumption, ...]:
    judged = tuple(
        Assumption(
            name=name, value=value, unit=unit, source=source, confidence="assumed", low=low,
            high=high, step_time_at_low_s=at_low * step_time_s,
            step_time_at_high_s=at_high * step_time_s,
        )
        for name, value, unit, source, low, high, at_low, at_high in ASSUMPTIONS
    )  # fmt: skip
    stated = Assumption(
        name="clock_ghz", value=2, unit="GHz", source="a talk at <Hot Chips>", confidence="stated"
    )
    return (*judged, stated)


def make_profile(num_ops: int = 150) -> StepProfile:
    """A tile that trains a network: made up, with every field filled."""
    ops = make_ops(num_ops)
    step_time_s = sum(op.time_s for op in ops)
    random = np.random.default_rng(2)
    times = np.sort(random.uniform(0, step_time_s, 300))
    fullness = (
        np.abs(np.sin(times / step_time_s * 3.1)) * 0.8 * MB + random.uniform(0.05, 0.4, 300) * MB
    )
    return StepProfile(
        backend="dojo", device="Tesla D1 tile, 8,850 nodes (d1_tile)", origin="MODELLED",
        step_time_s=step_time_s, ops=ops, flops=float(sum(op.flops or 0 for op in ops)),
        peak_flops_per_s=PEAK, roofline_s=sum(op.roofline_s or 0 for op in ops), energy_j=61.3,
        power_limit_watts=15000.0,
        memory=(
            MemoryUse(name="SRAM of a node", peak_bytes=1_190_000, capacity_bytes=1_250_000),
            MemoryUse(name="HBM", peak_bytes=23 * 10**9, capacity_bytes=160 * 10**9),
        ),
        busy_s={"matrix": 0.41 * step_time_s, "HBM": 0.66 * step_time_s, "link": 0.3 * step_time_s,
                "vector": 0.12 * step_time_s, "SRAM port": 0.35 * step_time_s},
        sram_over_time=tuple(zip(times.tolist(), fullness.tolist(), strict=True)),
        sram_capacity_bytes=1_250_000, heat_maps=make_maps(step_time_s),
        rooflines=Rooflines(
            flops_per_s={"cfloat8_1_4_3": PEAK, "bf16": PEAK, "fp32": 5.65e14},
            bytes_per_s=BANDWIDTHS,
        ),
        assumptions=make_assumptions(step_time_s),
        scale=ScaleProfile(
            rows=tuple(
                ScaleRow(
                    machine=machine, num_replicas=count, placement=f"data parallel over {count}",
                    num_samples=256 * count, step_time_s=step_time_s * (1 + 0.03 * at),
                    all_reduce_s=at * 0.1 * step_time_s or None, efficiency=1 / (1 + 0.03 * at),
                )
                for at, (machine, count) in enumerate(
                    (("d1_tile", 1), ("d1_tray", 6), ("exapod", 120))
                )
            ),
            note="the batch of each replica stays as it is",
        ),
        notes=("1.7 GB of activations were spilled to HBM; with batch 192 they would fit.",),
    )  # fmt: skip
