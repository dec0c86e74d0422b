import os
import subprocess
import sys
from fractions import Fraction

import av
import numpy as np
import pytest

from fsdtrain.data import video
from fsdtrain.data.video import decode_h264, encode_h264
from fsdtrain.errors import DataError, UserError


def texture(seed: int, num_frames: int = 6, size: tuple[int, int] = (48, 64)) -> np.ndarray:
    """Smooth moving colour, so that chroma subsampling costs little."""
    height, width = size
    rng = np.random.default_rng(seed)
    phase, speed = rng.uniform(0, 6, 3), rng.uniform(0.1, 0.4, 3)
    t, y, x = np.mgrid[:num_frames, :height, :width]
    waves = [
        np.sin(0.09 * x + phase[c] + speed[c] * t) * np.cos(0.07 * y + phase[c]) for c in range(3)
    ]
    return (128 + 90 * np.stack(waves, axis=-1)).astype(np.uint8)


def nal_types(stream: bytes) -> list[int]:
    """An independent reading of Annex B (H.264, table 7-1)."""
    found, at = [], stream.find(b"\0\0\1")
    while at >= 0:
        found.append(stream[at + 3] & 31)
        at = stream.find(b"\0\0\1", at + 3)
    return found


@pytest.mark.parametrize(("size", "num_frames"), [((48, 64), 6), ((18, 50), 1), ((130, 34), 13)])
def test_round_trip_keeps_every_frame_and_its_colours(size, num_frames):
    frames = texture(1, num_frames, size)
    decoded = decode_h264(
        encode_h264(frames, frame_rate_hz=10.0, crf=4), num_frames=num_frames, size=None, where="v"
    )
    assert decoded.shape == frames.shape
    assert np.abs(decoded.astype(int) - frames).mean(axis=(1, 2, 3)).max() < 3.0


def test_stream_is_one_closed_gop_without_b_frames():
    stream = encode_h264(texture(2, 40), frame_rate_hz=12.5)
    kinds = nal_types(stream)
    assert kinds[:2] == [7, 8]  # SPS, PPS
    assert kinds.count(5) == 1  # the only IDR
    assert kinds.count(1) == 39


def test_encoder_and_decoder_are_deterministic_and_reuse_changes_nothing():
    frames = texture(3)
    stream = encode_h264(frames, frame_rate_hz=10.0)
    assert stream == encode_h264(list(frames), frame_rate_hz=10.0)
    first = decode_h264(stream, num_frames=6, size=(24, 32), where="v")
    for other in (texture(4, 3, (96, 32)), texture(5, 9)):
        decode_h264(
            encode_h264(other, frame_rate_hz=30.0), num_frames=len(other), size=None, where="v"
        )
    np.testing.assert_array_equal(
        decode_h264(stream, num_frames=6, size=(24, 32), where="v"), first
    )
    video._local.__dict__.clear()  # a fresh context
    np.testing.assert_array_equal(
        decode_h264(stream, num_frames=6, size=(24, 32), where="v"), first
    )


def test_chosen_frames_are_those_frames_in_the_order_asked():
    stream = encode_h264(texture(6), frame_rate_hz=10.0)
    every = decode_h264(stream, num_frames=6, size=None, where="v")
    for chosen in ([0], [5], [1, 3], [4, 4, 2]):
        some = decode_h264(stream, num_frames=6, size=None, where="v", frames=chosen)
        np.testing.assert_array_equal(some, every[chosen])


def test_scaling_keeps_positions_and_averages_when_it_shrinks():
    """A resize by s multiplies pixel coordinates by s (geometry.py): no half-pixel shift."""
    height, width = 96, 128
    v, u = np.mgrid[:height, :width] + 0.5
    blob_at = (51.3, 37.9)
    blob = 235 * np.exp(-((u - blob_at[0]) ** 2 + (v - blob_at[1]) ** 2) / 60.0)
    frames = np.repeat(blob[None, :, :, None], 3, axis=-1).astype(np.uint8)
    stream = encode_h264(frames, frame_rate_hz=10.0, crf=4)
    for size in ((96, 128), (48, 64), (36, 80), (144, 192)):
        out = decode_h264(stream, num_frames=1, size=size, where="v")[0, :, :, 1].astype(float)
        out = np.where(out > 20, out, 0.0)
        row, column = np.mgrid[: size[0], : size[1]] + 0.5
        found = ((out * column).sum() / out.sum(), (out * row).sum() / out.sum())
        expected = (blob_at[0] * size[1] / width, blob_at[1] * size[0] / height)
        np.testing.assert_allclose(found, expected, atol=0.15)
    noise = np.random.default_rng(0).integers(0, 255, (1, 96, 128, 3), dtype=np.uint8)
    stream = encode_h264(noise, frame_rate_hz=10.0, crf=1)
    small = decode_h264(stream, num_frames=1, size=(12, 16), where="v")
    blocks = noise.reshape(12, 8, 16, 8, 3).mean(axis=(1, 3))
    assert small.std() < 2.0 * blocks.std()  # picking single pixels would give 8 times


