import io
import math
import tarfile

import msgspec
import numpy as np
import pytest
from rich.console import Console

from fsdtrain.data.shard import write_shards
from fsdtrain.errors import DataError
from fsdtrain.report.canvas import CLASS_COLORS
from fsdtrain.report.contact_sheet import contact_sheet, summary


def has_color(image, color):
    difference = np.abs(np.asarray(image).astype(int) - color).max(axis=-1)
    return bool((difference <= 20).any())


def test_a_labelled_clip(make_clip):
    clip = make_clip(num_frames=4)
    sheet = contact_sheet(clip)
    assert sheet.width > 1000
    assert sheet.height > 400
    (category, *_) = {box.category for box in clip.labels.boxes[-1]}
    assert has_color(sheet, CLASS_COLORS[category])


@pytest.mark.parametrize("frame", [0, 2, 3])
def test_lanes_hold_for_the_last_frame_only(make_clip, frame):
    clip = make_clip(num_frames=4)
    without = msgspec.structs.replace(clip, labels=msgspec.structs.replace(clip.labels, lanes=()))
    sheets = [np.asarray(contact_sheet(one, frame=frame))[100:] for one in (clip, without)]
    is_same = sheets[0].shape == sheets[1].shape and (sheets[0] == sheets[1]).all()
    assert is_same == (frame != 3)


def test_an_unlabelled_clip_of_one_frame(make_clip):
    clip = make_clip(num_frames=1)
    bare = msgspec.structs.replace(
        clip,
        meta=msgspec.structs.replace(clip.meta, annotations=(), has_ego_motion=False),
        labels=msgspec.structs.replace(clip.labels, boxes=None, lanes=None, occupancy=None),
    )
    assert contact_sheet(bare).tobytes() != contact_sheet(clip).tobytes()


def test_a_broken_video_is_named(make_clip):
    clip = make_clip(num_frames=2)
    broken = msgspec.structs.replace(clip, video=clip.video | {"rear": b"\x00" * 99})
    with pytest.raises(DataError, match="camera rear"):
        contact_sheet(broken)


def members_of(shard, clip_id):
    with tarfile.open(shard) as tar:
        return [tar.extractfile(info).read() for info in tar if info.name.startswith(clip_id + ".")]


def test_summary_counts(make_clip, tmp_path):
    clips = [make_clip(clip_id=f"clip-{n}", seed=n, num_frames=3 + n) for n in range(2)]
    (path,) = write_shards(clips, tmp_path, prefix="s", clips_per_shard=8)

    console = Console(width=200, record=True, file=io.StringIO())
    console.print(summary(str(path)))
    lines = console.export_text().splitlines()

    for clip in clips:
        (line,) = [line for line in lines if clip.meta.clip_id in line]
        camera = next(iter(clip.rig.cameras.values()))
        assert line.split()[1:] == [
            clip.meta.scene,
            str(clip.meta.num_frames),
            f"{clip.meta.frame_rate_hz:g}",
            *f"2 of {camera.width}x{camera.height}".split(),
            str(sum(len(boxes) for boxes in clip.labels.boxes)),
            str(len(clip.labels.lanes)),
            str(math.prod(clip.labels.occupancy.shape)),
            f"{sum(len(body) for body in members_of(str(path), clip.meta.clip_id)) / 1024:.0f}",
        ]
    assert "test (train): 2 clips, 14 images" in lines[-1]
