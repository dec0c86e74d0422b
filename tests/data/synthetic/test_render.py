"""Pictures against labels: what a box projects to is where the renderer drew it."""

import numpy as np
import pytest
from numpy.typing import NDArray

from fsdtrain.data.geometry import box_corners, project_points
from fsdtrain.data.schema import Box3d
from fsdtrain.data.synthetic.labels import label_boxes
from fsdtrain.data.synthetic.render import Frame, Geometry, Renderer
from fsdtrain.data.synthetic.rig import RigCamera, draw_rig
from fsdtrain.data.synthetic.world import Scene, draw_scene
from fsdtrain.errors import UserError

SAMPLES = 2
HEIGHT, WIDTH = 62, 114


def _stage(index: int) -> tuple[Scene, Renderer, tuple[RigCamera, ...]]:
    scene = draw_scene(seed=3, split="val", index=index, num_frames=3, frame_rate_hz=5.0)
    rig = draw_rig(
        np.random.default_rng(index), num_cameras=5, width=WIDTH, height=HEIGHT, fov_deg=85.0
    )
    return scene, Renderer(scene, samples=SAMPLES), rig


def _rectangle(camera: RigCamera, box: Box3d) -> tuple[float, float, float, float] | None:
    """(u0, u1, v0, v1) in samples of a box wholly in front of the camera, else None."""
    uv, depth = project_points(camera.calibration, box_corners(box))
    if depth.min() < 0.1:
        return None
    low, high = uv.min(axis=0) * SAMPLES, uv.max(axis=0) * SAMPLES
    return low[0], high[0], low[1], high[1]


@pytest.mark.parametrize("index", range(4))
def test_boxes_project_onto_their_own_pixels(index: int) -> None:
    scene, renderer, rig = _stage(index)
    moment = scene.frame_moments[-1]
    frame = renderer.begin_frame(moment)
    images = [renderer.cast(frame, camera.calibration) for camera in rig]
    boxes = label_boxes(scene, moment, frame.visible, frame.unoccluded)
    checked = 0
    for camera, image in zip(rig, images, strict=True):
        instances = image.instances(frame)
        for number, box in enumerate(boxes):
            rows, columns = np.nonzero(instances == number)
            rectangle = _rectangle(camera, box)
            if rectangle is None or not len(rows):
                continue
            u0, u1, v0, v1 = rectangle
            # Sample i covers [i, i + 1); its ray goes through the middle.
            assert u0 - 0.01 <= columns.min() + 0.5
            assert columns.max() + 0.5 <= u1 + 0.01
            assert v0 - 0.01 <= rows.min() + 0.5
            assert rows.max() + 0.5 <= v1 + 0.01
            checked += 1
            if box.visibility is not None and box.visibility > 0.999 and len(rows) > 400:
                # Fully seen, so the drawn shape nearly fills the box (cabins lean).
                inside = u0 > 0 and u1 < WIDTH * SAMPLES and v0 > 0 and v1 < HEIGHT * SAMPLES
                if inside and box.category in ("car", "truck", "bus"):
                    assert np.ptp(columns) + 1 > 0.85 * (u1 - u0) - 2
                    assert np.ptp(rows) + 1 > 0.8 * (v1 - v0) - 2
    assert checked >= 5


@pytest.mark.parametrize("index", range(4))
def test_the_middle_of_a_box_is_seen_or_hidden_by_something_nearer(index: int) -> None:
    scene, renderer, rig = _stage(index)
    moment = scene.frame_moments[0]
    frame = renderer.begin_frame(moment)
    checked = 0
    for camera in rig:
        image = renderer.cast(frame, camera.calibration)
        instances = image.instances(frame)
        for number, box in enumerate(label_boxes(scene, moment, frame.visible, frame.unoccluded)):
            if box.category not in ("car", "truck", "bus"):
                continue  # two-wheelers and people are not solid at their middle
            # Just above the sill: no shape has a gap there.
            middle = np.array([box.center_m[0], box.center_m[1], min(0.6, box.size_m[2] / 2)])
            uv, depth = project_points(camera.calibration, middle)
            u, v = (uv * SAMPLES).astype(np.int64) if depth > 0 else (-1, -1)
            if 0 <= u < WIDTH * SAMPLES and 0 <= v < HEIGHT * SAMPLES:
                is_own = instances[v, u] == number
                assert is_own or image.depth[v, u] < depth
                checked += int(is_own)
    assert checked >= 1