def test_faults_of_the_caller_are_named():
    frames = texture(7)
    with pytest.raises(UserError, match="at least one frame"):
        encode_h264([], frame_rate_hz=10.0)
    with pytest.raises(UserError, match="must be"):
        encode_h264(frames[:, :47], frame_rate_hz=10.0)
    with pytest.raises(UserError, match="frame 1"):
        encode_h264([frames[0], frames[1, :46]], frame_rate_hz=10.0)
    with pytest.raises(UserError, match="float64"):
        encode_h264(frames.astype(np.float64), frame_rate_hz=10.0)


def test_wrong_counts_sizes_and_bytes_are_data_errors_and_leave_the_decoder_usable():
    frames = texture(8)
    stream = encode_h264(frames, frame_rate_hz=10.0)
    expected = decode_h264(stream, num_frames=6, size=None, where="v")
    slice_starts = [i for i in range(len(stream) - 4) if stream[i : i + 3] == b"\0\0\1"]
    bad: list[tuple[bytes, dict[str, object], str]] = [
        (stream, {"num_frames": 5}, "holds 6 frames"),
        (stream, {"num_frames": 7}, "holds 6 frames"),
        (stream[: slice_starts[-1]], {}, "holds 5 frames"),
        (b"", {}, "holds 0 frames"),
        (b"no video at all" * 50, {}, "cam"),
        (stream[slice_starts[3] :], {"num_frames": 5}, "cam"),  # the IDR is missing
        (stream[slice_starts[4] :], {"num_frames": 5}, "cam"),
        (stream, {"frames": [6]}, "asked of a video of 6"),
        (stream, {"frames": []}, "asked"),
        (stream, {"stored_size": (48, 66)}, "calibration says 66x48"),
    ]
    for data, arguments, message in bad:
        options = {"num_frames": 6, "size": None, "where": "clip c: cam"} | arguments
        with pytest.raises(DataError, match=message):
            decode_h264(data, **options)
        np.testing.assert_array_equal(
            decode_h264(stream, num_frames=6, size=None, where="v"), expected
        )


def test_b_frames_are_refused():
    context = av.CodecContext.create("libx264", "w")
    context.width, context.height, context.pix_fmt = 64, 48, "yuv420p"
    context.framerate, context.time_base = Fraction(10), Fraction(1, 10)
    context.options = {"x264-params": "bframes=2:b-adapt=0:scenecut=0:keyint=infinite"}
    packets = []
    for number, frame in enumerate(texture(9, 8)):
        picture = av.VideoFrame.from_ndarray(frame, format="rgb24").reformat(format="yuv420p")
        picture.pts = number
        packets += context.encode(picture)
    packets += context.encode(None)
    with pytest.raises(DataError, match="B-frame"):
        decode_h264(b"".join(map(bytes, packets)), num_frames=8, size=None, where="v")


def test_a_frame_above_the_limit_is_refused_before_it_is_decoded(monkeypatch):
    stream = encode_h264(texture(10), frame_rate_hz=10.0)
    monkeypatch.setattr(video, "MAX_PIXELS", 1000)
    video._local.__dict__.clear()
    with pytest.raises(DataError):
        decode_h264(stream, num_frames=6, size=None, where="v")
    monkeypatch.undo()
    video._local.__dict__.clear()
    monkeypatch.setattr(video, "MAX_DECODED_BYTES", 1000)
    with pytest.raises(DataError, match="at most 1000"):
        decode_h264(stream, num_frames=6, size=None, where="v")


def test_most_flipped_bytes_that_show_are_caught_by_decoding_alone():
    """Bare decoding misses them all; what it misses here, the shard's checksum catches."""
    rng = np.random.default_rng(11)
    stream = encode_h264(texture(11, 8, (96, 128)), frame_rate_hz=10.0, crf=20)
    good = decode_h264(stream, num_frames=8, size=None, where="v")
    num_visible = num_caught = 0
    for _ in range(120):
        flipped = bytearray(stream)
        flipped[rng.integers(len(stream))] ^= int(rng.integers(1, 256))
        try:
            seen = decode_h264(bytes(flipped), num_frames=8, size=None, where="v")
        except DataError:
            num_visible += 1
            num_caught += 1
            continue
        num_visible += int(np.abs(seen.astype(int) - good).max() > 8)
    assert num_visible > 40
    assert num_caught / num_visible > 0.5, f"{num_caught} of {num_visible}"


def test_decoding_is_single_threaded():
    """More threads would hide corruption and fight with the DataLoader's workers for the cores."""
    script = (
        "import os\n"
        "from fsdtrain.data.video import decode_h264, encode_h264\n"
        "import numpy as np\n"
        "stream = encode_h264(np.zeros((4, 48, 64, 3), np.uint8), frame_rate_hz=10.0)\n"
        "before = len(os.listdir('/proc/self/task'))\n"
        "decode_h264(stream, num_frames=4, size=(24, 32), where='v')\n"
        "print(len(os.listdir('/proc/self/task')) - before)\n"
    )
    if not os.path.isdir("/proc/self/task"):
        pytest.skip("needs /proc")
    out = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "0"
