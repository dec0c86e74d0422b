"""Where the vehicle will drive: several paths with a probability each, from the images.

The head never sees the ego's speed or yaw rate as such: on nuScenes a network without images that
reads them looks as good as one that sees (AD-MLP, arXiv 2305.10430). It knows the motion between
the last two frames, as the memory does, and uses its length only to scale what it reads in the
features. Straight on at that speed is what it says with nothing read.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torchmetrics import Metric

from fsdtrain import losses
from fsdtrain.data.batch import ClipBatch, ClipWindow
from fsdtrain.data.geometry import BevGrid, invert_pose
from fsdtrain.heads.head import Head, Outputs, Prior, TargetBuilder
from fsdtrain.metrics import PathErrors, constant_turn_rate, constant_velocity
from fsdtrain.models.blocks import ConvNormRelu, Downsample

# ClipBatch.targets entries: float32 [B, S, 2], metres, (x, y) in the last frame's ego frame; bool.
PATH = "ego_path"
PATH_VALID = "ego_path_valid"


@dataclass(frozen=True, kw_only=True)
class PathTargets:
    """The target builder: the recorded future at even steps, interpolated."""

    num_steps: int
    step_s: float

    def __call__(self, window: ClipWindow) -> dict[str, NDArray[np.generic]]:
        seconds_S = self.step_s * np.arange(1, self.num_steps + 1)
        world_to_ego = invert_pose(window.ego_to_world_T44[-1])
        places_F2 = (world_to_ego @ window.future_ego_to_world_F44[:, :, 3].T)[:2].T
        times = np.concatenate([[0.0], window.future_s_F])
        places = np.concatenate([np.zeros((1, 2)), places_F2])
        path_S2 = np.stack([np.interp(seconds_S, times, places[:, i]) for i in range(2)], axis=-1)
        # A microsecond: timestamps are nanoseconds, the steps are not multiples of them.
        valid_S = seconds_S <= times[-1] + 1e-6
        return {PATH: path_S2.astype(np.float32), PATH_VALID: valid_S}


class EgoPath(Head):
    """K paths of S waypoints and a logit each, from the last frame's features.

    Args:
        in_channels: of the BEV features.
        grid: the model's.
        num_modes: K.
        num_steps: S.
        step_s: seconds between waypoints.
        report_s: the time whose displacement error is reported.
        channels: of the features that are flattened.
        hidden: width of the hidden layer.
        loss_weight: of regression and classification together.
    """

    unit: ClassVar[str] = "m"
    better: ClassVar[Literal["higher", "lower"]] = "lower"
    protocol: ClassVar[str] = (
        "Displacement of the likeliest path; FDE at the stated time itself (UniAD's protocol), a "
        "turn ends at least 2 m to the side"
    )

    def __init__(
        self,
        *,
        in_channels: int,
        grid: BevGrid,
        num_modes: int,
        num_steps: int,
        step_s: float,
        report_s: float,
        channels: int,
        hidden: int,
        loss_weight: float,
    ) -> None:
        super().__init__()
        self.num_modes, self.num_steps, self.step_s = num_modes, num_steps, step_s
        self.report_s = report_s
        self.loss_weight = loss_weight
        num_x, num_y = grid.shape
        layers: list[nn.Module] = [ConvNormRelu(in_channels, channels, kernel=1)]
        # Where something is matters here, so the features are flattened, not averaged: 12 cells a
        # side keep the layer behind small.
        while max(num_x, num_y) > 12:
            layers.append(Downsample(channels, channels))
            num_x, num_y = num_x // 2, num_y // 2
        self.reduce = nn.Sequential(*layers)
        self.hidden = nn.Linear(channels * num_x * num_y, hidden)
        self.decode = nn.Linear(hidden, num_modes * (2 * num_steps + 1))
        # Starting from straight on; small, not zero, or all modes would stay the same.
        nn.init.normal_(self.decode.weight, std=0.01)
        nn.init.zeros_(self.decode.bias)

    def target_builder(self) -> TargetBuilder:
        return PathTargets(num_steps=self.num_steps, step_s=self.step_s)

    def forward(self, bev_BTCXY: Tensor, batch: ClipBatch) -> dict[str, Tensor]:
        """`path_BKS2` in metres and `mode_logits_BK`."""
        reduced = self.reduce(bev_BTCXY[:, -1]).flatten(1)
        decoded = self.decode(torch.relu(self.hidden(reduced))).float()
        mode_logits_BK, residual = decoded.split(
            [self.num_modes, decoded.shape[1] - self.num_modes], 1
        )
        residual_BKS2 = residual.unflatten(1, (self.num_modes, self.num_steps, 2))
        seconds_S = self.step_s * torch.arange(1, self.num_steps + 1, device=residual.device)
        straight_BS2 = constant_velocity(speed_from_motion(batch), seconds_S)
        # What a bend does to a path grows with its length; the metre is for driving off.
        scale_BS1 = straight_BS2[..., :1].abs() + 1.0
        path_BKS2 = straight_BS2[:, None] + scale_BS1[:, None] * residual_BKS2
        return {"path_BKS2": path_BKS2, "mode_logits_BK": mode_logits_BK}

    def loss(self, outputs: Outputs, batch: ClipBatch) -> dict[str, Tensor]:
        regression, classification = losses.winner_takes_all(
            outputs["path_BKS2"],
            outputs["mode_logits_BK"],
            batch.targets[PATH],
            batch.targets[PATH_VALID],
        )
        return {
            "regression": self.loss_weight * regression,
            "mode": self.loss_weight * classification,
        }

    def metric(self, prior: Prior | None = None) -> Metric:
        return EgoPathErrors(self.num_steps, self.step_s, self.report_s)


def speed_from_motion(batch: ClipBatch) -> Tensor:
    """[B] m/s forward over the last frame interval; 0 where there was no frame before."""
    forward_m = -batch.previous_to_current_BT44[:, -1, 0, 3]
    interval_s = batch.frame_interval_s_BT[:, -1]
    is_known = interval_s > 0
    return torch.where(is_known, forward_m / torch.where(is_known, interval_s, 1.0), 0.0)


class EgoPathErrors(PathErrors):
    """Path errors beside constant velocity and constant turn rate and velocity."""

    def __init__(self, num_steps: int, step_s: float, report_s: float) -> None:
        super().__init__(
            step_s=step_s,
            num_steps=num_steps,
            report_s=report_s,
            baselines=("constant_velocity", "constant_turn_rate"),
        )
        self.seconds_S = step_s * torch.arange(1, num_steps + 1)

    def update(self, outputs: Outputs, batch: ClipBatch) -> None:  # type: ignore[override]
        seconds_S = self.seconds_S.to(batch.speed_B.device)
        super().update(
            outputs["path_BKS2"],
            outputs["mode_logits_BK"],
            batch.targets[PATH],
            batch.targets[PATH_VALID],
            {
                "constant_velocity": constant_velocity(batch.speed_B, seconds_S),
                "constant_turn_rate": constant_turn_rate(
                    batch.speed_B, batch.yaw_rate_B, seconds_S
                ),
            },
        )