def test_visibility_is_what_is_left_when_others_are_put_in_front() -> None:
    scene, renderer, rig = _stage(1)
    frame = renderer.begin_frame(0)
    images = [renderer.cast(frame, camera.calibration) for camera in rig]
    shown = np.zeros(len(scene.actors), np.int64)
    for image in images:
        instances = image.instances(frame)
        shown += np.bincount(instances[instances >= 0], minlength=len(shown))
    assert (frame.visible == shown).all()
    # Alone in the world, each covers what was counted as unoccluded.
    for number in np.flatnonzero(frame.unoccluded)[:6]:
        only = frame.solids[frame.solids["instance"] == number]
        alone = Frame(
            ego_to_world=frame.ego_to_world,
            solids=only,
            light=frame.light,
            unoccluded=np.zeros_like(frame.unoccluded),
            visible=np.zeros_like(frame.visible),
        )
        for camera in rig:
            renderer.cast(alone, camera.calibration)
        assert alone.visible[number] == frame.unoccluded[number]


def _render(index: int) -> tuple[list[NDArray[np.uint8]], list[Geometry]]:
    scene, renderer, rig = _stage(index)
    frame = renderer.begin_frame(scene.frame_moments[1])
    images = [
        renderer.render(frame, camera.calibration, camera.sensor, np.random.default_rng(9))
        for camera in rig
    ]
    return images, [renderer.cast(frame, camera.calibration) for camera in rig]


def test_pictures_are_the_same_every_time() -> None:
    first, _ = _render(2)
    second, _ = _render(2)
    for one, other in zip(first, second, strict=True):
        assert np.array_equal(one, other)


def test_pictures_have_contrast_and_every_sample_is_coloured() -> None:
    images, _ = _render(0)
    scene, renderer, rig = _stage(0)
    frame = renderer.begin_frame(0)
    for image, camera in zip(images, rig, strict=True):
        assert image.shape == (HEIGHT, WIDTH, 3)
        assert image.std() > 12
        assert (image == 255).mean() < 0.1
        light = renderer.shade(frame, renderer.cast(frame, camera.calibration))
        assert np.isfinite(light).all()
        assert light.min() >= 0
        assert light.max() < 4


def test_a_car_is_darker_below_than_the_road_beside_it() -> None:
    scene, renderer, _ = _stage(0)
    frame = renderer.begin_frame(0)
    sky = frame.light[..., 1].astype(np.float64)
    cell, half = 0.25, 64.0
    for actor in scene.actors:
        x, y, yaw = actor.motion.pose_K3[0]
        if actor.model.category != "car" or max(abs(x), abs(y)) > half - 6:
            continue
        under = sky[int((x + half) / cell), int((y + half) / cell)]
        assert under < 0.3 * 255


@pytest.mark.parametrize("num_cameras", range(1, 9))
def test_a_rig_looks_all_around(num_cameras: int) -> None:
    fov = min(140.0, 360 / num_cameras + 20)
    rig = draw_rig(
        np.random.default_rng(0), num_cameras=num_cameras, width=96, height=48, fov_deg=fov
    )
    assert len({camera.name for camera in rig}) == num_cameras
    around = np.linspace(-np.pi, np.pi, 73)
    points = np.stack([15 * np.cos(around) + 1.4, 15 * np.sin(around), np.full(73, 0.8)], axis=-1)
    seen = np.zeros(73, dtype=np.bool_)
    for camera in rig:
        uv, depth = project_points(camera.calibration, points)
        seen |= (depth > 0) & (uv >= 0).all(-1) & (uv < (96, 48)).all(-1)
    assert seen.mean() > (0.9 if num_cameras > 2 else 0.3)


def test_rigs_differ_between_vehicles_unless_told_not_to() -> None:
    def draw(seed: int, jitter: float) -> tuple[RigCamera, ...]:
        return draw_rig(
            np.random.default_rng(seed),
            num_cameras=4,
            width=96,
            height=48,
            fov_deg=100.0,
            jitter=jitter,
        )

    assert draw(0, 1.0) == draw(0, 1.0)
    assert draw(0, 1.0) != draw(1, 1.0)
    assert [camera.calibration for camera in draw(0, 0.0)] == [
        camera.calibration for camera in draw(1, 0.0)
    ]


def test_an_impossible_rig_is_refused() -> None:
    with pytest.raises(UserError, match=r"num_cameras is 9, must be 1\.\.8"):
        draw_rig(np.random.default_rng(0), num_cameras=9, width=96, height=48, fov_deg=90.0)
