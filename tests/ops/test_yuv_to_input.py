"""The reference of yuv_to_input against loops, torch's resampling, swscale and colour tables."""

from typing import Any

import numpy as np
import pytest
import torch
from av.video.frame import VideoFrame
from av.video.reformatter import ColorRange, Colorspace, Interpolation, VideoReformatter
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from fsdtrain.ops.yuv_to_input import YuvLayout, rgb_from_yuv, yuv_to_input

IDENTITY = torch.eye(3, 4, dtype=torch.float64)
CENTRE = (1.0, 1.0)


def pack(
    luma_KHW: NDArray[np.uint8],
    u_Khw: NDArray[np.uint8],
    v_Khw: NDArray[np.uint8],
    layout: YuvLayout,
) -> Tensor:
    num_pictures, height, width = luma_KHW.shape
    if layout == "i420":
        chroma = np.concatenate(
            [u_Khw.reshape(num_pictures, -1), v_Khw.reshape(num_pictures, -1)], 1
        )
    else:
        chroma = np.stack([u_Khw, v_Khw], -1)
    chroma = chroma.reshape(num_pictures, height // 2, width)
    return torch.from_numpy(np.concatenate([luma_KHW, chroma], 1))


def random_planes(
    rng: np.random.Generator, num_pictures: int, size: tuple[int, int]
) -> tuple[NDArray[np.uint8], NDArray[np.uint8], NDArray[np.uint8]]:
    height, width = size
    half = (num_pictures, height // 2, width // 2)
    return (
        rng.integers(0, 256, (num_pictures, height, width), np.uint8),
        rng.integers(0, 256, half, np.uint8),
        rng.integers(0, 256, half, np.uint8),
    )


def call(yuv: Tensor, **changes: Any) -> Tensor:
    """Without change of colour, of the whole pictures at half their size, as plain Y, U, V."""
    num_pictures, num_rows, width = yuv.shape
    height = num_rows // 3 if changes.get("layout") == "planar444" else num_rows * 2 // 3
    given: dict[str, Any] = {
        "window_K4": torch.tensor([[0, 0, height, width]] * num_pictures).double(),
        "chroma_site_K2": torch.tensor([CENTRE] * num_pictures).double(),
        "to_rgb_K34": IDENTITY.expand(num_pictures, 3, 4),
        "colour_K34": IDENTITY.expand(num_pictures, 3, 4),
        "is_mirrored_K": torch.zeros(num_pictures, dtype=torch.bool),
        "layout": "i420",
        "out_size": (height // 2, width // 2),
        "mean": (0.0, 0.0, 0.0),
        "std": (1.0, 1.0, 1.0),
        "dtype": torch.float64,
    }
    return yuv_to_input(yuv, **(given | changes))


def mean_of(
    plane: NDArray[np.uint8], down: float, right: float, step: tuple[float, float]
) -> float:
    """Of the samples around a place, where sample [i, j] lies at (i + 0.5, j + 0.5)."""
    weights = []
    for place, size, length in ((down, plane.shape[0], step[0]), (right, plane.shape[1], step[1])):
        reach = max(length, 1.0)
        weight = [max(0.0, 1 - abs(i + 0.5 - place) / reach) for i in range(size)]
        weights.append(np.array(weight) / sum(weight))
    return float(weights[0] @ plane.astype(np.float64) @ weights[1])


def by_loops(
    planes: tuple[NDArray[np.uint8], NDArray[np.uint8], NDArray[np.uint8]],
    given: dict[str, Any],
) -> NDArray[np.float64]:
    """The docstring, pixel by pixel; chroma placed by where its samples lie in the picture."""
    luma, u, v = planes
    height, width = given["out_size"]
    out = np.zeros((len(luma), 3, height, width))
    for k, row, column in np.ndindex(len(luma), height, width):
        top, left, tall, wide = given["window_K4"][k].tolist()
        site_down, site_right = given["chroma_site_K2"][k].tolist()
        step = (tall / height, wide / width)
        down, right = top + (row + 0.5) * step[0], left + (column + 0.5) * step[1]
        # Chroma sample i lies at site + 2 i.
        chroma_at = ((down - site_down) / 2 + 0.5, (right - site_right) / 2 + 0.5)
        half = (step[0] / 2, step[1] / 2)
        yuv1 = [
            mean_of(luma[k], down, right, step),
            mean_of(u[k], *chroma_at, half),
            mean_of(v[k], *chroma_at, half),
            1.0,
        ]
        rgb = np.clip(given["to_rgb_K34"][k].numpy() @ yuv1, 0, 255)
        rgb = np.clip(given["colour_K34"][k].numpy() @ [*rgb, 1.0], 0, 255)
        place = width - 1 - column if given["is_mirrored_K"][k] else column
        out[k, :, row, place] = (rgb - given["mean"]) / given["std"]
    return out


def random_arguments(rng: np.random.Generator, num_pictures: int, size: tuple[int, int]) -> Any:
    """Windows, sites, changes of colour and mirrors that differ from picture to picture."""
    corners = np.sort(rng.uniform(0, 1, (num_pictures, 2, 2)), axis=1) * size
    window = np.concatenate([corners[:, 0], np.maximum(corners[:, 1] - corners[:, 0], 0.3)], 1)
    window[:, :2] = np.minimum(window[:, :2], np.array(size) - window[:, 2:])
    matrices = [
        rgb_from_yuv(str(rng.choice(["bt601", "bt709"])), is_full_range=bool(rng.integers(2)))
        for _ in range(num_pictures)
    ]
    colour = np.eye(3, 4) + rng.normal(0, 0.1, (num_pictures, 3, 4))
    colour[:, :, 3] *= 200
    return {
        "window_K4": torch.from_numpy(window),
        "chroma_site_K2": torch.from_numpy(rng.choice([0.5, 1.0, 1.5], (num_pictures, 2))),
        "to_rgb_K34": torch.tensor(matrices, dtype=torch.float64),
        "colour_K34": torch.from_numpy(colour),
        "is_mirrored_K": torch.from_numpy(rng.integers(0, 2, num_pictures) == 1),
        "mean": (120.0, 116.5, 103.25),
        "std": (58.0, 57.0, 57.5),
    }


@pytest.mark.parametrize("layout", ["i420", "nv12"])
@pytest.mark.parametrize(
    ("size", "out_size"),
    [
        ((6, 10), (3, 4)),
        ((18, 22), (5, 3)),
        ((2, 2), (1, 1)),
        ((8, 6), (13, 11)),
        ((34, 4), (4, 7)),
    ],
)
def test_equals_a_loop_over_pixels(
    layout: YuvLayout, size: tuple[int, int], out_size: tuple[int, int]
) -> None:
    rng = np.random.default_rng([*size, *out_size])
    planes = random_planes(rng, 3, size)
    given = random_arguments(rng, 3, size) | {"out_size": out_size}
    expected = by_loops(planes, given)
    assert np.isfinite(expected).all()
    found = call(pack(*planes, layout), **given, layout=layout)
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-10)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), data=st.data())
def test_equals_a_loop_over_pixels_whatever_the_sizes(seed: int, data: st.DataObject) -> None:
    even, any_size = st.integers(1, 9).map(lambda n: 2 * n), st.integers(1, 7)
    size = (data.draw(even), data.draw(even))
    rng = np.random.default_rng(seed)
    planes = random_planes(rng, 2, size)
    given = random_arguments(rng, 2, size)
    given["out_size"] = (data.draw(any_size), data.draw(any_size))
    found = call(pack(*planes, "i420"), **given)
    np.testing.assert_allclose(found.numpy(), by_loops(planes, given), atol=1e-10)


