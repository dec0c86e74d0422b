"""One picture and one table line per clip: what `data inspect` shows of a shard.

Reads clips through `shard.py` and draws with `draw.py`; knows nothing of models or runs.
"""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from rich.box import SIMPLE_HEAD
from rich.table import Table

from fsdtrain.data.geometry import (
    Array,
    BevGrid,
    invert_pose,
    pose_matrix,
    resize_camera,
    transform_points,
)
from fsdtrain.data.schema import Clip
from fsdtrain.data.shard import read_clip, read_index
from fsdtrain.data.video import decode_h264
from fsdtrain.report.canvas import BACKGROUND, LANE_COLORS, MUTED, PATH_COLORS, TEXT, font
from fsdtrain.report.draw import (
    BevPath,
    bev_view,
    camera_mosaic,
    camera_yaw,
    draw_boxes,
    draw_polyline,
)

GRID = BevGrid(x_min_m=-50.0, x_max_m=50.0, y_min_m=-50.0, y_max_m=50.0, cell_m=0.5)
CAMERAS_PX = 1160  # width of the cameras' side
MIN_PANEL_PX = 240
BEV_PX = (380, 860)  # least and greatest height of the view from above
LEGEND_PX = 60
TITLE_PX = 74
MARGIN_PX = 18
STRIP_FRAMES = 6
STRIP_GAP_PX = 6


