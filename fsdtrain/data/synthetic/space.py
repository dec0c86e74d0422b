"""Who is where in a scene, so that no two road users ever touch."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fsdtrain.data.geometry import Array
from fsdtrain.data.synthetic.compiled import compiled
from fsdtrain.data.synthetic.traffic import Motion
from fsdtrain.data.synthetic.vehicles import Model

CLEARANCE_M = 0.35  # kept between any two
SIGHT_M = 60.0  # road users farther from the ego at all moments are left out


@dataclass(frozen=True, kw_only=True)
class Actor:
    """A road user: its looks and the motion of its centre at all moments of the scene."""

    track_id: str
    model: Model
    motion: Motion

    @property
    def is_moving(self) -> bool:
        """Whether it changes place or heading at all."""
        return bool((self.motion.pose_K3 != self.motion.pose_K3[0]).any())


class Space:
    """Admits road users one by one and refuses what would touch; owned by one `draw_scene`."""

    def __init__(self, num_moments: int) -> None:
        self.num_moments = num_moments
        self.actors: list[Actor] = []
        self._num_taken = 0  # the first taken place is the ego's
        self._poses_AK3 = np.empty((64, num_moments, 3))
        # x, y and radius of a circle that holds it at all moments, length, width
        self._bounds_A5 = np.empty((64, 5))

    def is_free(self, pose_K3: Array, length_m: float, width_m: float) -> bool:
        """Whether a rectangle on this motion stays clear of all others at all moments."""
        bound = _bound(pose_K3, length_m + CLEARANCE_M, width_m + CLEARANCE_M)
        taken = self._num_taken
        return not touches_any(self._poses_AK3[:taken], self._bounds_A5[:taken], pose_K3, bound)

    def block(self, pose_K3: Array, length_m: float, width_m: float) -> None:
        """Take room without being a labelled road user."""
        if self._num_taken == len(self._bounds_A5):
            self._poses_AK3 = np.concatenate([self._poses_AK3, np.empty_like(self._poses_AK3)])
            self._bounds_A5 = np.concatenate([self._bounds_A5, np.empty_like(self._bounds_A5)])
        self._poses_AK3[self._num_taken] = pose_K3
        self._bounds_A5[self._num_taken] = _bound(
            pose_K3, length_m + CLEARANCE_M, width_m + CLEARANCE_M
        )
        self._num_taken += 1

    def add(self, model: Model, motion: Motion) -> bool:
        """Admit a road user if it stays clear and comes within sight."""
        gap = np.linalg.norm(motion.pose_K3[:, :2] - self._poses_AK3[0, :, :2], axis=-1).min()
        if gap > SIGHT_M or not self.is_free(motion.pose_K3, model.size_m[0], model.size_m[1]):
            return False
        self.block(motion.pose_K3, model.size_m[0], model.size_m[1])
        track_id = f"{model.category}-{len(self.actors):03d}"
        self.actors.append(Actor(track_id=track_id, model=model, motion=motion))
        return True

    def stand(self, model: Model, x: float, y: float, yaw: float) -> bool:
        """Admit a road user that does not move."""
        return self.add(model, Motion.standing(x, y, yaw, self.num_moments))


def _bound(pose_K3: Array, length_m: float, width_m: float) -> Array:
    low, high = pose_K3[:, :2].min(axis=0), pose_K3[:, :2].max(axis=0)
    radius = (math.dist(low, high) + math.hypot(length_m, width_m)) / 2
    return np.array([(low[0] + high[0]) / 2, (low[1] + high[1]) / 2, radius, length_m, width_m])


@compiled
def touches_any(
    poses_AK3: Array, bounds_A5: Array, pose_K3: Array, bound: NDArray[np.float64]
) -> bool:
    """Whether a moving rectangle meets any of the others at any moment, by separating axes.

    Args:
        poses_AK3: (x, y, yaw) of the others at K moments.
        bounds_A5: of the others: circle (x, y, radius) over all moments, length, width.
        pose_K3: of the one.
        bound: [5] of the one.
    """
    for a in range(len(bounds_A5)):
        gap = np.hypot(bounds_A5[a, 0] - bound[0], bounds_A5[a, 1] - bound[1])
        if gap >= bounds_A5[a, 2] + bound[2]:
            continue
        near = np.hypot(bounds_A5[a, 3], bounds_A5[a, 4]) + np.hypot(bound[3], bound[4])
        for k in range(len(pose_K3)):
            dx, dy = poses_AK3[a, k, 0] - pose_K3[k, 0], poses_AK3[a, k, 1] - pose_K3[k, 1]
            if 4.0 * (dx * dx + dy * dy) >= near * near:
                continue
            is_apart = False
            for axis in range(4):
                yaw = pose_K3[k, 2] if axis < 2 else poses_AK3[a, k, 2]
                yaw += np.pi / 2 * (axis % 2)
                one, other = yaw - pose_K3[k, 2], yaw - poses_AK3[a, k, 2]
                reach = abs(np.cos(one)) * bound[3] + abs(np.sin(one)) * bound[4]
                reach += abs(np.cos(other)) * bounds_A5[a, 3]
                reach += abs(np.sin(other)) * bounds_A5[a, 4]
                if 2.0 * abs(dx * np.cos(yaw) + dy * np.sin(yaw)) >= reach:
                    is_apart = True
                    break
            if not is_apart:
                return True
    return False
