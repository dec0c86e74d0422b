"""H.264 elementary streams in memory: frames to bytes and back, bit-reproducibly.

Knows nothing of clips, shards or files. Streams are Annex B, one closed GOP (SPS, PPS and the only
IDR first), no B-frames: frame i of the stream is frame i of the clip, and any MPEG reader takes it.

Input is untrusted: FFmpeg itself refuses frames above MAX_PIXELS before it allocates them, and
every stream is checked for its frame count and for FFmpeg's corruption flag. That flag is only set
without slice threads (PyAV's default hides corruption), hence one thread per decoder: parallelism
belongs to the DataLoader's workers.
"""

import threading
from collections.abc import Iterable, Iterator, Sequence
from fractions import Fraction

import av
import numpy as np
from av.codec.context import ThreadType
from av.video.codeccontext import VideoCodecContext
from av.video.frame import PictureType, VideoFrame
from av.video.reformatter import ColorRange, Colorspace, Interpolation, VideoReformatter
from numpy.typing import NDArray

from fsdtrain.data.h264_parameters import chroma_site
from fsdtrain.data.i420 import StoredPictures, pack_planes, rgb_of
from fsdtrain.errors import DataError, UserError

MAX_PIXELS = 2**25  # of one stored frame: 8K video just fits
MAX_DECODED_BYTES = 2**32  # of one call's output

# fastdecode: no arithmetic coding, no deblocking; larger by a third, decodes twice as fast.
# mbtree=0: x264's SIMD macroblock tree reads memory that it never wrote when frames are small, so
# that the same pixels give other bytes from call to call.
# chromaloc: swscale averages chroma over 2x2 pixels. Left at H.264's default (at the left pixel),
# colours come out half a stored pixel to the right of the brightness once a frame is scaled.
_ENCODER_OPTIONS = {
    "preset": "veryfast",
    "tune": "fastdecode",
    "x264-params": (
        "keyint=infinite:scenecut=0:bframes=0:open-gop=0:repeat-headers=1:threads=1:chromaloc=1"
        ":mbtree=0"
    ),
}
# BITEXACT: the same pixels with and without SIMD, so on every machine. FULL_CHR_H_INT: without it
# scaled frames come out two grey levels too dark. BILINEAR averages all pixels when it shrinks.
_SCALING = Interpolation.BILINEAR | Interpolation.BITEXACT | Interpolation.FULL_CHR_H_INT


def encode_h264(
    frames: Iterable[NDArray[np.uint8]], *, frame_rate_hz: float, crf: int = 20
) -> bytes:
    """Encode RGB frames [H, W, 3], H and W even and the same for all, to one Annex B stream.

    The bytes depend on the pixels, the rate and `crf` (x264's quality, 0 lossless .. 51) alone.

    Raises:
        UserError: no frames, or a frame of another type, of another or of an odd size.
    """
    iterator = iter(frames)
    first = next(iterator, None)
    if first is None:
        raise UserError("a video needs at least one frame, got none")
    height, width = first.shape[:2]
    if first.ndim != 3 or height % 2 or width % 2 or not 0 < height * width <= MAX_PIXELS:
        raise UserError(
            f"frame shape {first.shape} must be [height, width, 3], height and width even, "
            f"at most {MAX_PIXELS} pixels"
        )
    context = _open_encoder(height, width, frame_rate_hz, crf)
    reformatter = VideoReformatter()
    chunks = []
    number = 0
    frame: NDArray[np.uint8] | None = first
    while frame is not None:
        if frame.shape != (height, width, 3) or frame.dtype != np.uint8:
            raise UserError(
                f"frame {number} is {frame.dtype} {frame.shape}, frame 0 is uint8 {first.shape}"
            )
        rgb = VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
        yuv = reformatter.reformat(
            rgb,
            format="yuv420p",
            dst_colorspace=Colorspace.ITU709,
            dst_color_range=ColorRange.MPEG,
            interpolation=_SCALING,
            threads=1,
        )
        yuv.pts = number
        chunks += [bytes(packet) for packet in context.encode(yuv)]
        number += 1
        frame = next(iterator, None)
    chunks += [bytes(packet) for packet in context.encode(None)]
    return b"".join(chunks)


