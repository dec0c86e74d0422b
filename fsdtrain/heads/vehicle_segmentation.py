"""Bird's-eye-view vehicle segmentation, by Simple-BEV's protocol (arXiv 2206.07959).

A cell is vehicle where its centre lies in the footprint of a vehicle's box. Vehicles that were
hardly seen count neither as vehicle nor as free.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn
from torchmetrics import Metric

from fsdtrain import losses
from fsdtrain.data.batch import ClipBatch, ClipWindow
from fsdtrain.data.geometry import BevGrid, rotation_matrix
from fsdtrain.data.schema import VEHICLE_CLASSES, Box3d
from fsdtrain.heads.head import Head, Outputs, Prior, TargetBuilder
from fsdtrain.metrics import PriorMap, SummedIou
from fsdtrain.models.blocks import ConvNormRelu

# ClipBatch.targets entry, uint8 [B, T, X, Y]: FREE, 1 + the visibility in whole percent of the
# most visible vehicle there, or UNKNOWN. Every variant of "which vehicles count" reads this one.
COVER = "vehicle_cover"
FREE = 0
FULLY_VISIBLE = 101
UNKNOWN = 255


@dataclass(frozen=True, kw_only=True)
class VehicleTargets:
    """The target builder: rasterises the vehicles of every frame of a window."""

    grid: BevGrid

    def __call__(self, window: ClipWindow) -> dict[str, NDArray[np.generic]]:
        num_frames = len(window.timestamps_s_T)
        if window.boxes is None:
            return {COVER: np.full((num_frames, *self.grid.shape), UNKNOWN, dtype=np.uint8)}
        return {COVER: np.stack([rasterise_vehicles(boxes, self.grid) for boxes in window.boxes])}


def rasterise_vehicles(boxes: tuple[Box3d, ...], grid: BevGrid) -> NDArray[np.uint8]:
    """[X, Y] cover codes; a box without a visibility counts as fully visible."""
    cover = np.full(grid.shape, FREE, dtype=np.uint8)
    for box in boxes:
        if box.category in VEHICLE_CLASSES:
            # The sliver keeps 0.29 * 100 from falling to 28.
            percent = 100.0 if box.visibility is None else box.visibility * 100 + 1e-6
            _fill_footprint(cover, box, grid, np.uint8(1 + int(percent)))
    return cover


def _fill_footprint(cover: NDArray[np.uint8], box: Box3d, grid: BevGrid, code: np.uint8) -> None:
    """Raise to `code` the cells whose centres lie in the box seen from above; edges count."""
    cos, sin = rotation_matrix(box.rotation_wxyz)[:2, 0]
    norm = np.hypot(cos, sin)
    if norm < 1e-6:  # a box that stands on its nose has no heading, nor a footprint we could name
        return
    cos, sin = cos / norm, sin / norm
    half_length, half_width = box.size_m[0] / 2, box.size_m[1] / 2
    reach_x = abs(cos) * half_length + abs(sin) * half_width
    reach_y = abs(sin) * half_length + abs(cos) * half_width
    x0, y0 = box.center_m[0] - grid.x_min_m, box.center_m[1] - grid.y_min_m
    rows = _cells_between(x0 - reach_x, x0 + reach_x, grid.cell_m, grid.shape[0])
    columns = _cells_between(y0 - reach_y, y0 + reach_y, grid.cell_m, grid.shape[1])
    dx = ((np.arange(rows.start, rows.stop) + 0.5) * grid.cell_m - x0)[:, None]
    dy = ((np.arange(columns.start, columns.stop) + 0.5) * grid.cell_m - y0)[None, :]
    is_inside = (np.abs(cos * dx + sin * dy) <= half_length) & (
        np.abs(cos * dy - sin * dx) <= half_width
    )
    window = cover[rows, columns]
    np.maximum(window, code, out=window, where=is_inside)


def _cells_between(low_m: float, high_m: float, cell_m: float, num_cells: int) -> slice:
    """A few cells too many are harmless: the caller tests each centre."""
    first = min(max(int(np.floor(low_m / cell_m)), 0), num_cells)
    last = min(max(int(np.ceil(high_m / cell_m)), first), num_cells)
    return slice(first, last)


def vehicle_maps(cover: Tensor, min_visibility_percent: int) -> tuple[Tensor, Tensor]:
    """(is vehicle, is valid), bool: less visible vehicles and the unknown are not valid."""
    is_vehicle = (cover > min_visibility_percent) & (cover != UNKNOWN)
    return is_vehicle, is_vehicle | (cover == FREE)


class VehicleSegmentation(Head):
    """One logit a cell.

    Args:
        in_channels: of the BEV features.
        grid: the model's.
        positive_weight: of the cross entropy.
        dice_weight: of the dice loss that is added; 0 leaves it out.
        loss_weight: of both together.
        min_visibility_percent: vehicles seen less than this are neither learnt nor scored.
    """

    unit: ClassVar[str] = "IoU"
    better: ClassVar[Literal["higher", "lower"]] = "higher"
    protocol: ClassVar[str] = (
        "Vehicle cells of the last frame at probability 0.5; intersection and union summed over "
        "the whole set (Simple-BEV's protocol)"
    )

    def __init__(
        self,
        *,
        in_channels: int,
        grid: BevGrid,
        positive_weight: float,
        dice_weight: float,
        loss_weight: float,
        min_visibility_percent: int,
    ) -> None:
        super().__init__()
        self.grid = grid
        self.positive_weight = positive_weight
        self.dice_weight = dice_weight
        self.loss_weight = loss_weight
        self.min_visibility_percent = min_visibility_percent
        self.mix = ConvNormRelu(in_channels, in_channels)
        self.classify = nn.Conv2d(in_channels, 1, 1)
        assert self.classify.bias is not None
        # Vehicles cover a few percent of the ground; starting there saves the first steps.
        nn.init.constant_(self.classify.bias, -3.0)

    def target_builder(self) -> TargetBuilder:
        return VehicleTargets(grid=self.grid)

    def forward(self, bev_BTCXY: Tensor, batch: ClipBatch) -> dict[str, Tensor]:
        """`logits_BTXY` of the frames the model encoded."""
        logits = self.classify(self.mix(bev_BTCXY.flatten(0, 1))).squeeze(1)
        return {"logits_BTXY": logits.unflatten(0, bev_BTCXY.shape[:2])}

    def loss(self, outputs: Outputs, batch: ClipBatch) -> dict[str, Tensor]:
        logits_BTXY = outputs["logits_BTXY"]
        cover_BTXY = batch.targets[COVER][:, -logits_BTXY.shape[1] :]
        target, valid = vehicle_maps(cover_BTXY, self.min_visibility_percent)
        weighted = {
            "cross_entropy": self.loss_weight
            * losses.binary_cross_entropy(
                logits_BTXY, target, valid, positive_weight=self.positive_weight
            )
        }
        if self.dice_weight > 0:
            weight = self.loss_weight * self.dice_weight
            weighted["dice"] = weight * losses.dice(logits_BTXY, target, valid)
        return weighted

    def prior(self) -> Metric:
        return VehiclePrior(self.grid, self.min_visibility_percent)

    def metric(self, prior: Prior | None = None) -> Metric:
        return VehicleIou(self.min_visibility_percent, prior)


class VehiclePrior(PriorMap):
    """The frequency map of the vehicles in the last frames of the training set."""

    def __init__(self, grid: BevGrid, min_visibility_percent: int) -> None:
        super().__init__(grid.shape)
        self.min_visibility_percent = min_visibility_percent

    def update(self, batch: ClipBatch) -> None:  # type: ignore[override]  # Metric's is open
        super().update(*vehicle_maps(batch.targets[COVER][:, -1], self.min_visibility_percent))


class VehicleIou(SummedIou):
    """Summed IoU of the last frame at probability 0.5.

    `iou` over all vehicles that were seen at all; `iou_visible` over those of which at least 40 %
    were visible, the others' cells left out (nuScenes' visibility >= 2); for each, the IoU of the
    constant prior map beside it.
    """

    def __init__(self, min_visibility_percent: int, prior: Prior | None) -> None:
        self.percents = {"iou": min_visibility_percent, "iou_visible": 40}
        self.prior_map_XY = None if prior is None else prior["map_XY"]
        suffixes = [""] if prior is None else ["", "_baseline_prior"]
        super().__init__([name + suffix for name in self.percents for suffix in suffixes])

    def update(self, outputs: Outputs, batch: ClipBatch) -> None:  # type: ignore[override]
        cover_BXY = batch.targets[COVER][:, -1]
        for name, percent in self.percents.items():
            target, valid = vehicle_maps(cover_BXY, percent)
            super().update(name, outputs["logits_BTXY"][:, -1] > 0, target, valid)
            if self.prior_map_XY is not None:
                prior_BXY = self.prior_map_XY.to(target.device).expand_as(target)
                super().update(f"{name}_baseline_prior", prior_BXY, target, valid)
