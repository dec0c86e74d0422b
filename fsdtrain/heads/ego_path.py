"""Where the vehicle will drive: several paths with a probability each, from the images.

The head finds, in every row of cells ahead, where the path crosses it; the crossings of all rows
together say how the road bends, and each mode follows an arc near that bend. The ego's speed and
yaw rate are not read: on nuScenes a network without images that reads them looks as good as one
that sees (AD-MLP, arXiv 2305.10430). Only the distance between the last two frames, which the
memory uses as well, says how far along the arc the vehicle gets.
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
from fsdtrain.errors import UserError
from fsdtrain.heads.head import Head, Outputs, Prior, TargetBuilder
from fsdtrain.metrics import PathErrors, constant_turn_rate, constant_velocity
from fsdtrain.models.blocks import ConvNormRelu

# ClipBatch.targets entries: float32 [B, S, 2], metres, (x, y) in the last frame's ego frame; bool.
PATH = "ego_path"
PATH_VALID = "ego_path_valid"
# float32 [B, R, Y]: for each row of cells ahead, where along y the path crosses it, as shares of 1
# over the nearest cells; all 0 for rows that the recorded future does not reach.
CROSSINGS = "ego_path_crossings"

CROSSING_WIDTH_CELLS = 1.5  # a crossing is shared among the cells whose centres are nearer
LEAST_VARIANCE_M2 = 0.25  # of a crossing: half a metre, below a cell


@dataclass(frozen=True, kw_only=True)
class PathTargets:
    """The target builder: the recorded future at even steps, and row by row ahead."""

    grid: BevGrid
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
        is_in_time = times <= seconds_S[-1] + 1e-6
        return {
            PATH: path_S2.astype(np.float32),
            PATH_VALID: valid_S,
            CROSSINGS: path_crossings(places[is_in_time], self.grid),
        }


def path_crossings(places_F2: NDArray[np.float64], grid: BevGrid) -> NDArray[np.float32]:
    """[R, Y] shares of a path from the origin, as far as it goes forward; see CROSSINGS."""
    centers_XY2 = grid.cell_centers()
    x_R = centers_XY2[first_row_ahead(grid) :, 0, 0]
    y_Y = centers_XY2[0, :, 1]
    # Beyond a place that is not ahead of the one before, a row would be crossed twice.
    turns_back = np.flatnonzero(np.diff(places_F2[:, 0]) <= 0)
    ahead_F2 = places_F2[: turns_back[0] + 1] if len(turns_back) else places_F2
    y_R = np.interp(x_R, ahead_F2[:, 0], ahead_F2[:, 1])
    width_m = CROSSING_WIDTH_CELLS * grid.cell_m
    shares_RY = np.clip(1 - np.abs(y_Y - y_R[:, None]) / width_m, 0, None)
    shares_RY *= (x_R <= ahead_F2[-1, 0])[:, None]
    total_R1 = shares_RY.sum(1, keepdims=True)
    np.divide(shares_RY, total_R1, out=shares_RY, where=total_R1 > 0)
    return shares_RY.astype(np.float32)


def first_row_ahead(grid: BevGrid) -> int:
    """The index of the first row of cells whose centres lie ahead of the ego's origin."""
    return int((grid.cell_centers()[:, 0, 0] <= 0).sum())


