"""The pictures of a window for people to look at, whichever way the window holds them."""

import numpy as np
import torch
from numpy.typing import NDArray

from fsdtrain.data.batch import ClipWindow, StoredFrames
from fsdtrain.ops.yuv_to_input import yuv_to_input


def last_pictures(window: ClipWindow) -> NDArray[np.uint8]:
    """RGB [N, H, W, 3] of the last frame, as the network gets it."""
    frames = window.frames
    if isinstance(frames, np.ndarray):
        rgb: NDArray[np.uint8] = frames[-1]
        return rgb
    assert isinstance(frames, StoredFrames), "video has to be decoded first"
    num_cameras = len(frames.window_N4)
    rgb_NCHW = yuv_to_input(
        torch.from_numpy(frames.planes_TNRW[-1]),
        torch.from_numpy(frames.window_N4),
        torch.from_numpy(frames.chroma_site_N2),
        torch.from_numpy(frames.to_rgb_N34),
        torch.from_numpy(frames.colour_N34),
        torch.full((num_cameras,), frames.is_mirrored),
        "i420",
        frames.image_size,
        (0.0, 0.0, 0.0),
        (1.0, 1.0, 1.0),
        torch.float64,
    )
    pictures: NDArray[np.uint8] = rgb_NCHW.round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    return pictures