def _open_encoder(height: int, width: int, frame_rate_hz: float, crf: int) -> VideoCodecContext:
    rate = Fraction(frame_rate_hz).limit_denominator(1001)
    context = VideoCodecContext.create("libx264", "w")
    context.width, context.height, context.pix_fmt = width, height, "yuv420p"
    context.framerate, context.time_base = rate, 1 / rate
    context.colorspace, context.color_range = Colorspace.ITU709, ColorRange.MPEG
    context.thread_count, context.thread_type = 1, ThreadType.NONE
    context.options = _ENCODER_OPTIONS | {"crf": str(crf)}
    context.open()
    return context


def decode_h264(
    data: bytes,
    *,
    num_frames: int,
    size: tuple[int, int] | None,
    where: str,
    frames: Sequence[int] | None = None,
    stored_size: tuple[int, int] | None = None,
) -> NDArray[np.uint8]:
    """Decode [T, H, W, 3] RGB of the chosen frames (all when None), in the order given.

    Args:
        data: one Annex B stream.
        num_frames: what the stream must hold, exactly.
        size: (height, width) to scale to while decoding; None keeps the stored size.
        where: names the shard, clip and camera in errors.
        frames: indices in 0..num_frames-1; nothing behind the last one is decoded.
        stored_size: (height, width) that the calibration promises; None takes any.

    Raises:
        DataError: the stream is undecodable, flagged corrupt, of another frame count or size, or
            breaks the format (B-frames, no key frame first).
    """
    chosen = range(num_frames) if frames is None else frames
    decoder = _decoder()
    output: NDArray[np.uint8] | None = None
    for rows, frame in _decode(decoder, data, num_frames, chosen, stored_size, where):
        if output is None:
            height, width = size or (frame.height, frame.width)
            output = _allocate((len(chosen), height, width, 3), where)
        output[rows] = decoder.rgb(frame, output.shape[1], output.shape[2])
    assert output is not None
    return output


