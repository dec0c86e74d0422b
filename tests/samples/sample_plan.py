"""A plan as `plan` writes it: made up, with every field filled."""

import math
from typing import Any

from fsdtrain.planning.record import (
    ArithmeticLine,
    Limit,
    MachinePlan,
    PlanRecord,
    PressQuestion,
    Question,
    ScalePoint,
    Sensitivity,
    Sourced,
)

NUM_DEVICES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1000, 2000, 5000, 10_000)
DAY_S = 86_400.0


def make_plan_record(**changes: Any) -> PlanRecord:
    """`changes` replace fields of the record."""
    fields: dict[str, Any] = {
        "question": Question(
            num_samples=2_000_000_000, num_epochs=3.0, batch_per_device=32, target_s=30 * DAY_S,
            budget=2e6, currency="EUR", sample_bytes=1.6e6, images_per_sample=8,
            max_global_batch=65_536,
        ),
        "model": "hydra-bev base, 61.2 M parameters, float32 gradients",
        "machines": (
            make_machine("h100", "NVIDIA H100 SXM", 0.081, 1100.0, 2.5),
            make_machine("d1_tile", "Tesla D1 tile, 25 dies", 0.019, 21_000.0, None),
            make_machine("a100", "NVIDIA A100", 0.83, 700.0, 1.2, is_enough=False),
        ),
        "press": PRESS, "notes": ("The network is calibrated on a CPU cluster only.",),
    }  # fmt: skip
    return PlanRecord(**(fields | changes))


def make_machine(
    name: str, device: str, step_s: float, power_w: float, price: float | None, *,
    is_enough: bool = True,
) -> MachinePlan:  # fmt: skip
    curve = tuple(_point(number, step_s, power_w, price) for number in NUM_DEVICES)
    needed = next((point for point in curve if point.time_to_train_s <= 30 * DAY_S), None)
    needed = needed if is_enough else None
    sentence = f"No number of {name} up to 10,000 reaches 30 days."
    if needed is not None:
        days = needed.time_to_train_s / DAY_S
        sentence = f"{needed.num_devices} x {name} train it in {days:.1f} days."
    return MachinePlan(
        name=name, device=device, step_time_s=step_s, step_bound="matrix",
        step_origin="MODELLED", curve=curve, needed=needed, sentence=sentence,
        figures=(
            Sourced(name="network_bytes_per_s", value=4.5e10, unit="B/s", origin="PUBLISHED",
                    source="a data sheet <of the maker>"),
            Sourced(name="device_mtbf_hours", value=50_000, unit="h", origin="ASSUMED",
                    source="54 days on 16,384 GPUs"),
            Sourced(name="price_per_hour", value=price or 0.0, unit="EUR", origin="GIVEN",
                    source="the user"),
        ),
        notes=("A step fits into memory.",),
        sensitivities=(
            Sensitivity(name="device_mtbf_hours", value=5e4, unit="h", low=1e4, high=2e5,
                        num_devices=512, time_at_low_s=31 * DAY_S, time_at_high_s=26 * DAY_S,
                        origin="ASSUMED", source="54 days on 16,384 GPUs"),
            Sensitivity(name="straggler_sigma", value=0.02, unit="share", low=0.005, high=0.05,
                        num_devices=512, time_at_low_s=26.8 * DAY_S, time_at_high_s=28 * DAY_S,
                        origin="ASSUMED", source="judgement"),
        ),
    )  # fmt: skip


def _point(number: int, step_s: float, power_w: float, price: float | None) -> ScalePoint:
    exposed_s = 0.0 if number == 1 else 2e-4 * math.log2(number) ** 1.5
    input_s = max(0.0, step_s * (number / 4000 - 1))
    straggler = 0.0 if number == 1 else 0.02 * math.sqrt(2 * math.log(number))
    failure = min(0.3, 1e-4 * number**0.75)
    whole_s = (step_s + exposed_s + input_s) * (1 + straggler)
    rate = 32 * number / whole_s * (1 - failure)
    time_s = 6e9 / rate
    losses: dict[Limit, float] = {
        "network": exposed_s, "input": input_s, "stragglers": straggler * step_s,
        "failures": failure * step_s,
    }  # fmt: skip
    worst = max(losses, key=lambda limit: losses[limit])
    return ScalePoint(
        num_devices=number, step_s=whole_s, compute_s=step_s, exposed_s=exposed_s,
        input_s=input_s, straggler_share=straggler, failure_share=failure,
        checkpoint_interval_s=None if number == 1 else 40_000 / math.sqrt(number),
        samples_per_s=rate, time_to_train_s=time_s,
        efficiency=rate / number / (32 / step_s),
        limit=worst if losses[worst] > 0.03 * step_s else "compute", power_w=power_w * number,
        energy_j=power_w * number * time_s, ingest_bytes_per_s=1.6e6 * rate,
        cost=None if price is None else price * number * time_s / 3600,
        samples_per_step=32.0 * number,
    )  # fmt: skip


PRESS = (
    PressQuestion(
        name="100 exaflops", question="How many D1 dies and A100s are 100 exaFLOP/s?",
        lines=(
            ArithmeticLine(text="100 exaFLOP/s / 362 TFLOP/s = 276,243", value=276_243,
                           unit="D1 dies", source="362 TFLOP/s BF16/CFP8, Hot Chips 34"),
            ArithmeticLine(text="100 exaFLOP/s / 312 TFLOP/s = 320,513", value=320_513,
                           unit="A100", source="312 TFLOP/s BF16, NVIDIA's data sheet"),
        ),
        answer="276,243 D1 dies or 320,513 A100s.",
        published="over 276,000 D1s or about 320,500 A100s",
    ),
)  # fmt: skip
