"""data.frames=i420: the same pictures, calibration and labels as rgb, by another way."""

from fractions import Fraction

import msgspec
import numpy as np
import pytest
import torch
from av.video.codeccontext import VideoCodecContext
from av.video.frame import VideoFrame
from torch.utils._pytree import tree_map

from fsdtrain.data.augment import Augmentation, augment_views, augment_window
from fsdtrain.data.batch import StoredFrames, YuvFrames
from fsdtrain.data.datamodule import FleetDataModule
from fsdtrain.data.pictures import last_pictures
from fsdtrain.data.shard import write_shards
from fsdtrain.data.video import decode_h264, decode_i420
from fsdtrain.data.window import WindowShape, base_views, cut_window
from fsdtrain.errors import DataError
from fsdtrain.evaluate import ViewedLoader

STORED = (96, 128)
RGB = WindowShape(num_frames=2, image_size=(40, 64), crop_top=0.1)
I420 = WindowShape(num_frames=2, image_size=(40, 64), crop_top=0.1, stored_size=STORED)


def encode(pictures, *, pixels="yuv420p", **colours) -> bytes:
    """A stream that says of its colours what it is told to."""
    context = VideoCodecContext.create("libx264", "w")
    context.height, context.width = pictures[0].shape[:2]
    context.pix_fmt = pixels
    context.framerate, context.time_base = Fraction(10), Fraction(1, 10)
    parameters = {"keyint": "infinite", "bframes": 0, "repeat-headers": 1} | colours
    context.options = {
        "crf": "4",
        "x264-params": ":".join(f"{name}={value}" for name, value in parameters.items()),
    }
    context.open()
    packets = []
    for number, picture in enumerate(pictures):
        frame = VideoFrame.from_ndarray(picture, format="rgb24").reformat(format=pixels)
        frame.pts = number
        packets += context.encode(frame)
    return b"".join(bytes(packet) for packet in [*packets, *context.encode(None)])


@pytest.fixture(scope="module")
def pictures(make_clip) -> list[np.ndarray]:
    clip = make_clip(num_frames=3, size=(50, 70), seed=8)
    return list(decode_h264(clip.video["front"], num_frames=3, size=None, where="v"))


def test_planes_are_those_of_the_decoder(pictures):
    data = encode(pictures)
    stored = decode_i420(data, num_frames=3, where="v", frames=[2, 0, 2], stored_size=(50, 70))
    context = VideoCodecContext.create("h264", "r")
    packets = context.parse(data) + context.parse(None)
    frames = [frame for packet in [*packets, None] for frame in context.decode(packet)]
    assert frames[0].planes[0].line_size > 70  # so that gaps would be seen
    expected = [frames[index].to_ndarray() for index in (2, 0, 2)]
    np.testing.assert_array_equal(stored.planes_TRW, expected)


@pytest.mark.parametrize(
    "colours",
    [
        {"colormatrix": "undef"},
        {"chromaloc": 0},
        {"chromaloc": 2},
        {"colormatrix": "bt709", "chromaloc": 1},
        {"colormatrix": "smpte170m", "fullrange": "on"},
        {"colormatrix": "bt709", "fullrange": "on", "chromaloc": 3},
    ],
    ids=str,
)
def test_what_the_stream_says_of_colours_is_heard(make_clip, colours):
    """swscale hears it too: both ways give the same picture, another way none would."""
    clip = make_clip(num_frames=2, size=STORED, seed=2)
    pictures = decode_h264(clip.video["front"], num_frames=2, size=None, where="v")
    video = dict.fromkeys(clip.meta.cameras, encode(list(pictures), **colours))
    clip = msgspec.structs.replace(clip, video=video)
    one, other = (cut_window(clip, shape, where="w") for shape in (RGB, I420))
    difference = last_pictures(one).astype(float) - last_pictures(other)
    inside = np.abs(difference[:, 3:-3, 3:-3])
    assert inside.mean() < 0.3
    assert inside.max() <= 2


