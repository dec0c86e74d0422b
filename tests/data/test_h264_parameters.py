"""The place of chroma samples, from streams that x264 made with every option before it."""

import contextlib
import re
from fractions import Fraction

import numpy as np
import pytest
from av.video.codeccontext import VideoCodecContext
from av.video.frame import VideoFrame

from fsdtrain.data.h264_parameters import chroma_site
from fsdtrain.errors import DataError

SITES = [(1.0, 0.5), (1.0, 1.0), (0.5, 0.5), (0.5, 1.0), (1.5, 0.5), (1.5, 1.0)]


def encode(x264: str, *, pixels: str = "yuv420p", size: tuple[int, int] = (48, 64)) -> bytes:
    context = VideoCodecContext.create("libx264", "w")
    context.width, context.height, context.pix_fmt = size[1], size[0], pixels
    context.framerate, context.time_base = Fraction(10), Fraction(1, 10)
    context.options = {"x264-params": x264}
    context.open()
    picture = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    frame = VideoFrame.from_ndarray(picture, format="rgb24").reformat(format=pixels)
    frame.pts = 0
    packets = [*context.encode(frame), *context.encode(None)]
    return b"".join(bytes(packet) for packet in packets)


@pytest.mark.parametrize("location", range(6))
@pytest.mark.parametrize(
    "others",
    [
        "",
        "cqm=jvt",
        "cqm4i=" + ",".join(["20"] * 16) + ":cqm8p=" + ",".join(map(str, range(1, 65))),
        "interlaced=1",
        "sar=7/5",
        "overscan=show:videoformat=pal:fullrange=on",
        "colorprim=bt709:transfer=bt709:colormatrix=bt709",
        "cabac=0:8x8dct=0:bframes=0:level=5.1",
    ],
)
def test_the_site_is_the_one_that_the_encoder_was_told(location: int, others: str) -> None:
    data = encode(f"chromaloc={location}:{others}")
    assert chroma_site(data, where="w") == SITES[location]


def test_a_cropped_stream_of_1080_rows_is_read() -> None:
    assert chroma_site(encode("chromaloc=3", size=(1080, 1920)), where="w") == SITES[3]


@pytest.mark.parametrize("profile", ["baseline", "main", "high"])
def test_where_nothing_is_said_it_is_left(profile: str) -> None:
    assert chroma_site(encode("bframes=0"), where="w") == SITES[0]
    simple = "cabac=0:8x8dct=0:bframes=0:weightp=0" if profile == "baseline" else "8x8dct=0"
    assert chroma_site(encode(simple), where="w") == SITES[0]


@pytest.mark.parametrize(
    "data", [b"", b"\0\0\1\x67", b"\0\0\1\x09\x10", b"\0\0\1\x67\x42\0\x1e" * 2]
)
def test_a_broken_stream_is_named(data: bytes) -> None:
    with pytest.raises(DataError, match=re.escape("s: front: its sequence parameter set")):
        chroma_site(data, where="s: front")


def test_no_flipped_bit_breaks_more_than_the_clip() -> None:
    data = bytearray(encode("chromaloc=1:cqm=jvt")[:60])
    for place in range(len(data) * 8):
        data[place // 8] ^= 1 << place % 8
        with contextlib.suppress(DataError):
            assert chroma_site(bytes(data), where="w") in SITES
        data[place // 8] ^= 1 << place % 8