def decode_i420(
    data: bytes,
    *,
    num_frames: int,
    where: str,
    frames: Sequence[int],
    stored_size: tuple[int, int],
) -> StoredPictures:
    """Decode the chosen frames without scaling or converting them; arguments as above.

    Raises:
        DataError: likewise, and where the stream's pictures are not 8-bit YUV 4:2:0 of even size in
            the colours of BT.601 or BT.709.
    """
    height, width = stored_size
    if height % 2 or width % 2:
        raise DataError(f"{where}: {width}x{height} is odd, which only data.frames=rgb can read")
    planes_TRW = _allocate((len(frames), height * 3 // 2, width), where)
    to_rgb: tuple[tuple[float, ...], ...] | None = None
    for rows, frame in _decode(_decoder(), data, num_frames, frames, stored_size, where):
        to_rgb = to_rgb or rgb_of(frame, where)
        planes_TRW[rows[0]] = pack_planes(frame)
        planes_TRW[rows[1:]] = planes_TRW[rows[0]]
    assert to_rgb is not None
    return StoredPictures(
        planes_TRW=planes_TRW,
        to_rgb_34=np.array(to_rgb),
        chroma_site_2=np.array(chroma_site(data, where=where)),
    )


def _decode(
    decoder: "_Decoder",
    data: bytes,
    num_frames: int,
    chosen: Sequence[int],
    stored_size: tuple[int, int] | None,
    where: str,
) -> Iterator[tuple[list[int], VideoFrame]]:
    """The chosen frames in the stream's order, each with its places among the chosen."""
    if not chosen or not all(0 <= index < num_frames for index in chosen):
        raise DataError(f"{where}: frames {list(chosen)} asked of a video of {num_frames}")
    rows_of: dict[int, list[int]] = {}
    for row, index in enumerate(chosen):
        rows_of.setdefault(index, []).append(row)
    for index, frame in enumerate(decoder.frames(data, num_frames, max(chosen) + 1, where)):
        _check_frame(frame, index, stored_size, where)
        if index in rows_of:
            yield rows_of[index], frame


def _check_frame(
    frame: VideoFrame, index: int, stored_size: tuple[int, int] | None, where: str
) -> None:
    if frame.is_corrupt:
        raise DataError(f"{where}: frame {index} is corrupt")
    if frame.pict_type == PictureType.B:
        raise DataError(f"{where}: frame {index} is a B-frame, the format has none")
    if index == 0 and not frame.key_frame:
        raise DataError(f"{where}: does not begin with a key frame")
    if stored_size is not None and (frame.height, frame.width) != stored_size:
        raise DataError(
            f"{where}: frame {index} is {frame.width}x{frame.height}, "
            f"the calibration says {stored_size[1]}x{stored_size[0]}"
        )


def _allocate(shape: tuple[int, ...], where: str) -> NDArray[np.uint8]:
    num_bytes = int(np.prod(shape, dtype=np.int64))
    if num_bytes > MAX_DECODED_BYTES:
        raise DataError(f"{where}: {num_bytes} bytes decoded, at most {MAX_DECODED_BYTES}")
    return np.empty(shape, dtype=np.uint8)


class _Decoder:
    """One codec context and one scaler, reused from stream to stream (1.2x against fresh ones)."""

    def __init__(self) -> None:
        self._context = self._open()
        self._reformatter = VideoReformatter()

    @staticmethod
    def _open() -> VideoCodecContext:
        context = VideoCodecContext.create("h264", "r")
        context.thread_count, context.thread_type = 1, ThreadType.NONE
        context.options = {"max_pixels": str(MAX_PIXELS)}
        return context

    def frames(
        self, data: bytes, num_frames: int, num_wanted: int, where: str
    ) -> Iterator[VideoFrame]:
        """Exactly the first `num_wanted` frames of a stream that holds exactly `num_frames`."""
        is_clean = False
        try:
            packets = self._context.parse(data) + self._context.parse(None)
            # Without B-frames and fields a packet is a frame: the count is known before decoding.
            if len(packets) != num_frames:
                raise DataError(
                    f"{where}: holds {len(packets)} frames, the clip's meta says {num_frames}"
                )
            num_decoded = 0
            for packet in (*packets, None):
                for frame in self._context.decode(packet):
                    if num_decoded < num_wanted:
                        yield frame
                    num_decoded += 1
                if num_decoded >= num_wanted:
                    break
            if num_decoded < num_wanted:
                raise DataError(f"{where}: only {num_decoded} of {num_frames} frames decode")
            # Frames behind the last wanted one, where an encoder left the decoder a delay.
            self._context.flush_buffers()
            is_clean = True
        except av.FFmpegError as error:
            raise DataError(f"{where}: cannot be decoded: {error}") from error
        finally:
            if not is_clean:  # parser and reference frames are in an unknown state
                self._context = self._open()

    def rgb(self, frame: VideoFrame, height: int, width: int) -> NDArray[np.uint8]:
        """[height, width, 3], valid until the array is dropped."""
        scaled = self._reformatter.reformat(
            frame, width=width, height=height, format="rgb24", interpolation=_SCALING, threads=1
        )
        plane = scaled.planes[0]
        rows: NDArray[np.uint8] = np.frombuffer(memoryview(plane), np.uint8)
        rows = rows.reshape(height, plane.line_size)
        return rows[:, : width * 3].reshape(height, width, 3)


_local = threading.local()  # a context must not be shared between threads


def _decoder() -> _Decoder:
    if not hasattr(_local, "decoder"):
        _local.decoder = _Decoder()
    decoder: _Decoder = _local.decoder
    return decoder
