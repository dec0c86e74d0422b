import math

import numpy as np
import pytest
import torch

from fsdtrain.metrics import (
    PathErrors,
    PriorMap,
    SummedIou,
    constant_turn_rate,
    constant_velocity,
)


def test_iou_is_summed_over_the_set_not_averaged() -> None:
    metric = SummedIou(["iou"])
    everything = torch.ones(1, 4, dtype=torch.bool)
    metric.update(
        "iou", torch.tensor([[True, False, False, False]]), torch.tensor([[True] * 4]), everything
    )
    metric.update(
        "iou", torch.tensor([[True] * 4]), torch.tensor([[True, True, True, False]]), everything
    )
    # Not valid, so it counts nowhere.
    metric.update("iou", everything, ~everything, torch.zeros_like(everything))
    one = torch.tensor([[True, False, False, False]])
    metric.update("iou", one, one, everything)
    # (1 + 3 + 1) / (4 + 4 + 1); the mean of the three would be 2/3.
    assert metric.compute()["iou"].item() == pytest.approx(5 / 9)


def test_iou_equals_loops_over_batches() -> None:
    rng = np.random.default_rng(0)
    metric = SummedIou(["a", "b"])
    intersection, union = {"a": 0, "b": 0}, {"a": 0, "b": 0}
    for name in ("a", "b", "b", "a", "a"):
        predicted, target, valid = rng.random((3, 2, 5, 7)) < 0.4
        metric.update(name, *(torch.tensor(array) for array in (predicted, target, valid)))
        for p, t, v in zip(predicted.flat, target.flat, valid.flat, strict=True):
            intersection[name] += int(p and t and v)
            union[name] += int((p or t) and v)
    found = metric.compute()
    assert {name: found[name].item() for name in "ab"} == pytest.approx(
        {name: intersection[name] / union[name] for name in "ab"}
    )


def test_iou_without_any_positive_is_not_a_number() -> None:
    metric = SummedIou(["iou"])
    nothing = torch.zeros(2, 3, dtype=torch.bool)
    metric.update("iou", nothing, nothing, ~nothing)
    assert math.isnan(metric.compute()["iou"])


def test_prior_takes_the_threshold_with_the_best_iou() -> None:
    rng = np.random.default_rng(1)
    probability = rng.random((4, 6)) ** 3
    targets = rng.random((50, 4, 6)) < probability
    valids = rng.random((50, 4, 6)) < 0.8
    metric = PriorMap((4, 6))
    for start in range(0, 50, 8):
        metric.update(
            torch.tensor(targets[start : start + 8]), torch.tensor(valids[start : start + 8])
        )
    prior = {name: value.numpy() for name, value in metric.compute().items()}

    positives = (targets & valids).sum(0)
    frequency = positives / valids.sum(0)
    ious = {}
    for threshold in frequency.flat:
        predicted = np.broadcast_to(frequency >= threshold, targets.shape)
        ious[threshold] = (predicted & targets & valids).sum() / (
            (predicted | targets) & valids
        ).sum()
    best = max(ious, key=lambda threshold: ious[threshold])
    np.testing.assert_allclose(prior["frequency_XY"], frequency, rtol=1e-6)
    assert prior["threshold"] == pytest.approx(best)
    assert prior["iou"] == pytest.approx(ious[best])
    assert np.array_equal(prior["map_XY"], frequency >= best)


def test_prior_of_nothing_predicts_nothing_wrongly() -> None:
    metric = PriorMap((2, 3))
    metric.update(torch.zeros(4, 2, 3, dtype=torch.bool), torch.ones(4, 2, 3, dtype=torch.bool))
    assert metric.compute()["iou"] == 0


def path_metric() -> PathErrors:
    return PathErrors(step_s=0.5, num_steps=6, report_s=2.0, baselines=("still",))


