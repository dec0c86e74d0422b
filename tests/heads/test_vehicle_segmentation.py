import pickle
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from fsdtrain.data.batch import ClipBatch, ClipWindow
from fsdtrain.data.geometry import BevGrid, invert_pose, pose_matrix, transform_points
from fsdtrain.data.schema import Box3d, ObjectClass, Pose, Quaternion
from fsdtrain.heads.vehicle_segmentation import (
    COVER,
    FREE,
    FULLY_VISIBLE,
    UNKNOWN,
    VehicleSegmentation,
    VehicleTargets,
    rasterise_vehicles,
    vehicle_maps,
)

GRID = BevGrid(x_min_m=-4.0, x_max_m=6.0, y_min_m=-5.0, y_max_m=3.0, cell_m=0.5)


def make_box(
    x_m: float = 0.0,
    y_m: float = 0.0,
    *,
    size_m: tuple[float, float, float] = (2.0, 1.0, 1.5),
    yaw_rad: float = 0.0,
    category: ObjectClass = "car",
    visibility: float | None = None,
) -> Box3d:
    rotation: Quaternion = (float(np.cos(yaw_rad / 2)), 0.0, 0.0, float(np.sin(yaw_rad / 2)))
    return Box3d(
        category=category,
        track_id="1",
        center_m=(x_m, y_m, 0.75),
        size_m=size_m,
        rotation_wxyz=rotation,
        visibility=visibility,
    )


def make_head(**changes: float) -> VehicleSegmentation:
    options = {"positive_weight": 2.13, "dice_weight": 0.0, "loss_weight": 1.0} | changes
    return VehicleSegmentation(in_channels=4, grid=GRID, min_visibility_percent=1, **options)


@pytest.mark.parametrize("seed", range(20))
def test_a_cell_is_covered_when_its_centre_is_inside_the_box(seed: int) -> None:
    rng = np.random.default_rng(seed)
    # Reaching over the grid's edges and beyond; some smaller than a cell.
    x, y, yaw = rng.uniform([-6, -7, -4], [8, 5, 4])
    length, width = rng.uniform(0.2, 6, 2)
    box = make_box(x, y, size_m=(length, width, 1.5), yaw_rad=yaw)

    cover = rasterise_vehicles((box,), GRID)

    box_to_ego = pose_matrix(Pose(rotation_wxyz=box.rotation_wxyz, translation_m=box.center_m))
    num_x, num_y = GRID.shape
    for i in range(num_x):
        for j in range(num_y):
            centre = np.array([-4 + (i + 0.5) * 0.5, -5 + (j + 0.5) * 0.5, 0.75])
            along, across, _ = transform_points(invert_pose(box_to_ego), centre)
            is_inside = abs(along) <= length / 2 and abs(across) <= width / 2
            assert (cover[i, j] == FULLY_VISIBLE) == is_inside, (i, j)


def test_only_vehicles_count_and_the_most_visible_wins() -> None:
    boxes = (
        make_box(0.0, 0.0, visibility=0.29),
        make_box(0.0, 0.0, size_m=(1.0, 1.0, 1.5), visibility=0.8),
        make_box(0.0, 0.0, visibility=0.0),
        make_box(4.0, -4.0, category="pedestrian"),
    )
    cover = rasterise_vehicles(boxes, GRID)
    assert sorted(np.unique(cover).tolist()) == [FREE, 1 + 29, 1 + 80]
    assert cover[8, 10] == 1 + 80
    assert cover[6, 10] == 1 + 29


def test_hardly_seen_and_unknown_cells_are_not_valid() -> None:
    cover = torch.tensor([FREE, 1, 1 + 39, 1 + 40, FULLY_VISIBLE, UNKNOWN], dtype=torch.uint8)
    for percent, is_vehicle, is_valid in (
        (0, [0, 1, 1, 1, 1, 0], [1, 1, 1, 1, 1, 0]),
        (1, [0, 0, 1, 1, 1, 0], [1, 0, 1, 1, 1, 0]),
        (40, [0, 0, 0, 1, 1, 0], [1, 0, 0, 1, 1, 0]),
    ):
        vehicle, valid = vehicle_maps(cover, percent)
        assert vehicle.int().tolist() == is_vehicle
        assert valid.int().tolist() == is_valid


