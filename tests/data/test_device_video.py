"""data.frames=h264: what workers hand over, what a device decodes of it, and what it refuses.

Decoding is tried on a CPU, where torchcodec and FFmpeg are installed.
"""

import importlib
import sys
from dataclasses import replace
from typing import Any

import lightning
import msgspec
import numpy as np
import pytest
import torch
from torch.utils._pytree import tree_map

from fsdtrain.data.assignment import Share
from fsdtrain.data.augment import Augmentation, augment_views, augment_window
from fsdtrain.data.batch import ClipBatch, EncodedFrames, EncodedVideo, RgbFrames
from fsdtrain.data.collate import Sample, collate
from fsdtrain.data.datamodule import FleetDataModule
from fsdtrain.data.device_loader import DeviceLoader
from fsdtrain.data.device_video import check_decoding, decode_video, move_batch, try_decoding
from fsdtrain.data.encoded import wrap_h264
from fsdtrain.data.shard import write_shards
from fsdtrain.data.video import decode_h264, encode_h264
from fsdtrain.data.window import WindowShape, base_views, cut_window
from fsdtrain.errors import DataError, UserError
from fsdtrain.evaluate import ViewedLoader

STORED = (96, 128)
CPU = torch.device("cpu")
SHAPE = WindowShape(
    num_frames=2, image_size=(40, 64), frame_stride=2, stored_size=STORED, is_encoded=True
)


def why_none() -> str:
    try:
        importlib.import_module("torchcodec")
        try_decoding(CPU)
    except (ImportError, OSError, RuntimeError, UserError) as error:
        return f"torchcodec cannot decode here: {str(error).splitlines()[0]}"
    return ""


NONE = why_none()
decodes = pytest.mark.skipif(bool(NONE), reason=NONE)


@pytest.fixture(scope="module")
def shards(make_clip, tmp_path_factory):
    folder = tmp_path_factory.mktemp("shards")
    clips = [make_clip(clip_id=f"c{n}", seed=n, num_frames=4, size=STORED) for n in range(5)]
    write_shards(clips, folder, prefix="s", clips_per_shard=4)
    return folder


def make_module(source, frames, **changes) -> FleetDataModule:
    options = {
        "train": str(source), "val": str(source), "image_size": (16, 32), "num_frames": 2,
        "batch_size": 2, "seed": 5, "frames": frames, "augmentation": Augmentation(),
    }  # fmt: skip
    return FleetDataModule(**(options | changes))


def loader_of(source, frames, name="train", **changes):
    return make_module(source, frames, **changes).loader(name, Share(batch_size=2))


class CopyToCpu:
    """StreamCopy without its stream."""

    def send(self, batch: ClipBatch) -> Any:
        return [move_batch(batch, CPU)]

    def receive(self, sent: Any) -> ClipBatch:
        return sent[0]


def video_of(*windows) -> EncodedVideo:
    return collate([Sample(window=each, targets={}, clip_index=0) for each in windows]).frames


def pictures(num_frames=6, size=(50, 70), seed=0):
    rng = np.random.default_rng(seed)
    block = np.kron(rng.integers(0, 256, (10, 14, 3)), np.ones((5, 5, 1))).astype(np.uint8)
    return [np.roll(block[: size[0], : size[1]], 3 * n, 1) for n in range(num_frames)]