def test_path_errors_by_hand() -> None:
    """Straight target; the likeliest path runs 1 m beside it, the other one 0.5 m."""
    target = torch.zeros(1, 6, 2)
    target[0, :, 0] = torch.arange(1, 7) * 2.0
    paths = target[:, None].repeat(1, 2, 1, 1)
    paths[0, 0, :, 1] += 1.0
    paths[0, 1, :, 1] += 0.5
    metric = path_metric()
    metric.update(
        paths,
        torch.tensor([[2.0, 1.0]]),
        target,
        torch.ones(1, 6, dtype=torch.bool),
        {"still": torch.zeros(1, 6, 2)},
    )
    figures = metric.compute()
    assert figures["ade"] == 1.0
    assert figures["minade"] == 0.5
    assert figures["fde_2s"] == figures["fde_2s_straight"] == 1.0
    # At 2 s the target is at 4 * 2 m.
    assert figures["fde_2s_baseline_still"] == 8.0
    assert figures["ade_baseline_still"] == 7.0
    assert math.isnan(figures["fde_2s_turn"])


def test_path_errors_equal_loops() -> None:
    rng = np.random.default_rng(2)
    metric = path_metric()
    rows = []
    for _ in range(4):
        paths, logits = rng.normal(0, 3, (5, 3, 6, 2)), rng.normal(0, 1, (5, 3))
        target, valid = rng.normal(0, 3, (5, 6, 2)), np.arange(6) < rng.integers(0, 12, (5, 1))
        baseline = rng.normal(0, 3, (5, 6, 2))
        metric.update(
            torch.tensor(paths),
            torch.tensor(logits),
            torch.tensor(target),
            torch.tensor(valid),
            {"still": torch.tensor(baseline)},
        )
        for b in range(5):
            part = "" if not valid[b, 5] else "turn" if abs(target[b, 5, 1]) >= 2 else "straight"
            distance = np.hypot(*np.moveaxis(paths[b] - target[b], -1, 0))
            likeliest = distance[logits[b].argmax()]
            still = np.hypot(*(baseline[b] - target[b]).T)
            if valid[b].any():
                rows.append(("ade", part, likeliest[valid[b]].mean()))
                rows.append(("minade", part, distance[:, valid[b]].mean(1).min()))
                rows.append(("ade_still", part, still[valid[b]].mean()))
            if valid[b, 3]:
                rows.append(("fde", part, likeliest[3]))
                rows.append(("fde_still", part, still[3]))
    figures = {name: value.item() for name, value in metric.compute().items()}

    def mean(error: str, parts: set[str]) -> float:
        return float(
            np.mean([value for name, part, value in rows if name == error and part in parts])
        )

    every = {"", "turn", "straight"}
    assert figures["ade"] == pytest.approx(mean("ade", every))
    assert figures["minade_turn"] == pytest.approx(mean("minade", {"turn"}))
    assert figures["fde_2s"] == pytest.approx(mean("fde", every))
    assert figures["fde_2s_turn"] == pytest.approx(mean("fde", {"turn"}))
    assert figures["fde_2s_straight_baseline_still"] == pytest.approx(
        mean("fde_still", {"straight"})
    )
    assert figures["ade_baseline_still"] == pytest.approx(mean("ade_still", every))


def test_constant_turn_rate_equals_small_steps() -> None:
    speed, yaw_rate = (
        torch.tensor([8.0, 5.0, 3.0]).double(),
        torch.tensor([0.3, -0.5, 0.0]).double(),
    )
    seconds = torch.tensor([0.5, 1.0, 3.0]).double()
    found = constant_turn_rate(speed, yaw_rate, seconds)

    num_steps = 20_000
    for b in range(3):
        for s, duration in enumerate(seconds.tolist()):
            time = (np.arange(num_steps) + 0.5) * duration / num_steps
            heading = yaw_rate[b].item() * time
            expected = (
                speed[b].item()
                * duration
                * np.array([np.cos(heading).mean(), np.sin(heading).mean()])
            )
            np.testing.assert_allclose(found[b, s].numpy(), expected, atol=1e-7)
    torch.testing.assert_close(found[2], constant_velocity(speed, seconds)[2])


def test_report_time_must_be_a_step() -> None:
    with pytest.raises(ValueError, match="report_s=4"):
        PathErrors(step_s=0.5, num_steps=6, report_s=4.0, baselines=())