def test_targets_of_a_window(make_window: Callable[..., ClipWindow]) -> None:
    build = pickle.loads(pickle.dumps(VehicleTargets(grid=GRID)))
    targets = build(make_window(boxes=((make_box(),), (), (make_box(3.0, 1.0),))))
    assert targets[COVER].shape == (3, *GRID.shape)
    assert targets[COVER].dtype == np.uint8
    assert [bool(frame.any()) for frame in targets[COVER]] == [True, False, True]
    assert (build(make_window())[COVER] == UNKNOWN).all()


def make_cover(seed: int, num_clips: int, num_frames: int) -> torch.Tensor:
    rng = np.random.default_rng(seed)
    return torch.tensor(
        np.array(
            [
                [
                    rasterise_vehicles(
                        (make_box(*rng.uniform(-4, 4, 2), visibility=rng.choice([0.0, 0.2, 0.9])),),
                        GRID,
                    )
                    for _ in range(num_frames)
                ]
                for _ in range(num_clips)
            ]
        )
    )


def test_loss_is_over_the_frames_that_were_encoded(make_batch: Callable[..., ClipBatch]) -> None:
    batch = make_batch({COVER: make_cover(0, 2, 3)}, num_frames=3)
    head = make_head(loss_weight=0.5)
    bev = torch.randn(2, 3, 4, *GRID.shape)
    for num_encoded in (1, 2, 3):
        outputs = head(bev[:, -num_encoded:], batch)
        assert outputs["logits_BTXY"].shape == (2, num_encoded, *GRID.shape)
        cover = batch.targets[COVER][:, -num_encoded:]
        keep = (cover == FREE) | (cover > 1)
        expected = F.binary_cross_entropy_with_logits(
            outputs["logits_BTXY"][keep],
            (cover[keep] > 1).float(),
            pos_weight=torch.tensor(2.13),
        )
        losses = head.loss(outputs, batch)
        assert list(losses) == ["cross_entropy"]
        torch.testing.assert_close(losses["cross_entropy"], 0.5 * expected)
    assert list(make_head(dice_weight=1.0).loss(outputs, batch)) == ["cross_entropy", "dice"]


def test_metric_and_its_baseline_equal_counting(make_batch: Callable[..., ClipBatch]) -> None:
    head = make_head()
    train = [make_batch({COVER: make_cover(seed, 4, 2)}) for seed in range(5)]
    val = [make_batch({COVER: make_cover(100 + seed, 3, 2)}) for seed in range(3)]
    logits = [torch.randn(3, 2, *GRID.shape, generator=torch.manual_seed(i)) for i in range(3)]

    accumulator = head.prior()
    assert accumulator is not None
    for batch in train:
        accumulator.update(batch)
    prior = accumulator.compute()
    metric = head.metric(prior)
    for batch, output in zip(val, logits, strict=True):
        metric.update({"logits_BTXY": output}, batch)
    figures = metric.compute()

    cover = torch.cat([batch.targets[COVER][:, -1] for batch in val]).numpy()
    predicted = (torch.cat(logits)[:, -1] > 0).numpy()
    constant = np.broadcast_to(prior["map_XY"].numpy(), cover.shape)
    for name, lowest in (("iou", 2), ("iou_visible", 41)):
        vehicle, keep = cover >= lowest, (cover >= lowest) | (cover == FREE)
        for guess, suffix in ((predicted, ""), (constant, "_baseline_prior")):
            expected = (guess & vehicle & keep).sum() / ((guess | vehicle) & keep).sum()
            assert figures[name + suffix].item() == pytest.approx(expected)
