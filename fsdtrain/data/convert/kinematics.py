"""Velocities and ego tracks from poses, by finite differences.

Knows no source format. Recordings that carry poses alone get their kinematics here, so that all
converted data has them by one rule.
"""

from collections.abc import Sequence

import numpy as np

from fsdtrain.data.geometry import Array, pose_from_matrix, yaw_of
from fsdtrain.data.schema import EgoState, EgoTrack, Vector3


def differentiate(times_ns: Sequence[int], values: Array) -> Array:
    """Rates of change per second along axis 0: second-order inside, one-sided at the ends.

    At least two moments, strictly increasing.
    """
    times_s = (np.asarray(times_ns, dtype=np.int64) - times_ns[0]) / 1e9
    return np.asarray(np.gradient(values, times_s, axis=0))


def track_ego(times_ns: Sequence[int], ego_to_world_T44: Array) -> EgoTrack:
    """The ego track through poses [T, 4, 4]; a single pose gives one state at rest."""
    num_states = len(times_ns)
    velocity_world = np.zeros((num_states, 3))
    acceleration_world = np.zeros((num_states, 3))
    yaw_rate = np.zeros(num_states)
    if num_states > 1:
        velocity_world = differentiate(times_ns, ego_to_world_T44[:, :3, 3])
        acceleration_world = differentiate(times_ns, velocity_world)
        yaw_rate = differentiate(times_ns, np.unwrap([yaw_of(pose) for pose in ego_to_world_T44]))
    states = []
    for number, (time_ns, pose) in enumerate(zip(times_ns, ego_to_world_T44, strict=True)):
        world_to_ego = pose[:3, :3].T
        states.append(
            EgoState(
                timestamp_ns=time_ns,
                ego_to_world=pose_from_matrix(pose),
                velocity_mps=vector3(world_to_ego @ velocity_world[number]),
                acceleration_mps2=vector3(world_to_ego @ acceleration_world[number]),
                yaw_rate_radps=float(yaw_rate[number]),
            )
        )
    return EgoTrack(states=tuple(states))


def vector3(values: Array) -> Vector3:
    """Three plain floats."""
    x, y, z = (float(value) for value in values)
    return (x, y, z)