@pytest.mark.parametrize("out_size", [(9, 16), (5, 7), (36, 64), (50, 41), (70, 130), (1, 1)])
def test_resamples_each_plane_as_torch_does(out_size: tuple[int, int]) -> None:
    planes = random_planes(np.random.default_rng(0), 2, (36, 64))
    found = call(pack(*planes, "i420"), out_size=out_size)
    for channel, plane in enumerate(planes):
        expected = F.interpolate(
            torch.from_numpy(plane).double()[:, None], out_size, mode="bilinear", antialias=True
        )
        # torch computes its weights in single precision.
        torch.testing.assert_close(found[:, channel], expected[:, 0], atol=1e-3, rtol=0)


@pytest.mark.parametrize(
    ("size", "out_size"), [((7, 11), (3, 4)), ((5, 3), (9, 8)), ((1, 1), (2, 1))]
)
def test_three_planes_of_one_size_are_brightness_three_times(
    size: tuple[int, int], out_size: tuple[int, int]
) -> None:
    """The loop again; of every pair of planes the chroma that it makes is thrown away."""
    rng = np.random.default_rng([*size, *out_size])
    given = random_arguments(rng, 2, size) | {"out_size": out_size}
    plain = {"to_rgb_K34": IDENTITY.expand(2, 3, 4), "colour_K34": IDENTITY.expand(2, 3, 4)}
    planes = rng.integers(0, 256, (2, 3, *size), np.uint8)
    half = np.zeros((2, *size), np.uint8)
    black = {"mean": (0.0,) * 3, "std": (1.0,) * 3}
    resampled = [
        by_loops((planes[:, i], half, half), given | plain | black)[:, 0] for i in range(3)
    ]
    expected = np.stack(resampled, 1)
    for change in ("to_rgb_K34", "colour_K34"):
        matrix = given[change].numpy()
        mixed = np.einsum("kij,kjhw->kihw", matrix[:, :, :3], expected)
        expected = np.clip(mixed + matrix[:, :, 3, None, None], 0, 255)
    expected = (expected - np.reshape(given["mean"], (3, 1, 1))) / np.reshape(
        given["std"], (3, 1, 1)
    )
    yuv = torch.from_numpy(planes.reshape(2, 3 * size[0], size[1]))
    found = call(yuv, **given, layout="planar444")
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-10)


