"""The kernel of yuv_to_input against the reference in float64."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._pytree import tree_map

from fsdtrain.backend import BackendError
from fsdtrain.data.batch import ClipBatch, YuvFrames
from fsdtrain.models.hydra_bev import HydraBev
from fsdtrain.ops.table import OpTable
from fsdtrain.ops.yuv_to_input import rgb_from_yuv
from fsdtrain.ops.yuv_to_input import yuv_to_input as reference

pytest.importorskip("triton")
from fsdtrain_cuda.kernels.yuv_to_input import min_bytes, yuv_to_input

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
MEAN, STD = (123.7, 116.3, 103.5), (58.4, 57.1, 57.4)


def make_inputs(
    pictures: tuple[int, int, int],
    *,
    seed: int = 0,
    least_share: float = 0.2,
    layout: str = "i420",
) -> tuple[Tensor, ...]:
    """Bytes of [K, H, W] pictures; a window, sites, colours and a mirror for each."""
    generator = torch.Generator().manual_seed(seed)
    K, H, W = pictures
    num_rows = H * 3 if layout == "planar444" else H * 3 // 2
    yuv = torch.randint(0, 256, (K, num_rows, W), generator=generator, dtype=torch.uint8)
    size = torch.tensor([H, W])
    length = size * (least_share + (1 - least_share) * torch.rand(K, 2, generator=generator))
    start = (size - length) * torch.rand(K, 2, generator=generator)
    site = 0.5 + 0.5 * torch.randint(0, 3, (K, 2), generator=generator)
    matrices = [
        rgb_from_yuv("bt709" if k % 2 else "bt601", is_full_range=k % 3 == 0) for k in range(K)
    ]
    to_rgb = torch.tensor(matrices).reshape(K, 3, 4)
    gain = torch.eye(3) + 0.1 * torch.randn(K, 3, 3, generator=generator)
    offset = 20 * torch.randn(K, 3, 1, generator=generator)
    is_mirrored = torch.randint(0, 2, (K,), generator=generator) == 1
    window = torch.cat([start, length], 1)
    return yuv, window, site, to_rgb, torch.cat([gain, offset], 2), is_mirrored


def assert_twice_as_good_as_torch(
    device: str,
    inputs: tuple[Tensor, ...],
    out_size: tuple[int, int],
    *,
    layout: str = "i420",
    dtypes: tuple[torch.dtype, ...] = DTYPES,
) -> None:
    """At most twice the error of the reference in the same dtype, and some units in the last."""
    in_float64 = [value.double() if value.is_floating_point() else value for value in inputs]
    exact = reference(*in_float64, layout, out_size, MEAN, STD, torch.float64)
    for dtype in dtypes:
        plain = reference(*inputs, layout, out_size, MEAN, STD, dtype)
        on_device = [value.to(device) for value in inputs]
        found = yuv_to_input(*on_device, layout, out_size, MEAN, STD, dtype)
        assert found.shape == exact.shape
        assert found.dtype == dtype
        assert found.is_contiguous(memory_format=torch.channels_last)
        if exact.numel():
            floor = 4 * torch.finfo(dtype).eps * exact.abs().max()
            allowed = 2 * (plain.double() - exact).abs().max() + floor
            assert (found.cpu().double() - exact).abs().max() <= allowed, dtype


CASES = {
    "one of each": ((1, 2, 2), (1, 1)),
    "half a packed row": ((3, 6, 22), (5, 7)),
    "smaller": ((2, 36, 150), (16, 40)),
    "larger": ((2, 10, 14), (23, 31)),
    "taller and narrower": ((3, 20, 90), (37, 11)),
    "more than a tile": ((2, 50, 130), (19, 37)),
    "much smaller": ((1, 270, 180), (3, 5)),
    "many pictures": ((7, 8, 10), (3, 6)),
    "no pictures": ((0, 8, 10), (3, 6)),
}


@pytest.mark.parametrize("layout", ["i420", "nv12", "planar444"])
@pytest.mark.parametrize("case", CASES)
def test_equals_the_reference(device: str, case: str, layout: str) -> None:
    pictures, out_size = CASES[case]
    inputs = make_inputs(pictures, seed=len(case), layout=layout)
    # Those of 16 bits are computed alike; one program takes a tenth of a second interpreted.
    dtypes = DTYPES if case == "smaller" else (torch.float32, torch.float16)
    assert_twice_as_good_as_torch(device, inputs, out_size, layout=layout, dtypes=dtypes)


@settings(max_examples=10, deadline=None)
@given(data=st.data())
def test_equals_the_reference_whatever_the_sizes(data: st.DataObject) -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    even, any_size = st.integers(1, 60).map(lambda n: 2 * n), st.integers(1, 40)
    pictures = (data.draw(st.integers(1, 3)), data.draw(even), data.draw(even))
    out_size = (data.draw(any_size), data.draw(any_size))
    layout = data.draw(st.sampled_from(["i420", "nv12", "planar444"]))
    inputs = make_inputs(pictures, seed=data.draw(st.integers(0, 1000)), layout=layout)
    dtype = data.draw(st.sampled_from(DTYPES))
    assert_twice_as_good_as_torch(device, inputs, out_size, layout=layout, dtypes=(dtype,))


@pytest.mark.parametrize("pictures", [(2, 7, 9), (1, 35, 131)])
def test_three_whole_planes_may_be_odd(device: str, pictures: tuple[int, int, int]) -> None:
    inputs = make_inputs(pictures, layout="planar444")
    assert_twice_as_good_as_torch(device, inputs, (5, 37), layout="planar444")


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["i420", "nv12", "planar444"])
def test_equals_the_reference_at_1080p(device: str, layout: str) -> None:
    inputs = make_inputs((1, 1080, 1920), least_share=0.85, layout=layout)
    dtypes = (torch.float32, torch.bfloat16)
    assert_twice_as_good_as_torch(device, inputs, (256, 704), layout=layout, dtypes=dtypes)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_constant_picture_stays_constant(device: str, dtype: torch.dtype) -> None:
    yuv, window, site, *_, is_mirrored = make_inputs((4, 40, 62))
    yuv[:] = torch.tensor([16, 77, 200, 235], dtype=torch.uint8)[:, None, None]
    yuv[:, 40:] = 128
    to_rgb = torch.tensor([rgb_from_yuv("bt709", is_full_range=True)] * 4)
    colour = torch.eye(3, 4).repeat(4, 1, 1)
    given = [value.to(device) for value in (yuv, window, site, to_rgb, colour, is_mirrored)]
    found = yuv_to_input(*given, "i420", (17, 23), (0.0,) * 3, (1.0,) * 3, dtype)
    levels = torch.tensor([16.0, 77.0, 200.0, 235.0])[:, None, None, None]
    # Triton's interpreter cuts bfloat16 off, where a GPU rounds.
    is_cut_off = dtype == torch.bfloat16 and device == "cpu"
    tolerance = 1.0 if is_cut_off else 1e-3
    torch.testing.assert_close(
        found.cpu().float(), levels.expand(found.shape), atol=tolerance, rtol=0
    )


def test_rows_and_pictures_may_have_any_stride(device: str) -> None:
    """As NVDEC leaves them: longer rows, and pictures taken out of a longer strip."""
    yuv, *rest = make_inputs((3, 24, 30))
    padded = torch.randint(0, 256, (3, 2, 50, 64), dtype=torch.uint8, device=device)
    view = padded[:, 1, 3:39, 5:35]
    view.copy_(yuv)
    assert not view.is_contiguous()
    rest = [value.to(device) for value in rest]
    for layout in ("i420", "nv12"):
        found = yuv_to_input(view, *rest, layout, (9, 13), MEAN, STD, torch.float32)
        expected = yuv_to_input(yuv.to(device), *rest, layout, (9, 13), MEAN, STD, torch.float32)
        assert torch.equal(found, expected)


def test_offsets_beyond_32_bits(device: str) -> None:
    """Two small pictures 3 GiB apart; what lies between them is never touched."""
    yuv, *rest = make_inputs((2, 12, 16))
    strip = torch.empty(3 * 2**30 + yuv[0].numel(), dtype=torch.uint8, device=device)
    view = strip.as_strided(yuv.shape, (3 * 2**30, 16, 1))
    view.copy_(yuv)
    far_rows = strip.as_strided((1, 18, 16), (0, 2**27, 1))
    rest = [value.to(device) for value in rest]
    found = yuv_to_input(view, *rest, "i420", (5, 7), MEAN, STD, torch.float32)
    expected = yuv_to_input(yuv.to(device), *rest, "i420", (5, 7), MEAN, STD, torch.float32)
    assert torch.equal(found, expected)

    far_rows.copy_(yuv[1:])
    first = [value[1:] for value in rest]
    found = yuv_to_input(far_rows, *first, "nv12", (5, 7), MEAN, STD, torch.float32)
    near = yuv[1:].to(device)
    assert torch.equal(found, yuv_to_input(near, *first, "nv12", (5, 7), MEAN, STD, torch.float32))


def test_repeated_runs_give_the_same_bits(device: str) -> None:
    inputs = [value.to(device) for value in make_inputs((1, 50, 70))]
    first, *others = [
        yuv_to_input(*inputs, "i420", (15, 31), MEAN, STD, torch.bfloat16) for _ in range(10)
    ]
    assert all(torch.equal(other, first) for other in others)


def test_torch_knows_the_op(device: str) -> None:
    inputs = [value.to(device) for value in make_inputs((2, 20, 30))]
    arguments = (*inputs, "nv12", 7, 9, list(MEAN), list(STD), torch.bfloat16)
    torch.library.opcheck(torch.ops.fsdtrain.yuv_to_input.default, arguments)

    def call(*tensors: Tensor) -> Tensor:
        return yuv_to_input(*tensors, "nv12", (7, 9), MEAN, STD, torch.bfloat16) * 2

    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(*inputs), call(*inputs))
    with torch.autocast(device, torch.bfloat16):
        assert torch.equal(call(*inputs), compiled(*inputs))


def test_the_least_traffic_is_the_windows_and_the_result() -> None:
    window = torch.tensor([[0.0, 0.0, 1080.0, 1920.0], [60.0, 0.0, 960.0, 1920.0]])
    expected = 1.5 * (1080 + 960) * 1920 + 2 * 3 * 256 * 704 * 2
    assert min_bytes(window, (256, 704), torch.bfloat16) == expected


BAD: dict[str, tuple[dict[int, Any], str]] = {
    "a dtype": ({0: torch.zeros(2, 12, 10)}, r"yuv of shape \(2, 12, 10\) is torch.float32"),
    "an odd width": ({0: torch.zeros(2, 12, 9, dtype=torch.uint8)}, r"\(2, 12, 9\).*even width"),
    "an odd height": ({0: torch.zeros(2, 13, 10, dtype=torch.uint8)}, r"3/2 of an even height"),
    "no rows": ({0: torch.zeros(2, 0, 10, dtype=torch.uint8)}, r"\(2, 0, 10\)"),
    "columns": ({0: torch.zeros(2, 12, 20, dtype=torch.uint8)[..., ::2]}, "2 apart"),
    "pictures": ({1: torch.ones(3, 4)}, r"window has shape \(3, 4\).*\(2, 4\)"),
    "a half window": ({1: torch.ones(2, 4).half()}, r"window .* is torch.float16"),
    "bytes as mirrors": ({5: torch.zeros(2, dtype=torch.uint8)}, "is_mirrored"),
    "a layout": ({6: "yuyv"}, "'yuyv'.*i420, nv12"),
    "no three planes": (
        {0: torch.zeros(2, 13, 10, dtype=torch.uint8), 6: "planar444"},
        "3 heights, a width",
    ),
    "outside a third of the rows": ({6: "planar444"}, "of picture . is not within its 4 x 10"),
    "a size": ({7: (0, 4)}, r"out_size=\(0, 4\)"),
    "a spread": ({9: (1.0, 0.0, 1.0)}, "std="),
    "a result": ({10: torch.float64}, "dtype=torch.float64"),
    "outside": ({1: torch.tensor([[0.0, 0, 8, 10], [1, 0, 8, 10]])}, "of picture 1 is not within"),
    "nothing": ({1: torch.tensor([[0.0, 0, 8, 10], [1, 0, 0, 10]])}, "of picture 1 is not within"),
    "NaN": ({4: torch.full((2, 3, 4), torch.nan)}, "colour of picture 0 has NaN"),
    "a gradient": ({3: torch.zeros(2, 3, 4, requires_grad=True)}, "no gradients"),
}


@pytest.mark.parametrize("what", BAD)
def test_what_does_not_fit_is_one_sentence(device: str, what: str) -> None:
    changes, sentence = BAD[what]
    given: list[Any] = [*make_inputs((2, 8, 10)), "i420", (3, 4), MEAN, STD, torch.float32]
    for place, value in changes.items():
        given[place] = value
    given = [value.to(device) if isinstance(value, Tensor) else value for value in given]
    with pytest.raises(BackendError, match=sentence):
        yuv_to_input(*given)


def test_the_network_makes_its_input_with_it(
    device: str, make_network: Callable[..., HydraBev], make_batch: Callable[..., ClipBatch]
) -> None:
    """Two clips of two frames by two cameras; what holds for a camera holds for its frames."""
    yuv, window, site, to_rgb, colour, _ = make_inputs((8, 40, 72))
    of_cameras = [value[:4].unflatten(0, (2, 2)) for value in (window, site, to_rgb, colour)]
    frames = YuvFrames(yuv.unflatten(0, (2, 2, 2)), *of_cameras, torch.tensor([True, False]))
    batch = tree_map(lambda value: value.to(device), make_batch()._replace(frames=frames))
    plain = make_network().to(device).eval()
    fused = make_network(ops=OpTable(yuv_to_input=yuv_to_input)).to(device).eval()
    compiled = torch.compile(fused, fullgraph=True, dynamic=False, backend="aot_eager")
    with torch.no_grad():
        expected = plain(batch)["vehicle"]["logits_BTXY"]
        torch.testing.assert_close(
            compiled(batch)["vehicle"]["logits_BTXY"], expected, atol=1e-3, rtol=1e-3
        )
