"""One training batch: the tensors that leave the data plane and enter the model.

Shape letters, used in tensor names everywhere: B clips, T frames, N cameras, C channels,
H image rows, W image columns, X BEV cells forward, Y BEV cells to the left, S future steps, K modes.
"""

from typing import NamedTuple

import torch


class ClipBatch(NamedTuple):
    """Tensors of B clips of T frames from N cameras. Frames of reference: `geometry.py`.

    A NamedTuple, so that DataLoader, Lightning and torch.compile take it as it is.
    """

    frames_BTNCHW: torch.Tensor  # uint8 RGB
    intrinsics_BN33: torch.Tensor  # float32, pixels of frames_BTNCHW
    camera_to_ego_BN44: torch.Tensor  # float32
    previous_to_current_BT44: torch.Tensor  # float32, ego frame of t-1 -> ego frame of t; t=0: identity
    frame_interval_s_BT: torch.Tensor  # float32, seconds since frame t-1; t=0: 0
    reset_BT: torch.Tensor  # bool, True where the memory must start afresh
    vehicle_BTXY: torch.Tensor  # float32 0/1, cells covered by a vehicle
    vehicle_valid_BTXY: torch.Tensor  # float32 0/1, cells that count in loss and metric
    path_BS2: torch.Tensor  # float32, future ego (x, y) in the ego frame of the last frame
    path_valid_BS: torch.Tensor  # float32 0/1
    speed_B: torch.Tensor  # float32 m/s at the last frame, for baselines; the model does not read it
    yaw_rate_B: torch.Tensor  # float32 rad/s, likewise
    clip_index_B: torch.Tensor  # int64, position in the data set's list of clips
