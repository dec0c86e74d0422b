"""Brings a batch to a device; video that comes encoded is decoded there, through torchcodec.

On an NVIDIA GPU its video decoder (NVDEC) does that. torchcodec is optional, and is imported where
it is used.
"""

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from fsdtrain.data.batch import ClipBatch, EncodedVideo, RgbFrames
from fsdtrain.data.encoded import wrap_h264
from fsdtrain.data.video import encode_h264
from fsdtrain.errors import DataError, UserError

_REMEDY = "or use data.frames=i420, which decodes in the workers"


def move_batch(batch: ClipBatch, device: torch.device) -> ClipBatch:
    """The batch on `device`; copies out of pinned memory are only begun.

    Raises:
        DataError: a video cannot be decoded, by the clip's name.
    """
    if isinstance(batch.frames, EncodedVideo):
        batch = batch._replace(frames=decode_video(batch.frames, device))
    moved: ClipBatch = tree_map(lambda tensor: tensor.to(device, non_blocking=True), batch)
    return moved


def decode_video(video: EncodedVideo, device: torch.device) -> RgbFrames:
    """All frames of all cameras; numbers stay where they are.

    A picture that a decoder has patched up is not found out: what the shards store is guarded by
    checksums, and `data verify` decodes with FFmpeg's corruption flag.

    Raises:
        DataError: a video cannot be decoded, or is of another size than the calibration says.
    """
    (B, T), N = video.frame_index_BT.shape, video.ends_BN.shape[1]
    height, width = video.stored_size
    planes_BTN3HW = torch.empty((B, T, N, 3, height, width), dtype=torch.uint8, device=device)
    ends = video.ends_BN.flatten().tolist()
    for number, (start, end) in enumerate(zip([0, *ends], ends, strict=False)):
        clip, camera = divmod(number, N)
        where = video.where_BN[clip][camera]
        frames = video.frame_index_BT[clip].tolist()
        try:
            pictures_T3HW = _decode(video.bytes_L[start:end], frames, device)
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, ValueError, IndexError) as error:  # torchcodec has none of its own
            raise DataError(f"{where}: cannot be decoded on {device}: {error}") from error
        if pictures_T3HW.shape != planes_BTN3HW[clip, :, camera].shape:
            raise DataError(
                f"{where}: decodes to {tuple(pictures_T3HW.shape)}, the calibration says "
                f"{width}x{height}"
            )
        planes_BTN3HW[clip, :, camera] = pictures_T3HW
    return RgbFrames(
        planes_BTNRW=planes_BTN3HW.flatten(3, 4),
        window_BN4=video.window_BN4,
        chroma_site_BN2=torch.ones(B, N, 2),
        to_rgb_BN34=torch.eye(3, 4).repeat(B, N, 1, 1),
        colour_BN34=video.colour_BN34,
        is_mirrored_B=video.is_mirrored_B,
    )


def check_decoding(device: torch.device | None) -> None:
    """Decode one picture, as a trial.

    Raises:
        UserError: the device is no NVIDIA GPU, or torchcodec is missing or cannot decode on it.
    """
    if device is None or device.type != "cuda" or torch.version.hip is not None:
        raise UserError(
            f"data.frames=h264 decodes on an NVIDIA GPU, this run computes on "
            f"{'the CPU' if device is None or device.type == 'cpu' else device}: choose "
            f"backend=cuda on a machine that has one, {_REMEDY}"
        )
    try_decoding(device)


def try_decoding(device: torch.device) -> None:
    """The trial by itself, on any device.

    Raises:
        UserError: torchcodec is missing or cannot decode.
    """
    # NVDEC takes no smaller H.264 than 48 x 16 (NVIDIA's Video Codec SDK).
    size = (64, 64)
    data = encode_h264([torch.full((*size, 3), 128, dtype=torch.uint8).numpy()], frame_rate_hz=1.0)
    video = wrap_h264(data, num_frames=1, frames=[0], stored_size=size, where="trial")
    try:
        _decode(torch.frombuffer(bytearray(video), dtype=torch.uint8), [0], device)
    except ModuleNotFoundError as error:
        raise UserError(
            f"data.frames=h264 needs torchcodec ({error}): install fsdtrain[nvdec], {_REMEDY}"
        ) from error
    except (ImportError, OSError, RuntimeError, ValueError) as error:
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise UserError(
            f"data.frames=h264: torchcodec cannot decode on {device}: {reason} (it needs FFmpeg's "
            "shared libraries, 4 to 8, beside it, and for a GPU a build of its own for torch's "
            f"CUDA); install them, {_REMEDY}"
        ) from error


def _decode(video_L: Tensor, frames: list[int], device: torch.device) -> Tensor:
    """RGB [T, 3, H, W]."""
    from torchcodec.decoders import VideoDecoder

    # One thread: FFmpeg's other ones would take the cores of the workers.
    decoder = VideoDecoder(video_L, device=device, num_ffmpeg_threads=1, seek_mode="exact")
    pictures: Tensor = decoder.get_frames_at(frames).data
    return pictures
