"""Video that stays encoded on its way to a device, up to the last frame that a window needs.

A bare H.264 stream says neither how many frames it has nor when they are shown, so that a decoder
cannot be asked for one of them: it is wrapped into an mp4 file in memory. Nothing is decoded here.
"""

import io
from collections.abc import Mapping, Sequence
from fractions import Fraction

import av
import numpy as np
from av.video.codeccontext import VideoCodecContext

from fsdtrain.data.batch import EncodedFrames
from fsdtrain.data.schema import Clip
from fsdtrain.data.video import MAX_DECODED_BYTES
from fsdtrain.data.view import View, source_window
from fsdtrain.errors import DataError

_FRAME_RATE_HZ = 25  # of the file; frames are asked for by number


def encoded_frames(
    clip: Clip,
    views: Mapping[str, View],
    chosen: Sequence[int],
    stored_size: tuple[int, int],
    where: str,
) -> EncodedFrames:
    """The chosen frames of all cameras, each of which is stored in `stored_size`.

    Raises:
        DataError: a video does not hold what the clip's meta and calibration say, so far as that
            can be told without decoding it.
    """
    names = clip.meta.cameras
    kept = [views[name] for name in names]
    places = tuple(f"{where}: video.{name}" for name in names)
    return EncodedFrames(
        videos_N=tuple(
            wrap_h264(
                clip.video[name],
                num_frames=clip.meta.num_frames,
                frames=chosen,
                stored_size=stored_size,
                where=place,
            )
            for name, place in zip(names, places, strict=True)
        ),
        where_N=places,
        frame_index_T=np.array(chosen, dtype=np.int64),
        stored_size=stored_size,
        window_N4=np.array([source_window(view, stored_size) for view in kept]),
        colour_N34=np.tile(np.eye(3, 4), (len(kept), 1, 1)),
        is_mirrored=False,
        image_size=(kept[0].height, kept[0].width),
    )


def wrap_h264(
    data: bytes,
    *,
    num_frames: int,
    frames: Sequence[int],
    stored_size: tuple[int, int],
    where: str,
) -> bytes:
    """An mp4 file of the stream's frames up to the last of `frames`; arguments as `decode_h264`'s.

    Raises:
        DataError: the stream holds another number of frames or pictures of another size, does not
            begin with a key frame, or cannot be taken apart.
    """
    if not frames or not all(0 <= index < num_frames for index in frames):
        raise DataError(f"{where}: frames {list(frames)} asked of a video of {num_frames}")
    height, width = stored_size
    num_bytes = len(frames) * height * width * 3
    if num_bytes > MAX_DECODED_BYTES:
        raise DataError(f"{where}: {num_bytes} bytes decoded, at most {MAX_DECODED_BYTES}")
    try:
        parser = VideoCodecContext.create("h264", "r")
        packets = parser.parse(data) + parser.parse(None)
        if len(packets) != num_frames:
            raise DataError(
                f"{where}: holds {len(packets)} frames, the clip's meta says {num_frames}"
            )
        if not packets[0].is_keyframe:
            raise DataError(f"{where}: does not begin with a key frame")
        if (parser.height, parser.width) != stored_size:
            raise DataError(
                f"{where}: is {parser.width}x{parser.height}, the calibration says {width}x{height}"
            )
        return _write_mp4([bytes(packet) for packet in packets[: max(frames) + 1]], stored_size)
    except av.FFmpegError as error:
        raise DataError(f"{where}: cannot be taken apart: {error}") from error


def _write_mp4(packets: Sequence[bytes], size: tuple[int, int]) -> bytes:
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_mux_stream(
            "h264", rate=_FRAME_RATE_HZ, width=size[1], height=size[0]
        )
        for number, data in enumerate(packets):
            packet = av.Packet(data)
            packet.stream = stream
            packet.time_base = Fraction(1, _FRAME_RATE_HZ)
            packet.pts = packet.dts = number  # without B-frames they are stored as they are shown
            packet.duration = 1
            packet.is_keyframe = number == 0
            container.mux(packet)
    return file.getvalue()