@pytest.mark.parametrize("seed", range(4))
def test_augmented_pictures_and_labels_are_the_same(make_clip, seed):
    clip = make_clip(num_frames=4, size=STORED, seed=seed)
    augmentation = Augmentation(max_zoom=1.6)
    windows = []
    for shape in (RGB, I420):
        rng = np.random.default_rng(seed)
        views = augment_views(base_views(clip, shape), augmentation, rng)
        window = cut_window(clip, shape, where="w", views=views)
        windows.append(augment_window(window, augmentation, rng))
    one, other = windows
    assert isinstance(other.frames, StoredFrames)
    assert other.image_size == one.image_size == (40, 64)
    for field in vars(one):
        if field == "frames":
            continue
        expected, found = getattr(one, field), getattr(other, field)
        if isinstance(expected, np.ndarray):
            np.testing.assert_array_equal(found, expected)
        else:
            assert found == expected, field
    difference = np.abs(last_pictures(one).astype(float) - last_pictures(other))
    # Colours are rounded to bytes before and after they change, in one of them.
    assert difference.mean() < 0.6
    assert np.quantile(difference, 0.999) <= 3


def test_mirrors_are_drawn_in_some_of_those(make_clip):
    clip = make_clip(num_frames=2, size=STORED)
    drawn = {
        augment_window(
            cut_window(clip, I420, where="w"), Augmentation(), np.random.default_rng(seed)
        ).frames.is_mirrored
        for seed in range(4)
    }
    assert drawn == {True, False}


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


@pytest.mark.parametrize("num_workers", [0, 1])
def test_the_network_gets_the_same_input(shards, make_network, num_workers):
    network = make_network()
    loaders = [
        make_module(shards, frames, num_workers=num_workers).train_dataloader()
        for frames in ("rgb", "i420")
    ]
    for one, other in zip(*loaders, strict=True):
        assert isinstance(other.frames, YuvFrames)
        assert other.frames.planes_BTNRW.shape == (2, 2, 2, 144, 128)
        assert other.frames.planes_BTNRW.dtype == torch.uint8
        for name in set(one._fields) - {"frames", "targets"}:
            assert torch.equal(getattr(one, name), getattr(other, name)), name
        expected, found = network._images(one.frames), network._images(other.frames)
        assert found.shape == expected.shape == (8, 3, 16, 32)
        assert found.is_contiguous(memory_format=torch.channels_last)
        grey_levels = 57 * (found - expected).abs()
        assert grey_levels.mean() < 0.6
        assert grey_levels[..., 2:-2, 2:-2].max() < 3  # they differ in what is beyond the picture
    for name, parameter in zip(("rgb", "i420"), (one, other), strict=True):
        outputs = network(parameter)
        assert outputs["path"]["path_BKS2"].isfinite().all(), name


def test_autocast_needs_no_wider_input(shards, make_network):
    network = make_network()
    batch = next(iter(make_module(shards, "i420").val_dataloader()))
    exact = network._images(batch.frames)
    with torch.autocast("cpu", torch.bfloat16):
        found = network._images(batch.frames)
    assert torch.equal(found, exact.bfloat16())


def test_blind_and_shuffled_views(shards, make_network):
    network = make_network()
    module = make_module(shards, "i420")
    views = {
        view: [
            network._images(batch.frames) for batch in ViewedLoader(module.val_dataloader(), view)
        ]
        for view in ("recorded", "camera_blind", "cameras_shuffled")
    }
    black = network._images(torch.zeros(2, 2, 2, 3, 16, 32, dtype=torch.uint8))
    for images in views["camera_blind"]:
        torch.testing.assert_close(images, black)
    recorded, shuffled = (
        torch.cat(views[view]).unflatten(0, (-1, 4)) for view in ("recorded", "cameras_shuffled")
    )
    torch.testing.assert_close(shuffled[1:2], recorded[:1])
    torch.testing.assert_close(shuffled[2:], recorded[1:-1])


def test_rgb_views_are_as_they_were(shards):
    module = make_module(shards, "rgb")
    recorded = [batch.frames for batch in module.val_dataloader()]
    shuffled = [batch.frames for batch in ViewedLoader(module.val_dataloader(), "cameras_shuffled")]
    assert torch.equal(torch.cat(shuffled)[2:], torch.cat(recorded)[1:-1])
    assert torch.equal(shuffled[0][0], recorded[0][1])
    for batch in ViewedLoader(module.val_dataloader(), "camera_blind"):
        assert not batch.frames.any()


