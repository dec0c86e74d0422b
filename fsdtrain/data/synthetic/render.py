"""Pictures of a scene: geometry, then light, then the sensor.

A frame's solids and shadows are prepared once and seen by all cameras. The passes are numba
kernels in files of their own; this one knows their order and nothing of shapes or colours.
"""

from dataclasses import dataclass
from functools import cache, lru_cache

import numpy as np
from numpy.typing import NDArray

from fsdtrain.data.geometry import Array, pose_matrix
from fsdtrain.data.schema import CameraCalibration
from fsdtrain.data.synthetic.compiled import compiled
from fsdtrain.data.synthetic.ground import FAR_M, shade_ground
from fsdtrain.data.synthetic.ground_map import CELL_M, HALF_M, texture_noise
from fsdtrain.data.synthetic.primitives import Primitives, join, place
from fsdtrain.data.synthetic.raycast import cast_rays, cast_shadows
from fsdtrain.data.synthetic.rig import Sensor, ego_pose
from fsdtrain.data.synthetic.sky import shade_sky
from fsdtrain.data.synthetic.surface import shade_solids
from fsdtrain.data.synthetic.world import Scene

SHADOW_HALF_M = 64.0  # the map of shadows covers [-64, 64) m in world x and y
SHADOW_CELL_M = 0.25
TONE_STEPS = 4096
TONE_RANGE = 2.5  # linear light that the tone curve covers; brighter is white


@dataclass(frozen=True, kw_only=True)
class Frame:
    """A scene at one moment, ready to be seen by any camera."""

    ego_to_world: Array
    solids: Primitives
    light: NDArray[np.uint8]
    unoccluded: NDArray[np.int64]  # [actors] samples that each would cover alone, all cameras
    visible: NDArray[np.int64]  # [actors] samples that each does cover


@dataclass(frozen=True, kw_only=True)
class Geometry:
    """What one image shows at sample resolution [V, U]."""

    view: Array  # see `raycast.cast_rays`
    depth: NDArray[np.float32]  # metres along the optical axis, inf for sky
    solid_index: NDArray[np.int32]  # row of the frame's solids, -1 for ground or sky
    face: NDArray[np.uint8]

    def instances(self, frame: Frame) -> NDArray[np.int32]:
        """[V, U] index of the scene's actor, -1 for anything else."""
        table = np.append(frame.solids["instance"], np.int32(-1))  # row -1: ground and sky
        return np.asarray(table[self.solid_index], dtype=np.int32)


class Renderer:
    """Renders one scene; `samples` x `samples` rays go through each pixel."""

    def __init__(self, scene: Scene, *, samples: int = 2) -> None:
        self._scene, self._samples = scene, samples
        self._sun = np.array(scene.weather.toward_sun)
        self._lighting, self._sky = scene.weather.lighting(), scene.weather.sky()
        self._movers = self._gather(moving=True)
        self._standing = join([scene.scenery, self._place(self._gather(moving=False), 0)])
        cells = round(2 * SHADOW_HALF_M / SHADOW_CELL_M)
        self._standing_light = np.full((cells, cells, 2), 255, np.uint8)
        self._cast_shadows(self._standing, self._standing_light)

    def _gather(self, *, moving: bool) -> Primitives:
        """The solids of road users that do or do not move, each in its own frame."""
        tables = []
        for number, actor in enumerate(self._scene.actors):
            if actor.is_moving == moving:
                solids = actor.model.solids.copy()
                solids["instance"] = number
                tables.append(solids)
        return join(tables)

    def _place(self, solids: Primitives, moment: int) -> Primitives:
        if not len(solids):
            return solids
        poses = np.array([actor.motion.pose_K3[moment] for actor in self._scene.actors])
        x, y, yaw = poses[solids["instance"]].T
        return place(solids, x=x, y=y, yaw=yaw)

    def _cast_shadows(self, solids: Primitives, light: NDArray[np.uint8]) -> None:
        cast_shadows(self._sun, solids, SHADOW_HALF_M, SHADOW_CELL_M, light)

    def begin_frame(self, moment: int) -> Frame:
        """Put everything in its place for one moment of the scene and cast its shadows."""
        moving = self._place(self._movers, moment)
        light = self._standing_light.copy()
        self._cast_shadows(moving, light)
        num_actors = len(self._scene.actors)
        return Frame(
            ego_to_world=pose_matrix(ego_pose(*self._scene.ego.pose_K3[moment])),
            solids=join([self._standing, moving]),
            light=light,
            unoccluded=np.zeros(num_actors, np.int64),
            visible=np.zeros(num_actors, np.int64),
        )

    def cast(self, frame: Frame, camera: CameraCalibration) -> Geometry:
        """The geometry of one image; adds each actor's samples to the frame's counts."""
        view, to_image = _aim(camera, frame.ego_to_world, self._samples)
        shape = (camera.height * self._samples, camera.width * self._samples)
        depth, solid_index = np.empty(shape, np.float32), np.empty(shape, np.int32)
        face, counted = np.zeros(shape, np.uint8), np.empty(shape, np.int32)
        cast_rays(
            view,
            to_image,
            frame.solids,
            depth,
            solid_index,
            face,
            counted,
            frame.unoccluded,
            frame.visible,
        )
        return Geometry(view=view, depth=depth, solid_index=solid_index, face=face)

    def shade(self, frame: Frame, geometry: Geometry) -> NDArray[np.float32]:
        """[V, U, 3] linear light of every sample."""
        view, depth, index = geometry.view, geometry.depth, geometry.solid_index
        rgb = np.empty((*depth.shape, 3), np.float32)
        noise, ground = texture_noise(), self._scene.ground
        shade_sky(view, depth, index, FAR_M, noise, self._lighting, self._sky, rgb)
        shade_ground(
            view,
            self._samples,
            depth,
            index,
            ground.roads,
            ground.lines,
            ground.samples,
            ground.nearest,
            ground.areas,
            ground.colors,
            noise,
            frame.light,
            np.array([HALF_M, CELL_M, SHADOW_HALF_M, SHADOW_CELL_M]),
            self._lighting,
            rgb,
        )
        shade_solids(
            view, depth, index, geometry.face, frame.solids, noise, self._lighting, self._sky, rgb
        )
        return rgb

    def render(
        self, frame: Frame, camera: CameraCalibration, sensor: Sensor, rng: np.random.Generator
    ) -> NDArray[np.uint8]:
        """[H, W, 3] RGB of one image, with the sensor's exposure and noise."""
        rgb = self.shade(frame, self.cast(frame, camera))
        noise = rng.standard_normal((camera.height, camera.width, 3), dtype=np.float32)
        image = np.empty(noise.shape, np.uint8)
        gains = sensor.exposure * np.array(sensor.white_balance)
        limits = np.array([sensor.shot_noise, sensor.read_noise, sensor.vignetting, TONE_RANGE])
        _develop(rgb, self._samples, gains, limits, noise, _tone_curve(), image)
        return image