def test_a_window_is_a_part_of_the_whole() -> None:
    """Cutting comes after resampling: what lies beside the window counts."""
    yuv = pack(*random_planes(np.random.default_rng(1), 1, (32, 48)), "i420")
    whole = call(yuv, out_size=(12, 20))
    part = call(yuv, window_K4=torch.tensor([[8.0, 12.0, 16.0, 24.0]]).double(), out_size=(6, 10))
    torch.testing.assert_close(part, whole[..., 3:9, 5:15])


# 100 % bars in 8 bits: BT.709 part 3, BT.601 (EBU Tech 3325, SMPTE EG 1).
BARS = {
    "bt709": {
        (235, 128, 128): (255, 255, 255), (219, 16, 138): (255, 255, 0),
        (188, 154, 16): (0, 255, 255), (173, 42, 26): (0, 255, 0), (78, 214, 230): (255, 0, 255),
        (63, 102, 240): (255, 0, 0), (32, 240, 118): (0, 0, 255), (16, 128, 128): (0, 0, 0),
    },
    "bt601": {
        (235, 128, 128): (255, 255, 255), (210, 16, 146): (255, 255, 0),
        (170, 166, 16): (0, 255, 255), (145, 54, 34): (0, 255, 0), (106, 202, 222): (255, 0, 255),
        (81, 90, 240): (255, 0, 0), (41, 240, 110): (0, 0, 255), (16, 128, 128): (0, 0, 0),
    },
}  # fmt: skip


@pytest.mark.parametrize("matrix", BARS)
def test_colour_bars_have_their_colours(matrix: str) -> None:
    bars = np.array(list(BARS[matrix]), np.uint8)
    planes = [np.full((len(bars), *size), 0, np.uint8) for size in ((6, 8), (3, 4), (3, 4))]
    for channel, plane in enumerate(planes):
        plane += bars[:, channel, None, None]
    to_rgb = torch.tensor(rgb_from_yuv(matrix, is_full_range=False), dtype=torch.float64)
    given = {"to_rgb_K34": to_rgb.expand(len(bars), 3, 4), "out_size": (5, 3)}
    found = call(pack(*planes, "i420"), **given)
    expected = torch.tensor(list(BARS[matrix].values())).double()[..., None, None]
    # Bars are rounded to whole numbers of bytes.
    assert (found - expected).abs().max() < 1.7
    white_and_black = found[[0, -1]]
    torch.testing.assert_close(white_and_black, expected[[0, -1]].expand_as(white_and_black))