def test_a_compiled_network_is_one_graph(shards, make_network):
    network = make_network().eval()
    batch = next(iter(make_module(shards, "i420").val_dataloader()))
    compiled = torch.compile(network, fullgraph=True, backend="aot_eager", dynamic=False)
    with torch.no_grad():
        tree_map(torch.testing.assert_close, compiled(batch), network(batch))


def lens(clip):
    camera = msgspec.structs.replace(
        clip.rig.cameras["rear"], model="opencv", distortion=(-0.1, 0.0, 0.0, 0.0, 0.0)
    )
    return with_rear(clip, camera)


def with_rear(clip, camera, **video):
    cameras = clip.rig.cameras | {"rear": camera}
    rig = msgspec.structs.replace(clip.rig, cameras=cameras)
    return msgspec.structs.replace(clip, rig=rig, video=clip.video | video)


def test_a_lens_that_distorts_is_refused(make_clip, tmp_path):
    write_shards([lens(make_clip(size=STORED))], tmp_path, prefix="s", clips_per_shard=1)
    with pytest.raises(DataError, match=r"rig\.rear: a lens of model opencv .*data\.frames=rgb"):
        make_module(tmp_path, "i420").train_dataloader()
    assert next(iter(make_module(tmp_path, "rgb", batch_size=1).val_dataloader()))


def test_cameras_of_different_sizes_are_refused(make_clip, tmp_path):
    clip, small = make_clip(size=STORED), make_clip(size=(48, 64))
    clip = with_rear(clip, small.rig.cameras["rear"], rear=small.video["rear"])
    write_shards([clip], tmp_path, prefix="s", clips_per_shard=1)
    with pytest.raises(DataError, match=r"front 128x96, rear 64x48.*use data\.frames=rgb"):
        make_module(tmp_path, "i420").train_dataloader()


def test_a_clip_of_another_size_is_a_bad_clip(make_clip, tmp_path):
    sizes = (STORED, STORED, (48, 64), STORED)
    clips = [make_clip(clip_id=f"c{n}", seed=n, size=size) for n, size in enumerate(sizes)]
    write_shards(clips, tmp_path, prefix="s", clips_per_shard=4)
    with pytest.raises(DataError, match=r"'c2': rig: pictures of 64x48 among those of 128x96"):
        list(make_module(tmp_path, "i420").val_dataloader())
    module = make_module(tmp_path, "i420", max_bad_clips=1)
    assert [batch.clip_index_B.tolist() for batch in module.val_dataloader()] == [[0, 1], [-1, 3]]


@pytest.mark.parametrize(
    ("pixels", "colours", "sentence"),
    [
        ("yuv444p", {}, "pictures of format yuv444p"),
        ("yuv420p", {"colormatrix": "bt2020nc"}, "colour matrix 9"),
    ],
)
def test_what_the_op_cannot_convert_is_refused(pictures, pixels, colours, sentence):
    data = encode(pictures, pixels=pixels, **colours)
    with pytest.raises(DataError, match=rf"v: .*{sentence}.*; only data\.frames=rgb"):
        decode_i420(data, num_frames=3, where="v", frames=[0], stored_size=(50, 70))
    assert decode_h264(data, num_frames=3, size=(20, 30), where="v").any()


def test_one_bad_first_clip_does_not_stop_the_others(shards, make_clip, tmp_path):
    clips = [make_clip(clip_id=f"c{n}", seed=n, size=STORED) for n in range(3)]
    write_shards(clips, tmp_path, prefix="s", clips_per_shard=4)
    path = tmp_path / "s-000000.tar"
    data = bytearray(path.read_bytes())
    place = data.index(clips[0].video["front"]) + 50
    data[place] ^= 0x5A
    path.write_bytes(data)
    module = make_module(tmp_path, "i420", max_bad_clips=1)
    assert len(list(module.val_dataloader())) == 2