def _aim(camera: CameraCalibration, ego_to_world: Array, samples: int) -> tuple[Array, Array]:
    """`view` and `to_image` of `raycast.cast_rays` for a pinhole camera at one ego pose."""
    rays, position = _optics(camera, samples)
    view = np.empty((4, 3))
    view[0] = ego_to_world[:3, :3] @ position + ego_to_world[:3, 3]
    view[1:] = (ego_to_world[:3, :3] @ rays).T
    return view, np.asarray(np.linalg.inv(view[1:].T), dtype=np.float64)


@lru_cache(maxsize=64)
def _optics(camera: CameraCalibration, samples: int) -> tuple[Array, Array]:
    """Rays [3, 3] in ego axes (columns: image corner, one sample right, one down), position [3]."""
    assert camera.model == "pinhole"
    to_ray = np.array(
        [
            [-camera.cx / camera.fx, 1 / (camera.fx * samples), 0.0],
            [-camera.cy / camera.fy, 0.0, 1 / (camera.fy * samples)],
            [1.0, 0.0, 0.0],
        ]
    )
    pose = pose_matrix(camera.camera_to_ego)
    return pose[:3, :3] @ to_ray, pose[:3, 3]


@cache
def _tone_curve() -> NDArray[np.float32]:
    """[TONE_STEPS] display value 0..255 of light 0..TONE_RANGE: shoulder, gamma, contrast."""
    light = np.linspace(0, TONE_RANGE, TONE_STEPS)
    shoulder = (1 - np.exp(-1.35 * light)) / (1 - np.exp(-1.35 * TONE_RANGE))
    display = shoulder ** (1 / 2.2)
    contrast = display - 0.05 * np.sin(2 * np.pi * display)
    return np.asarray(255.0 * contrast, dtype=np.float32)


@compiled
def _develop(
    rgb: NDArray[np.float32],
    samples: int,
    gains: Array,
    limits: Array,
    noise: NDArray[np.float32],
    tone: NDArray[np.float32],
    image: NDArray[np.uint8],
) -> None:
    """Average samples to pixels, expose, add noise, apply the tone curve.

    Args:
        rgb: [H * samples, W * samples, 3] linear light.
        samples: per pixel and direction.
        gains: [3] by channel.
        limits: [4] shot noise, read noise, vignetting, light at the end of the tone curve.
        noise: [H, W, 3] standard normal.
        tone: display values over linear light.
        image: [H, W, 3] out.
    """
    height, width, _ = image.shape
    for v in range(height):
        for u in range(width):
            out_x, out_y = 2 * (u + 0.5) / width - 1, 2 * (v + 0.5) / height - 1
            corner = 1.0 - limits[2] * 0.5 * (out_x * out_x + out_y * out_y)
            for c in range(3):
                total = 0.0
                for a in range(samples):
                    for b in range(samples):
                        total += rgb[v * samples + a, u * samples + b, c]
                signal = total / (samples * samples) * gains[c] * corner
                signal += noise[v, u, c] * np.sqrt(limits[0] * max(signal, 0.0) + limits[1] ** 2)
                place = signal / limits[3] * (len(tone) - 1)
                index = int(min(max(place, 0.0), len(tone) - 1.0))
                image[v, u, c] = int(tone[index] + 0.5)
