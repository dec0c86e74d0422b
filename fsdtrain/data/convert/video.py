"""Any video file to unlabelled clips of one camera.

Nothing is known of the camera but its pictures, so the rest is stated, not measured: clips whose
`meta.source` is "video" have a pinhole calibration guessed from a field of view, a camera that
looks level and straight ahead from a usual height above the ego's origin, and an ego that stands
still (`has_ego_motion` False).
"""

import logging
import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import TypeVar

import av
import numpy as np
from av.container import InputContainer
from av.video.frame import VideoFrame
from numpy.typing import NDArray
from PIL import Image

from fsdtrain.data.convert.kinematics import track_ego
from fsdtrain.data.convert.pictures import (
    clip_name,
    fit_camera,
    fit_image,
    level_camera_to_ego,
)
from fsdtrain.data.geometry import pose_from_matrix
from fsdtrain.data.schema import (
    MAX_FRAMES,
    CameraCalibration,
    Clip,
    ClipMeta,
    FrameTimes,
    Labels,
    Rig,
)
from fsdtrain.data.shard import write_shards
from fsdtrain.data.video import encode_h264
from fsdtrain.errors import DataError, UserError

logger = logging.getLogger(__name__)

CAMERA = "front"
SUFFIXES = (".mp4", ".mov", ".mkv", ".avi", ".webm", ".m4v")
# Sources state their rate with rounding; without slack a 29.97 Hz video could not be kept at 30.
RATE_SLACK = 1.01

Frame = TypeVar("Frame")


@dataclass(frozen=True, kw_only=True)
class VideoCut:
    """How a video is cut: all that is asked for, and all that is assumed."""

    split: str
    clip_seconds: float
    frame_rate_hz: float
    max_width: int | None
    fov_deg: float
    camera_height_m: float
    crf: int


def convert_video(
    source: Path,
    out_dir: Path,
    *,
    split: str = "train",
    clip_seconds: float = 2.0,
    frame_rate_hz: float = 10.0,
    max_width: int | None = None,
    fov_deg: float = 60.0,
    camera_height_m: float = 1.4,
    clips_per_shard: int = 64,
    crf: int = 20,
) -> list[Path]:
    """Cut videos into clips and write them as shards `video-<split>-*.tar`.

    Every video is a scene. The last clip of a video is shorter where its length is no multiple.

    Args:
        source: a video file, or a folder of them.
        out_dir: made if it is missing.
        split: name of the split that the clips are marked with.
        clip_seconds: length of a clip.
        frame_rate_hz: frames a second to keep, at most those of the video; each is the frame
            nearest to its moment and keeps its own timestamp.
        max_width: frames are scaled down to this width in pixels.
        fov_deg: horizontal field of view to assume, in degrees.
        camera_height_m: height of the camera above ground to assume.
        clips_per_shard: clips in one shard.
        crf: x264's quality of the video.

    Raises:
        UserError: an argument out of range, or no video there.
        DataError: a video cannot be decoded; names the file.
    """
    _check_range("fov_deg", fov_deg, 1.0, 170.0)
    _check_range("camera_height_m", camera_height_m, 0.0, 10.0)
    _check_range("frame_rate_hz", frame_rate_hz, 0.1, 1000.0)
    _check_range("clip_seconds", clip_seconds, 1 / frame_rate_hz, MAX_FRAMES / frame_rate_hz)
    cut = VideoCut(
        split=split,
        clip_seconds=clip_seconds,
        frame_rate_hz=frame_rate_hz,
        max_width=max_width,
        fov_deg=fov_deg,
        camera_height_m=camera_height_m,
        crf=crf,
    )
    logger.warning(
        "no calibration in a video: assuming %g degrees of horizontal field of view and a level "
        "camera %g m above ground",
        fov_deg,
        camera_height_m,
    )
    paths = _video_files(source)
    clips = chain.from_iterable(cut_video(path, cut) for path in paths)
    return write_shards(clips, out_dir, prefix=f"video-{split}", clips_per_shard=clips_per_shard)


def cut_video(path: Path, cut: VideoCut) -> Iterator[Clip]:
    """The clips of one video, in order; frames are decoded, scaled and encoded one by one."""
    with _open(path) as container:
        stream = container.streams.video[0]
        if stream.average_rate and cut.frame_rate_hz > float(stream.average_rate) * RATE_SLACK:
            raise UserError(
                f"{path} has {float(stream.average_rate):g} frames a second, asked for are "
                f"{cut.frame_rate_hz:g}; ask for at most what it has"
            )
        camera = fit_camera(
            _assumed_camera(stream.width, stream.height, cut), max_width=cut.max_width
        )
        frames = keep_rate(_decode(path, container), cut.frame_rate_hz)
        num_frames = max(1, round(cut.clip_seconds * cut.frame_rate_hz))
        for number, first in enumerate(frames):
            times_ns: list[int] = []
            pictures = _pictures(
                chain([first], islice(frames, num_frames - 1)), cut.max_width, times_ns
            )
            video = encode_h264(pictures, frame_rate_hz=cut.frame_rate_hz, crf=cut.crf)
            yield _clip(path.stem, number, video, times_ns, camera, cut)


