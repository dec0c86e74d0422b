from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from fsdtrain.data.geometry import BevGrid, yaw_quaternion
from fsdtrain.data.schema import Box3d
from fsdtrain.report.example_picture import ExampleClip, draw_example

GRID = BevGrid(x_min_m=-20.0, x_max_m=30.0, y_min_m=-25.0, y_max_m=25.0, cell_m=1.0)


def looking(yaw_rad: float) -> np.ndarray:
    """A level camera, 1.5 m up: camera z to the yaw, x to its right, y down."""
    cos, sin = np.cos(yaw_rad), np.sin(yaw_rad)
    return np.array([[sin, 0, cos, 0], [-cos, 0, sin, 0], [0, -1, 0, 1.5], [0, 0, 0, 1.0]])


def make_box(x: float, y: float) -> Box3d:
    return Box3d(
        category="car",
        track_id="1",
        center_m=(x, y, 0.8),
        size_m=(4.5, 1.8, 1.6),
        rotation_wxyz=yaw_quaternion(0.3),
    )


@pytest.fixture
def make_example() -> Callable[..., ExampleClip]:
    def make(yaws: list[float], *, height: int = 48, width: int = 96) -> ExampleClip:
        rng = np.random.default_rng(4)
        probability = np.zeros(GRID.shape, dtype=np.float32)
        probability[30:34, 24:27] = 0.9
        steps = 0.5 * np.arange(1, 5)
        return ExampleClip(
            clip_id="scene-0001_00",
            camera_names=tuple(f"camera_{index}" for index in range(len(yaws))),
            images_NHWC=rng.integers(40, 90, (len(yaws), height, width, 3), dtype=np.uint8),
            intrinsics_N33=np.tile(
                [[60.0, 0, width / 2], [0, 60, height / 2], [0, 0, 1]], (len(yaws), 1, 1)
            ),
            camera_to_ego_N44=np.stack([looking(yaw) for yaw in yaws]),
            boxes=(make_box(12, 0.5), make_box(200, 0)),
            grid=GRID,
            vehicle_probability_XY=probability,
            vehicle_truth_XY=probability > 0.5,
            path_truth_S2=np.stack([8 * steps, 0.4 * steps**2], axis=-1),
            path_prediction_KS2=np.stack(
                [np.stack([8 * steps, k * steps**2], axis=-1) for k in (0.3, 0.0, -0.4)]
            ),
            path_mode_probability_K=np.array([0.7, 0.25, 0.05]),
            path_constant_velocity_S2=np.stack([8 * steps, 0 * steps], axis=-1),
        )

    return make


@pytest.mark.parametrize(
    "yaws",
    [[0.0], [0.9, 0.0, -0.9], [0.0, np.pi], [0.0, 0.9, -0.9, np.pi, 2.3, -2.3]],
    ids=["one", "three", "front and rear", "six"],
)
def test_pictures_of_any_rig_have_a_sensible_size(
    make_example: Callable[..., ExampleClip], yaws: list[float]
) -> None:
    image = draw_example(make_example(yaws))
    assert image.mode == "RGB"
    assert 700 <= image.width <= 2200
    assert 400 <= image.height <= 1000


def test_everything_known_is_in_its_colour(make_example: Callable[..., ExampleClip]) -> None:
    pixels = np.asarray(draw_example(make_example([0.0, 1.2, -1.2])).convert("RGB")).astype(int)
    for name, color in {
        "true boxes and cells": (255, 199, 64),
        "predicted path": (255, 92, 205),
        "true path": (96, 230, 128),
    }.items():
        near = np.abs(pixels - color).max(axis=-1) < 40
        assert near.sum() > 100, name


def test_a_clip_without_labels_or_predictions_is_drawn(
    make_example: Callable[..., ExampleClip],
) -> None:
    bare = replace(
        make_example([0.0, 1.0]),
        boxes=(),
        vehicle_probability_XY=None,
        vehicle_truth_XY=None,
        path_truth_S2=None,
        path_prediction_KS2=None,
        path_mode_probability_K=None,
        path_constant_velocity_S2=None,
    )
    image = np.asarray(draw_example(bare)).astype(int)
    assert (np.abs(image - (255, 199, 64)).max(axis=-1) < 20).sum() == 0


def test_boxes_outside_the_grid_are_left_out(make_example: Callable[..., ExampleClip]) -> None:
    example = make_example([0.0])
    without = replace(example, boxes=(make_box(12, 0.5),))
    assert draw_example(example).tobytes() == draw_example(without).tobytes()


def test_a_path_known_for_no_step_is_drawn(make_example: Callable[..., ExampleClip]) -> None:
    example = make_example([0.0])
    without = draw_example(replace(example, path_truth_S2=np.zeros((0, 2))))
    assert without.tobytes() != draw_example(example).tobytes()


def test_two_draws_are_equal(make_example: Callable[..., ExampleClip]) -> None:
    example = make_example([0.0, np.pi])
    assert draw_example(example).tobytes() == draw_example(example).tobytes()