def contact_sheet(clip: Clip, *, frame: int | None = None) -> Image.Image:
    """All cameras at one frame, labels drawn in, the view from above, and a strip through time.

    Args:
        clip: as read by `read_clip`.
        frame: which; None is the last, for which lanes hold.

    Raises:
        DataError: a video cannot be decoded.
    """
    chosen = clip.meta.num_frames - 1 if frame is None else frame
    cameras = clip.meta.cameras
    yaws = [camera_yaw(pose_matrix(clip.rig.cameras[name].camera_to_ego)) for name in cameras]
    columns = len(cameras) if len(cameras) <= 3 else math.ceil(len(cameras) / 2)
    panel_px = max(MIN_PANEL_PX, CAMERAS_PX // columns)
    mosaic = camera_mosaic(
        [_draw_camera(clip, name, chosen, panel_px) for name in cameras],
        cameras,
        yaws_rad=yaws,
        panel_px=panel_px,
    )
    straightest = min(range(len(cameras)), key=lambda index: abs(yaws[index]))
    strip = _draw_strip(clip, cameras[straightest], mosaic.width)
    left_px = mosaic.height + MARGIN_PX + strip.height
    bev = bev_view(
        GRID,
        boxes=() if clip.labels.boxes is None else clip.labels.boxes[chosen],
        lanes=(clip.labels.lanes or ()) if chosen == clip.meta.num_frames - 1 else (),
        paths=_ego_path(clip, chosen),
        size_px=min(max(left_px - LEGEND_PX, BEV_PX[0]), BEV_PX[1]),
    )
    return _compose(_titles(clip, chosen), mosaic, strip, bev)


def summary(shard: str) -> Table:
    """A line for every clip of a shard: what it is, what it holds, how large it is.

    Raises:
        DataError: the shard is broken; `verify_shards` tells all of it.
    """
    index = read_index(shard)
    # Tight, so that a line fits a terminal of 80 columns where the names allow it.
    table = Table(
        title=index.shard,
        title_justify="left",
        caption_justify="left",
        box=SIMPLE_HEAD,
        pad_edge=False,
        collapse_padding=True,
    )
    for column in ("clip", "scene"):
        table.add_column(column, overflow="fold")
    for column in ("frames", "Hz", "cameras", "boxes", "lanes", "voxels", "KiB"):
        table.add_column(column, justify="right", no_wrap=True)
    origins: set[str] = set()
    for entry in index.clips:
        clip = read_clip(shard, entry)
        meta, labels = clip.meta, clip.labels
        origins.add(f"{meta.source} ({meta.split})")
        sizes = {f"{camera.width}x{camera.height}" for camera in clip.rig.cameras.values()}
        table.add_row(
            meta.clip_id,
            meta.scene,
            str(meta.num_frames),
            f"{meta.frame_rate_hz:g}",
            f"{len(meta.cameras)} of {', '.join(sorted(sizes))}",
            "-" if labels.boxes is None else str(sum(len(boxes) for boxes in labels.boxes)),
            "-" if labels.lanes is None else str(len(labels.lanes)),
            "-" if labels.occupancy is None else str(math.prod(labels.occupancy.shape)),
            f"{sum(member.size_bytes for member in entry.members) / 1024:.0f}",
        )
    table.caption = (
        f"{', '.join(sorted(origins))}: {index.num_clips} clips, {index.num_frames} images, "
        f"{index.size_bytes / 2**20:.1f} MiB"
    )
    return table


def _draw_camera(clip: Clip, name: str, frame: int, width: int) -> NDArray[np.uint8]:
    camera = clip.rig.cameras[name]
    height = max(2, round(width * camera.height / camera.width))
    image: NDArray[np.uint8] = _decode(clip, name, [frame], (height, width))[0]
    camera = resize_camera(camera, width=width, height=height)
    if frame == clip.meta.num_frames - 1:
        for lane in clip.labels.lanes or ():
            points = np.asarray(lane.points_m)
            image = draw_polyline(image, camera, points, color=LANE_COLORS[lane.kind], line_px=1)
    for path in _ego_path(clip, frame):
        points = np.pad(path.points, ((0, 0), (0, 1)))
        image = draw_polyline(image, camera, points, color=PATH_COLORS[path.kind])
    if clip.labels.boxes is not None:
        image = draw_boxes(image, camera, clip.labels.boxes[frame], line_px=max(1.0, width / 420))
    return image


def _decode(
    clip: Clip, name: str, frames: Sequence[int], size: tuple[int, int]
) -> NDArray[np.uint8]:
    return decode_h264(
        clip.video[name],
        num_frames=clip.meta.num_frames,
        size=size,
        where=f"clip {clip.meta.clip_id!r}: camera {name}",
        frames=frames,
    )


def _ego_path(clip: Clip, frame: int) -> list[BevPath]:
    """The way the ego went from this frame on, on its ground; nothing if that is not known."""
    states = clip.ego.states
    now_ns = clip.frames.reference_ns[frame]
    now = min(states, key=lambda state: abs(state.timestamp_ns - now_ns))
    later = [state for state in states if state.timestamp_ns >= now_ns]
    if not clip.meta.has_ego_motion or len(later) < 2:
        return []
    world_to_ego = invert_pose(pose_matrix(now.ego_to_world))
    places: Array = np.array([state.ego_to_world.translation_m for state in later])
    return [BevPath(points=transform_points(world_to_ego, places)[:, :2], kind="truth")]


def _draw_strip(clip: Clip, name: str, width: int) -> Image.Image:
    """Up to STRIP_FRAMES pictures of one camera, from first to last, with their times."""
    camera = clip.rig.cameras[name]
    num_frames = clip.meta.num_frames
    frames = sorted({round(at) for at in np.linspace(0, num_frames - 1, STRIP_FRAMES)})
    panel = (width + STRIP_GAP_PX) // STRIP_FRAMES - STRIP_GAP_PX
    height = round(panel * camera.height / camera.width)
    images = _decode(clip, name, frames, (height, panel))
    strip = Image.new("RGB", (width, height + 22), BACKGROUND)
    draw = ImageDraw.Draw(strip)
    start_ns = clip.frames.camera_ns[name][0]
    for place, (frame, image) in enumerate(zip(frames, images, strict=True)):
        u = place * (panel + STRIP_GAP_PX)
        strip.paste(Image.fromarray(image), (u, 0))
        seconds = (clip.frames.camera_ns[name][frame] - start_ns) / 1e9
        draw.text((u, height + 5), f"{name}  {seconds:.2f} s", fill=MUTED, font=font(12))
    return strip


def _titles(clip: Clip, frame: int) -> tuple[str, str]:
    meta = clip.meta
    counts = []
    if clip.labels.boxes is not None:
        counts.append(f"{len(clip.labels.boxes[frame])} boxes")
    if clip.labels.lanes is not None:
        counts.append(f"{len(clip.labels.lanes)} lanes")
    labels = ", ".join(counts) or "no labels"
    speed = ""
    if meta.has_ego_motion:
        now_ns = clip.frames.reference_ns[frame]
        now = min(clip.ego.states, key=lambda state: abs(state.timestamp_ns - now_ns))
        speed = f"  |  ego {math.hypot(*now.velocity_mps):.1f} m/s"
    return meta.clip_id, (
        f"{meta.source}, {meta.split}, scene {meta.scene}  |  frame {frame + 1} of "
        f"{meta.num_frames} at {meta.frame_rate_hz:g} Hz  |  {labels}{speed}"
    )


def _compose(
    titles: tuple[str, str], mosaic: Image.Image, strip: Image.Image, bev: Image.Image
) -> Image.Image:
    """Titles on top, cameras and their strip to the left, the view from above to the right."""
    left_px = mosaic.height + MARGIN_PX + strip.height
    sheet = Image.new(
        "RGB",
        (
            mosaic.width + bev.width + 3 * MARGIN_PX,
            TITLE_PX + max(left_px, bev.height) + MARGIN_PX,
        ),
        BACKGROUND,
    )
    draw = ImageDraw.Draw(sheet)
    draw.text((MARGIN_PX, 14), titles[0], fill=TEXT, font=font(24))
    draw.text((MARGIN_PX, 46), titles[1], fill=MUTED, font=font(15))
    sheet.paste(mosaic, (MARGIN_PX, TITLE_PX))
    sheet.paste(strip, (MARGIN_PX, TITLE_PX + mosaic.height + MARGIN_PX))
    sheet.paste(bev, (2 * MARGIN_PX + mosaic.width, TITLE_PX))
    return sheet