def keep_rate(
    frames: Iterator[tuple[int, Frame]], frame_rate_hz: float
) -> Iterator[tuple[int, Frame]]:
    """Of frames with their times in ns, those nearest to an even grid; each at most once."""
    period_ns = 1e9 / frame_rate_hz
    previous = next(frames, None)
    if previous is None:
        return
    yield previous
    start_ns = last_ns = previous[0]
    number = 1
    for frame in frames:
        while (target_ns := start_ns + round(number * period_ns)) <= frame[0]:
            is_nearer = target_ns - previous[0] < frame[0] - target_ns
            nearest = previous if is_nearer else frame
            if nearest[0] > last_ns:
                yield nearest
                last_ns = nearest[0]
            number += 1
        previous = frame


def _check_range(name: str, value: float, least: float, most: float) -> None:
    if not least <= value <= most:
        raise UserError(f"{name} is {value:g}, must be {least:g} to {most:g}")


def _video_files(source: Path) -> list[Path]:
    if source.is_file():
        return [source]
    found = sorted(path for path in source.glob("*") if path.suffix.lower() in SUFFIXES)
    if not found:
        raise UserError(
            f"no video at {source}; give a file, or a folder of {', '.join(SUFFIXES)} files"
        )
    scenes = [clip_name(path.stem) for path in found]
    repeated = sorted({scene for scene in scenes if scenes.count(scene) > 1})
    if repeated:
        raise UserError(f"{source} has several videos named {repeated[0]}; rename one of them")
    return found


def _open(path: Path) -> InputContainer:
    try:
        container = av.open(str(path))
    except av.FFmpegError as error:
        raise DataError(f"{path}: cannot be opened as a video: {error}") from error
    if not container.streams.video:
        container.close()
        raise DataError(f"{path}: has no video stream")
    # The default, slice threads, hides corruption (see fsdtrain/data/video.py).
    container.streams.video[0].thread_type = "NONE"
    return container


def _decode(path: Path, container: InputContainer) -> Iterator[tuple[int, VideoFrame]]:
    last_ns = -1
    try:
        for frame in container.decode(video=0):
            if frame.is_corrupt or frame.pts is None or frame.time_base is None:
                raise DataError(f"{path}: a frame after {max(last_ns, 0) / 1e9:.2f} s is corrupt")
            time_ns = round(frame.pts * frame.time_base * 10**9)
            if time_ns <= last_ns:
                raise DataError(f"{path}: times do not increase after {last_ns / 1e9:.2f} s")
            last_ns = time_ns
            yield time_ns, frame
    except av.FFmpegError as error:
        raise DataError(f"{path}: cannot be decoded: {error}") from error


def _pictures(
    frames: Iterator[tuple[int, VideoFrame]], max_width: int | None, times_ns: list[int]
) -> Iterator[NDArray[np.uint8]]:
    """Fitted pictures; appends the time of each to `times_ns` when it is taken."""
    for time_ns, frame in frames:
        times_ns.append(time_ns)
        yield fit_image(Image.fromarray(frame.to_ndarray(format="rgb24")), max_width=max_width)


def _assumed_camera(width: int, height: int, cut: VideoCut) -> CameraCalibration:
    focal_px = width / 2 / math.tan(math.radians(cut.fov_deg) / 2)
    return CameraCalibration(
        model="pinhole",
        fx=focal_px,
        fy=focal_px,
        cx=width / 2,
        cy=height / 2,
        camera_to_ego=pose_from_matrix(level_camera_to_ego(cut.camera_height_m)),
        width=width,
        height=height,
    )


def _clip(
    name: str,
    number: int,
    video: bytes,
    times_ns: list[int],
    camera: CameraCalibration,
    cut: VideoCut,
) -> Clip:
    still = track_ego(times_ns, np.tile(np.eye(4), (len(times_ns), 1, 1)))
    return Clip(
        meta=ClipMeta(
            clip_id=f"video-{clip_name(name)}-{number:04d}",
            source="video",
            split=cut.split,
            scene=name,
            cameras=(CAMERA,),
            num_frames=len(times_ns),
            frame_rate_hz=cut.frame_rate_hz,
            has_ego_motion=False,
        ),
        rig=Rig(cameras={CAMERA: camera}),
        frames=FrameTimes(reference_ns=tuple(times_ns), camera_ns={CAMERA: tuple(times_ns)}),
        ego=still,
        labels=Labels(),
        video={CAMERA: video},
    )
