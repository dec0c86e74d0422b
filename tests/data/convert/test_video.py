import math

import av
import numpy as np
import pytest

from fsdtrain.data.convert.video import convert_video, keep_rate
from fsdtrain.data.geometry import project_points
from fsdtrain.data.verify import verify_shards
from fsdtrain.data.video import decode_h264
from fsdtrain.errors import DataError, UserError

SIZE = (96, 64)


def write_video(path, num_frames, rate):
    """Frame n is grey 4 n."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=rate)
        stream.width, stream.height = SIZE
        stream.pix_fmt = "yuv420p"
        for n in range(num_frames):
            picture = np.full((SIZE[1], SIZE[0], 3), 4 * n, dtype=np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    return path


def test_clips_keep_every_chosen_frame_and_its_time(tmp_path, read_all):
    """25 Hz to 10 Hz: every second or third frame, the last clip shorter."""
    source = write_video(tmp_path / "my drive.mp4", num_frames=41, rate=25)
    convert_video(source, tmp_path / "out", clip_seconds=0.6, frame_rate_hz=10.0)
    clips = read_all(tmp_path / "out")

    assert [clip.meta.clip_id for clip in clips] == [f"video-my-drive-{n:04d}" for n in range(3)]
    assert [clip.meta.num_frames for clip in clips] == [6, 6, 5]
    # Moments 0, 100, 200 ... ms of frames at 0, 40, 80, 120 ...: an even number of steps of 40.
    times_ms = [ns // 10**6 for clip in clips for ns in clip.frames.camera_ns["front"]]
    assert np.abs(np.array(times_ms) - 100 * np.arange(17)).max() <= 20
    greys = [
        frame.mean()
        for clip in clips
        for frame in decode_h264(
            clip.video["front"], num_frames=clip.meta.num_frames, size=None, where=""
        )
    ]
    np.testing.assert_allclose(greys, 4 * np.array(times_ms) / 40, atol=2.5)


def test_nothing_is_claimed_that_is_not_known(tmp_path, read_all):
    source = write_video(tmp_path / "a.mp4", num_frames=5, rate=10)
    convert_video(
        source, tmp_path / "out", split="val", fov_deg=90.0, camera_height_m=1.5, max_width=48
    )
    (clip,) = read_all(tmp_path / "out")

    assert clip.labels.boxes is None
    assert clip.labels.lanes is None
    assert clip.labels.occupancy is None
    assert clip.meta.annotations == ()
    assert not clip.meta.has_ego_motion
    assert (clip.meta.source, clip.meta.split, clip.meta.scene) == ("video", "val", "a")
    for state in clip.ego.states:
        assert state.ego_to_world.translation_m == (0, 0, 0)
        assert state.velocity_mps == (0, 0, 0)
    camera = clip.rig.cameras["front"]
    assert (camera.width, camera.height) == (48, 32)
    # 90 degrees wide: what is 45 degrees to the left, at the camera's height, is at the left edge.
    uv, _ = project_points(camera, np.array([[10.0, 10.0, 1.5], [10.0, -10.0, 1.5]]))
    np.testing.assert_allclose(uv, [[0, 16], [48, 16]], atol=1e-9)
    assert camera.fx == pytest.approx(24 / math.tan(math.pi / 4))


@pytest.mark.parametrize("seed", range(10))
def test_keep_rate(seed):
    """Of a jittery source, each chosen frame is the nearest to its moment, none stands twice."""
    rng = np.random.default_rng([seed, 9])
    times = np.cumsum(rng.integers(20, 60, 200)) * 10**6
    rate = float(rng.uniform(3, 30))
    kept = [time for time, _ in keep_rate(iter([(int(t), None) for t in times]), rate)]

    moments = times[0] + np.arange(0, times[-1] - times[0] + 1, 1e9 / rate)
    nearest = {int(times[np.abs(times - moment).argmin()]) for moment in moments}
    assert kept == sorted(set(kept))
    assert len(set(kept) ^ nearest) <= 2  # ties, and the last moment
    assert list(keep_rate(iter([]), rate)) == []


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"fov_deg": 0.0}, "fov_deg is 0"),
        ({"frame_rate_hz": math.nan}, "frame_rate_hz is nan"),
        ({"clip_seconds": 0.01}, "clip_seconds is 0.01"),
        ({"clip_seconds": 1e9}, "clip_seconds is 1e"),
        ({"frame_rate_hz": 30.0}, "has 10 frames a second"),
        ({"max_width": 1}, "max_width is 1"),
    ],
)
def test_wrong_arguments(tmp_path, options, problem):
    source = write_video(tmp_path / "a.mp4", num_frames=5, rate=10)
    with pytest.raises(UserError, match=problem):
        convert_video(source, tmp_path / "out", **options)
    assert not list((tmp_path / "out").glob("*"))


def test_sources_that_are_no_video(tmp_path):
    with pytest.raises(UserError, match="no video at"):
        convert_video(tmp_path, tmp_path / "out")
    (tmp_path / "a.mp4").write_bytes(b"garbage" * 99)
    with pytest.raises(DataError, match="cannot be opened as a video"):
        convert_video(tmp_path / "a.mp4", tmp_path / "out")
    (tmp_path / "a.mov").touch()
    with pytest.raises(UserError, match="several videos named a"):
        convert_video(tmp_path, tmp_path / "out")


def test_a_damaged_video_is_named(tmp_path):
    source = write_video(tmp_path / "a.mp4", num_frames=25, rate=25)
    body = bytearray(source.read_bytes())
    start = body.index(b"mdat") + 1000
    body[start : start + 400] = bytes(400)
    source.write_bytes(body)
    with pytest.raises(DataError, match=r"a\.mp4"):
        convert_video(source, tmp_path / "out", frame_rate_hz=25.0)
    assert not list((tmp_path / "out").glob("*.tar"))


def test_real_dash_cam_video(shared_data, tmp_path, read_all):
    source = shared_data("udacity_dashcam")
    convert_video(source, tmp_path / "out", clip_seconds=4.0, frame_rate_hz=5.0, max_width=320)
    assert verify_shards(str(tmp_path / "out")).faults == ()
    clips = read_all(tmp_path / "out")
    # 221 frames and 38 frames at 25 Hz.
    assert [(clip.meta.scene, clip.meta.num_frames) for clip in clips] == [
        ("solidWhiteRight", 20),
        ("solidWhiteRight", 20),
        ("solidWhiteRight", 5),
        ("test_video", 8),
    ]
    assert all(clip.rig.cameras["front"].width == 320 for clip in clips)