class EgoPath(Head):
    """K paths of S waypoints and a logit each, from the last frame's features.

    A mode's arc has the curvature that fits the crossings best, plus the mode's own offset; its
    waypoints lie at the distances that the last speed gives. A small network then corrects
    curvature, distances and sideways offsets, and gives the modes' logits.

    Args:
        in_channels: of the BEV features.
        grid: the model's; it must reach ahead of the ego.
        num_modes: K, odd: the middle one is the best fit.
        curvature_spread: 1/m, the offset of the outermost modes.
        num_steps: S.
        step_s: seconds between waypoints.
        report_s: the time whose displacement error is reported.
        channels: of the features that the crossings are read from.
        hidden: width of the correcting network.
        loss_weight: of the waypoints' regression and the modes' classification together.
        crossing_weight: of the cross entropy of the crossings.
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
        curvature_spread: float,
        num_steps: int,
        step_s: float,
        report_s: float,
        channels: int,
        hidden: int,
        loss_weight: float,
        crossing_weight: float,
    ) -> None:
        super().__init__()
        self.first_row = first_row_ahead(grid)
        if self.first_row == grid.shape[0]:
            raise UserError(f"EgoPath needs a grid that reaches ahead of x = 0; {grid} does not")
        self.grid = grid
        self.num_modes, self.num_steps, self.step_s = num_modes, num_steps, step_s
        self.report_s = report_s
        self.loss_weight, self.crossing_weight = loss_weight, crossing_weight
        self.x_R: Tensor
        self.y_Y: Tensor
        self.curvature_offset_K: Tensor
        centers_XY2 = torch.as_tensor(grid.cell_centers()).float()
        spread = torch.linspace(-1, 1, num_modes) if num_modes > 1 else torch.zeros(1)
        for name, values in (
            ("x_R", centers_XY2[self.first_row :, 0, 0].clone()),
            ("y_Y", centers_XY2[0, :, 1].clone()),
            ("curvature_offset_K", curvature_spread * spread),
        ):
            self.register_buffer(name, values, persistent=False)
        self.reduce = ConvNormRelu(in_channels, channels)
        # No bias: the softmax over a row would cancel it.
        self.cross = nn.Conv2d(channels, 1, 1, bias=False)
        self.hidden = nn.Linear(channels + 2 * len(self.x_R), hidden)
        self.correct = nn.Linear(hidden, num_modes * (2 + 2 * num_steps))
        # Starting from the arcs themselves; small, not zero, or all modes would learn the same.
        nn.init.normal_(self.correct.weight, std=0.01)
        nn.init.zeros_(self.correct.bias)

    def target_builder(self) -> TargetBuilder:
        return PathTargets(grid=self.grid, num_steps=self.num_steps, step_s=self.step_s)

    def forward(self, bev_BTCXY: Tensor, batch: ClipBatch) -> dict[str, Tensor]:
        """`path_BKS2` in metres, `mode_logits_BK` and `crossing_logits_BRY`."""
        reduced_BCRY = self.reduce(bev_BTCXY[:, -1])[:, :, self.first_row :]
        crossing_logits_BRY = self.cross(reduced_BCRY).squeeze(1).float()
        share_BRY = crossing_logits_BRY.softmax(-1)
        y_BR = (share_BRY * self.y_Y).sum(-1)
        variance_BR = (share_BRY * (self.y_Y - y_BR[..., None]).square()).sum(-1)
        variance_BR = variance_BR + LEAST_VARIANCE_M2
        curvature_B = fit_curvature(self.x_R, y_BR, variance_BR)

        # Metres over five are of the order of one.
        read_B = torch.cat(
            [y_BR / 5, variance_BR.sqrt() / 5, reduced_BCRY.mean((2, 3)).float()], dim=1
        )
        correction_BK = self.correct(torch.relu(self.hidden(read_B))).float()
        correction_BK = correction_BK.unflatten(1, (self.num_modes, 2 + 2 * self.num_steps))
        mode_logits_BK, bend_BK = correction_BK[..., 0], 0.1 * correction_BK[..., 1]
        along_BKS = 0.1 * correction_BK[..., 2 : 2 + self.num_steps]
        across_BKS = 0.1 * correction_BK[..., 2 + self.num_steps :]

        seconds_S = self.step_s * torch.arange(1, self.num_steps + 1, device=read_B.device)
        straight_B1S = (speed_from_motion(batch)[:, None] * seconds_S)[:, None]
        # An error of speed or bend grows with the distance; the metre is for driving off.
        scale_B1S = straight_B1S.abs() + 1.0
        curvature_BK = curvature_B[:, None] + self.curvature_offset_K + bend_BK
        distance_BKS = straight_B1S + scale_B1S * along_BKS
        path_BKS2 = follow_arc(distance_BKS, curvature_BK[..., None], scale_B1S * across_BKS)
        return {
            "path_BKS2": path_BKS2,
            "mode_logits_BK": mode_logits_BK,
            "crossing_logits_BRY": crossing_logits_BRY,
        }

    def loss(self, outputs: Outputs, batch: ClipBatch) -> dict[str, Tensor]:
        regression, classification = losses.winner_takes_all(
            outputs["path_BKS2"],
            outputs["mode_logits_BK"],
            batch.targets[PATH],
            batch.targets[PATH_VALID],
        )
        shares_BRY = batch.targets[CROSSINGS]
        log_shares_BRY = outputs["crossing_logits_BRY"].float().log_softmax(-1)
        num_rows = shares_BRY.sum().clamp(min=1)  # the shares of a row sum to one
        crossing = -(shares_BRY * log_shares_BRY).sum() / num_rows
        return {
            "crossing": self.crossing_weight * crossing,
            "regression": self.loss_weight * regression,
            "mode": self.loss_weight * classification,
        }

    def metric(self, prior: Prior | None = None) -> Metric:
        return EgoPathErrors(self.num_steps, self.step_s, self.report_s)


def fit_curvature(x_R: Tensor, y_BR: Tensor, variance_BR: Tensor) -> Tensor:
    """[B] 1/m: c of the parabola y = c x^2 / 2 that fits best, rows weighted by certainty.

    Closed form of weighted least squares; near the ego a circle of curvature c is that parabola.
    """
    half_square_R = x_R.square() / 2
    weight_BR = half_square_R / variance_BR
    return (weight_BR * y_BR).sum(-1) / (weight_BR * half_square_R).sum(-1)


def follow_arc(distance: Tensor, curvature: Tensor, across: Tensor) -> Tensor:
    """[..., 2] metres: `distance` along a circle of `curvature`, then `across` to the left."""
    angle = curvature * distance
    half = angle / 2
    # sin(a) / c = d sinc(a), (1 - cos(a)) / c = d sin(a / 2) sinc(a / 2): straight on divides by 0.
    x = distance * torch.sinc(angle / torch.pi) - across * torch.sin(angle)
    y = distance * torch.sin(half) * torch.sinc(half / torch.pi) + across * torch.cos(angle)
    return torch.stack([x, y], -1)


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