def test_full_range_greys_are_the_bytes() -> None:
    yuv = torch.full((1, 6, 4), 128, dtype=torch.uint8)
    yuv[:, :4] = 77
    to_rgb = torch.tensor([rgb_from_yuv("bt709", is_full_range=True)], dtype=torch.float64)
    found = call(yuv, to_rgb_K34=to_rgb)
    torch.testing.assert_close(found, torch.full_like(found, 77.0))


def smooth_rgb(size: tuple[int, int]) -> NDArray[np.uint8]:
    """Strong colours that change within a dozen pixels, and an edge."""
    rows, columns = np.mgrid[: size[0], : size[1]]
    waves = [np.sin(rows / 7 + columns / 9), np.cos(rows / 11), np.sin(columns / 8 - rows / 13)]
    picture = 127.5 + 100 * np.stack(waves, -1)
    picture[:, size[1] // 2 :] = 255 - picture[:, size[1] // 2 :]
    return picture.round().astype(np.uint8)


@pytest.mark.parametrize("matrix", [Colorspace.ITU601, Colorspace.ITU709])
@pytest.mark.parametrize("color_range", [ColorRange.MPEG, ColorRange.JPEG])
@pytest.mark.parametrize(
    ("size", "out_size"), [((96, 128), (40, 50)), ((96, 128), (70, 31)), ((48, 64), (96, 128))]
)
def test_agrees_with_swscale(
    matrix: Colorspace, color_range: ColorRange, size: tuple[int, int], out_size: tuple[int, int]
) -> None:
    """A frame that no decoder made says nothing of its chroma: swscale puts it in the middle."""
    exact = Interpolation.BILINEAR | Interpolation.BITEXACT | Interpolation.FULL_CHR_H_INT
    rgb = VideoFrame.from_ndarray(smooth_rgb(size), format="rgb24")
    frame = VideoReformatter().reformat(
        rgb,
        format="yuv420p",
        dst_colorspace=matrix,
        dst_color_range=color_range,
        interpolation=exact,
    )
    frame.colorspace, frame.color_range = matrix, color_range
    scaled = VideoReformatter().reformat(
        frame, width=out_size[1], height=out_size[0], format="rgb24", interpolation=exact
    )
    expected = scaled.to_ndarray().astype(np.float64).transpose(2, 0, 1)
    planes = []
    for plane in frame.planes:
        rows = np.frombuffer(memoryview(plane), np.uint8).reshape(-1, plane.line_size)
        planes.append(rows[None, : plane.height, : plane.width])
    name = "bt601" if matrix == Colorspace.ITU601 else "bt709"
    to_rgb = rgb_from_yuv(name, is_full_range=color_range == ColorRange.JPEG)
    found = call(
        pack(*planes, "i420"),
        to_rgb_K34=torch.tensor([to_rgb], dtype=torch.float64),
        out_size=out_size,
    )
    difference = np.abs(found[0].numpy() - expected)
    # swscale rounds to bytes. Beyond the picture it repeats the edge, where here nothing counts.
    inside = difference[:, 3:-3, 3:-3]
    assert inside.mean() < 0.3
    assert inside.max() < 0.6


def test_gives_what_it_was_asked_for() -> None:
    planes = random_planes(np.random.default_rng(2), 3, (18, 30))
    given = {
        name: value.float() if isinstance(value, Tensor) and value.is_floating_point() else value
        for name, value in random_arguments(np.random.default_rng(3), 3, (18, 30)).items()
    }
    exact = call(pack(*planes, "i420"), **given, out_size=(7, 9), dtype=torch.float32)
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        found = call(pack(*planes, "i420"), **given, out_size=(7, 9), dtype=dtype)
        assert found.dtype == dtype
        assert found.is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(found, exact.to(dtype))


def test_is_one_graph() -> None:
    planes = random_planes(np.random.default_rng(2), 2, (18, 30))
    given = random_arguments(np.random.default_rng(3), 2, (18, 30)) | {"out_size": (7, 9)}
    for layout in ("i420", "nv12"):
        compiled = torch.compile(call, fullgraph=True, backend="aot_eager", dynamic=False)
        yuv = pack(*planes, layout)
        torch.testing.assert_close(
            compiled(yuv, **given, layout=layout), call(yuv, **given, layout=layout)
        )