def test_a_batch_holds_the_videos_up_to_their_last_frame(make_clip):
    clips = [make_clip(clip_id=f"c{n}", seed=n, num_frames=6, size=STORED) for n in range(2)]
    windows = [
        cut_window(clip, SHAPE, where=clip.meta.clip_id, first_frame=first)
        for clip, first in zip(clips, (0, 3), strict=True)
    ]
    video = video_of(*windows)
    assert video.bytes_L.dtype == torch.uint8
    assert video.frame_index_BT.tolist() == [[0, 2], [3, 5]]
    assert video.ends_BN.shape == (2, 2)
    assert video.ends_BN[-1, -1] == len(video.bytes_L)
    assert video.where_BN == tuple(
        tuple(f"c{n}: video.{name}" for name in clips[0].meta.cameras) for n in range(2)
    )
    # Less than 3 of 6 frames are sent of the first clip; the second one needs all.
    ends = [0, *video.ends_BN.flatten().tolist()]
    for number, (start, end) in enumerate(zip(ends, ends[1:], strict=False)):
        clip = clips[number // 2]
        name = clip.meta.cameras[number % 2]
        last = (2, 5)[number // 2]
        whole = clip.video[name]
        file = wrap_h264(whole, num_frames=6, frames=[last], stored_size=STORED, where="w")
        assert bytes(video.bytes_L[start:end].numpy()) == file
    short, long = (
        len(wrap_h264(whole, num_frames=6, frames=[n], stored_size=STORED, where="w"))
        for n in (2, 5)
    )
    assert short < long


@pytest.mark.parametrize("seed", range(3))
def test_all_but_the_pictures_is_as_in_i420(make_clip, seed):
    clip = make_clip(num_frames=4, size=STORED, seed=seed)
    windows = []
    for shape in (replace(SHAPE, is_encoded=False), SHAPE):
        rng = np.random.default_rng(seed)
        views = augment_views(base_views(clip, shape), Augmentation(max_zoom=1.6), rng)
        window = cut_window(clip, shape, where="w", views=views)
        windows.append(augment_window(window, Augmentation(), rng))
    one, other = windows
    assert isinstance(other.frames, EncodedFrames)
    assert other.image_size == one.image_size
    for field in ("window_N4", "colour_N34", "is_mirrored"):
        np.testing.assert_array_equal(getattr(other.frames, field), getattr(one.frames, field))
    assert not (other.frames.colour_N34 == np.eye(3, 4)).all()
    np.testing.assert_array_equal(other.intrinsics_N33, one.intrinsics_N33)
    np.testing.assert_array_equal(other.camera_to_ego_N44, one.camera_to_ego_N44)


CUTS: dict[str, tuple[dict[str, Any], str]] = {
    "fewer frames": ({"num_frames": 7}, "v: holds 6 frames, the clip's meta says 7"),
    "another size": ({"stored_size": (50, 72)}, "v: is 70x50, the calibration says 72x50"),
    "no such frame": ({"frames": [6]}, r"v: frames \[6\] asked of a video of 6"),
    "no frame": ({"frames": []}, r"v: frames \[\] asked"),
    "too much": ({"stored_size": (2**15, 2**16)}, "v: 12884901888 bytes decoded, at most"),
}


@pytest.mark.parametrize("what", CUTS)
def test_what_can_be_told_without_decoding_is_told_by_the_worker(what):
    changes, sentence = CUTS[what]
    data = encode_h264(pictures(), frame_rate_hz=5.0)
    given = {"num_frames": 6, "frames": [1, 3], "stored_size": (50, 70), "where": "v"}
    assert wrap_h264(data, **given)
    with pytest.raises(DataError, match=sentence):
        wrap_h264(data, **(given | changes))


@pytest.mark.parametrize("data", [b"", b"nothing of the kind", bytes(300)])
def test_what_is_no_video_is_refused(data):
    with pytest.raises(DataError, match="v: "):
        wrap_h264(data, num_frames=1, frames=[0], stored_size=(2, 2), where="v")


def test_a_video_without_its_key_frame_is_refused():
    data = encode_h264(pictures(), frame_rate_hz=5.0)
    starts = [at for at in range(len(data) - 4) if data[at : at + 3] == b"\0\0\1"]
    key = next(at for at in starts if data[at + 3] & 0x1F == 5)
    following = next(at for at in starts if at > key)
    headless = data[:key] + data[following:]
    with pytest.raises(DataError, match=r"v: (does not begin with a key frame|is 0x0)"):
        wrap_h264(headless, num_frames=5, frames=[0], stored_size=(50, 70), where="v")


def test_a_bad_clip_is_skipped_as_in_i420(make_clip, tmp_path):
    sizes = (STORED, STORED, (48, 64), STORED)
    clips = [make_clip(clip_id=f"c{n}", seed=n, size=size) for n, size in enumerate(sizes)]
    clips[0] = msgspec.structs.replace(
        clips[0], video=clips[0].video | {"rear": clips[2].video["rear"]}
    )
    write_shards(clips, tmp_path, prefix="s", clips_per_shard=4)
    with pytest.raises(DataError, match=r"'c0': video\.rear: is 64x48, the calibration says 128"):
        list(loader_of(tmp_path, "h264", "val"))
    loader = loader_of(tmp_path, "h264", "val", max_bad_clips=2)
    assert [batch.clip_index_B.tolist() for batch in loader] == [[-1, 1], [-1, 3]]


@pytest.mark.parametrize("accelerator", [None, "cpu"])
def test_without_a_gpu_one_sentence_says_what_to_do(shards, accelerator):
    module = make_module(shards, "h264")
    if accelerator:
        module.trainer = lightning.Trainer(
            accelerator=accelerator, devices=1, logger=False, enable_checkpointing=False
        )
    for make in (module.train_dataloader, module.val_dataloader):
        with pytest.raises(UserError, match=r"NVIDIA GPU.*the CPU: .*use data\.frames=i420"):
            make()


def test_without_torchcodec_one_sentence_says_what_to_do(monkeypatch):
    # None: Python's own way to say that there is no such module.
    monkeypatch.setitem(sys.modules, "torchcodec", None)
    monkeypatch.setitem(sys.modules, "torchcodec.decoders", None)
    with pytest.raises(UserError, match=r"fsdtrain\[nvdec\].*use data\.frames=i420"):
        try_decoding(CPU)


@pytest.mark.parametrize("error", [RuntimeError("no FFmpeg\n  long"), OSError("no FFmpeg")])
def test_a_torchcodec_that_cannot_decode_is_one_sentence(monkeypatch, error):
    class Decoders:
        def VideoDecoder(self, *_: Any, **__: Any) -> None:  # noqa: N802
            raise error

    monkeypatch.setitem(sys.modules, "torchcodec", Decoders())
    monkeypatch.setitem(sys.modules, "torchcodec.decoders", Decoders())
    with pytest.raises(UserError, match=r"no FFmpeg \(.*or use data\.frames=i420") as caught:
        try_decoding(CPU)
    assert "\n" not in str(caught.value)


def test_other_devices_are_refused():
    with pytest.raises(UserError, match="this run computes on meta"):
        check_decoding(torch.device("meta"))


@decodes
def test_any_frames_in_any_order_are_decoded(make_clip):
    stored = encode_h264(pictures(), frame_rate_hz=5.0)
    order = [4, 1, 1]
    file = wrap_h264(stored, num_frames=6, frames=order, stored_size=(50, 70), where="v")
    video = EncodedVideo(
        torch.frombuffer(bytearray(file), dtype=torch.uint8), torch.tensor([[len(file)]]),
        torch.tensor([order]), (50, 70), (("v",),), torch.zeros(1, 1, 4),
        torch.zeros(1, 1, 3, 4), torch.tensor([False]),
    )  # fmt: skip
    found = decode_video(video, CPU)
    expected = decode_h264(stored, num_frames=6, size=None, where="v", frames=order)
    planes_THWC = found.planes_BTNRW[0, :, 0].view(3, 3, 50, 70).permute(0, 2, 3, 1).numpy()
    assert np.abs(planes_THWC.astype(int) - expected).mean() < 1  # swscale is not always bit-exact
    assert np.abs(planes_THWC[0].astype(int) - planes_THWC[1]).mean() > 5


@decodes
@pytest.mark.parametrize("num_workers", [0, 1])
def test_the_network_gets_the_same_input(shards, make_network, num_workers):
    network = make_network()
    rgb, i420, h264 = (
        loader_of(shards, frames, num_workers=num_workers) for frames in ("rgb", "i420", "h264")
    )
    decoded = DeviceLoader(h264, CopyToCpu())
    for one, other, found in zip(rgb, i420, decoded, strict=True):
        assert isinstance(found.frames, RgbFrames)
        assert found.frames.planes_BTNRW.shape == (2, 2, 2, 288, 128)
        for name in set(one._fields) - {"frames", "targets"}:
            assert torch.equal(getattr(one, name), getattr(found, name)), name
        images = network._images(found.frames)
        # swscale's way to RGB without scaling, which torchcodec takes on a CPU, cuts its results
        # off (1.1 levels too dark on average) and repeats chroma instead of interpolating it.
        for expected in (one, other):
            grey_levels = 57 * (images - network._images(expected.frames)).abs()
            assert grey_levels.mean() < 2.2
    assert network(found)["path"]["path_BKS2"].isfinite().all()


@decodes
def test_a_compiled_network_is_one_graph(shards, make_network):
    network = make_network().eval()
    batch = next(iter(DeviceLoader(loader_of(shards, "h264"), CopyToCpu())))
    compiled = torch.compile(network, fullgraph=True, backend="aot_eager", dynamic=False)
    with torch.no_grad():
        tree_map(torch.testing.assert_close, compiled(batch), network(batch))


@decodes
def test_blind_views_are_black(shards, make_network):
    network = make_network()
    loader = DeviceLoader(loader_of(shards, "h264", "val"), CopyToCpu())
    black = network._images(torch.zeros(2, 2, 2, 3, 16, 32, dtype=torch.uint8))
    for batch in ViewedLoader(loader, "camera_blind"):
        torch.testing.assert_close(network._images(batch.frames), black)
    assert len(list(ViewedLoader(loader, "cameras_shuffled"))) == 3


@decodes
def test_resumed_the_rest_comes(shards):
    whole = list(DeviceLoader(loader_of(shards, "h264"), CopyToCpu()))
    loader = DeviceLoader(loader_of(shards, "h264"), CopyToCpu())
    next(iter(loader))
    resumed = DeviceLoader(loader_of(shards, "h264"), CopyToCpu())
    resumed.load_state_dict(loader.state_dict())
    (rest,) = resumed
    tree_map(torch.testing.assert_close, rest, whole[1])


@decodes
def test_what_the_device_cannot_decode_is_named(make_clip):
    clip = make_clip(num_frames=4, size=STORED)
    video = video_of(cut_window(clip, SHAPE, where="shard s: clip 'a'"))
    start, end = video.ends_BN[0].tolist()
    broken = video.bytes_L.clone()
    broken[start:end] = 0
    second = clip.meta.cameras[1]
    with pytest.raises(DataError, match=rf"shard s: clip 'a': video\.{second}: cannot be decoded"):
        decode_video(video._replace(bytes_L=broken), CPU)
    with pytest.raises(DataError, match=r"decodes to \(2, 3, 96, 128\), the calibration says 64x"):
        decode_video(video._replace(stored_size=(48, 64)), CPU)
