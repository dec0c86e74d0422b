"""Metrics by published protocol, as sums over a set and over ranks that are divided at the end.

They know arrays, not heads or batches. Every `compute` returns scalars by name.

Shape letters: B clips, K modes, S future steps, X Y BEV cells.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torchmetrics import Metric


class SummedIou(Metric):
    """Intersection over union of binary maps by name, both summed over the whole set.

    This is what Simple-BEV's `eval_nuscenes.py` reports; the mean of per-sample IoUs, which its
    training log shows, differs. A set without any positive gives NaN.
    """

    intersection: Tensor
    union: Tensor
    full_state_update = False

    def __init__(self, names: Sequence[str]) -> None:
        super().__init__()
        self.names = tuple(names)
        for state in ("intersection", "union"):
            self.add_state(state, torch.zeros(len(names), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, name: str, predicted: Tensor, target: Tensor, valid: Tensor) -> None:
        """Three bool tensors of one shape; cells that are not valid count nowhere."""
        index = self.names.index(name)
        self.intersection[index] += (predicted & target & valid).sum()
        self.union[index] += ((predicted | target) & valid).sum()

    def compute(self) -> dict[str, Tensor]:
        ious = (self.intersection.double() / self.union).float()
        return dict(zip(self.names, ious, strict=True))


class PriorMap(Metric):
    """How often each cell is positive in the training set, and the threshold that suits it best.

    As a prediction that looks at nothing, `frequency >= threshold` is the baseline any model has
    to beat. The threshold maximises the summed IoU over the very set the map was counted on.
    """

    num_positive_XY: Tensor
    num_valid_XY: Tensor
    full_state_update = False

    def __init__(self, shape: tuple[int, int]) -> None:
        super().__init__()
        for name in ("num_positive_XY", "num_valid_XY"):
            self.add_state(name, torch.zeros(shape, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, target_BXY: Tensor, valid_BXY: Tensor) -> None:
        self.num_positive_XY += (target_BXY & valid_BXY).sum(0)
        self.num_valid_XY += valid_BXY.sum(0)

    def compute(self) -> dict[str, Tensor]:
        """`map_XY` bool, with `frequency_XY`, `threshold` and the `iou` on the counted set."""
        positive, valid = self.num_positive_XY.double(), self.num_valid_XY.double()
        frequency = torch.where(valid > 0, positive / valid.clamp(min=1), 0.0)
        # Predicting the n most frequent cells, for every n: the best threshold is among them.
        order = frequency.flatten().argsort(descending=True)
        intersection = positive.flatten()[order].cumsum(0)
        union = positive.sum() + valid.flatten()[order].cumsum(0) - intersection
        iou = torch.where(union > 0, intersection / union.clamp(min=1), 0.0)
        # A cut between equal frequencies is no threshold.
        ordered = frequency.flatten()[order]
        is_cut = torch.ones_like(ordered, dtype=torch.bool)
        is_cut[:-1] = ordered[:-1] > ordered[1:]
        best = torch.where(is_cut, iou, -1.0).argmax()
        threshold = ordered[best]
        return {
            "map_XY": frequency >= threshold,
            "frequency_XY": frequency.float(),
            "threshold": threshold.float(),
            "iou": iou[best].float(),
        }


class PathErrors(Metric):
    """Displacement errors of a multi-mode path in metres, and of baselines beside it.

    Per clip, over the valid steps: ADE of the likeliest mode, minADE over all modes, and FDE "at
    t" of the likeliest mode: the distance at one step, not the mean up to it (UniAD's protocol;
    VAD's averages). Split by whether the true path turns: nuScenes planners call a clip a turn
    when it ends at least 2 m to the side (UniAD, VAD); the last step decides, and a clip whose
    last step is not valid counts in neither part.
    """

    full_state_update = False

    def __init__(
        self, *, step_s: float, num_steps: int, report_s: float, baselines: Sequence[str]
    ) -> None:
        super().__init__()
        self.baselines = tuple(baselines)
        self.report_step = round(report_s / step_s) - 1
        if not 0 <= self.report_step < num_steps:
            raise ValueError(f"report_s={report_s} lies outside {num_steps} steps of {step_s} s")
        self.at = f"{report_s:g}s"
        for name in self._names():
            self.add_state(f"sum_{name}", torch.zeros(3, dtype=torch.float64), "sum")
            self.add_state(f"num_{name}", torch.zeros(3, dtype=torch.float64), "sum")

    def _names(self) -> list[str]:
        names = ["ade", "fde", "minade"]
        return names + [f"{error}_{which}" for which in self.baselines for error in ("ade", "fde")]

    def update(
        self,
        path_BKS2: Tensor,
        mode_logits_BK: Tensor,
        target_BS2: Tensor,
        valid_BS: Tensor,
        baseline_paths_BS2: dict[str, Tensor],
    ) -> None:
        """Paths in metres, (x, y) in the ego frame of the last frame."""
        distance_BKS = (path_BKS2.double() - target_BS2[:, None].double()).norm(dim=-1)
        likeliest = mode_logits_BK.argmax(1)[:, None, None].expand(-1, 1, distance_BKS.shape[2])
        distance_BS = distance_BKS.gather(1, likeliest)[:, 0]
        is_turn = target_BS2[:, -1, 1].abs() >= 2.0
        ends = valid_BS[:, -1]
        parts_3B = torch.stack([torch.ones_like(ends), ends & is_turn, ends & ~is_turn])

        self._add("ade", _mean_over(distance_BS, valid_BS), valid_BS.any(1), parts_3B)
        per_mode_BK = _mean_over(distance_BKS, valid_BS[:, None].expand_as(distance_BKS))
        self._add("minade", per_mode_BK.amin(1), valid_BS.any(1), parts_3B)
        self._add_fde("fde", distance_BS, valid_BS, parts_3B)
        for which in self.baselines:
            distance_BS = (baseline_paths_BS2[which].double() - target_BS2.double()).norm(dim=-1)
            ade_B = _mean_over(distance_BS, valid_BS)
            self._add(f"ade_{which}", ade_B, valid_BS.any(1), parts_3B)
            self._add_fde(f"fde_{which}", distance_BS, valid_BS, parts_3B)

    def _add_fde(self, name: str, distance_BS: Tensor, valid_BS: Tensor, parts_3B: Tensor) -> None:
        step = self.report_step
        self._add(name, distance_BS[:, step], valid_BS[:, step], parts_3B)

    def _add(self, name: str, error_B: Tensor, valid_B: Tensor, parts_3B: Tensor) -> None:
        counts = parts_3B & valid_B
        total, number = getattr(self, f"sum_{name}"), getattr(self, f"num_{name}")
        total += torch.where(counts, error_B, 0.0).sum(1)
        number += counts.sum(1)

    def compute(self) -> dict[str, Tensor]:
        """Every error for all clips, turns and straights; NaN where there was none."""
        figures = {}
        for name in self._names():
            error, _, baseline = name.partition("_")
            error = f"fde_{self.at}" if error == "fde" else error
            means = getattr(self, f"sum_{name}") / getattr(self, f"num_{name}")
            for part, mean in zip(("", "_turn", "_straight"), means, strict=True):
                suffix = f"_baseline_{baseline}" if baseline else ""
                figures[f"{error}{part}{suffix}"] = mean.float()
        return figures


def _mean_over(distance: Tensor, valid: Tensor) -> Tensor:
    """Mean over the last axis, of valid entries only; 0 where there are none."""
    return torch.where(valid, distance, 0.0).sum(-1) / valid.sum(-1).clamp(min=1)


def constant_velocity(speed_B: Tensor, seconds_S: Tensor) -> Tensor:
    """[B, S, 2]: straight ahead at the speed of the last frame."""
    x = speed_B[:, None] * seconds_S
    return torch.stack([x, torch.zeros_like(x)], -1)


def constant_turn_rate(speed_B: Tensor, yaw_rate_B: Tensor, seconds_S: Tensor) -> Tensor:
    """[B, S, 2]: along the circle of the speed and yaw rate of the last frame."""
    angle = yaw_rate_B[:, None] * seconds_S
    # v sin(wt) / w = vt sinc, v (1 - cos wt) / w = vt sin(wt / 2) sinc(half): no division by zero.
    distance = speed_B[:, None] * seconds_S
    half = angle / 2
    sideways = torch.sin(half) * torch.sinc(half / torch.pi)
    return torch.stack([distance * torch.sinc(angle / torch.pi), distance * sideways], -1)
