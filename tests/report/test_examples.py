from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fsdtrain.data.collate import Sample
from fsdtrain.data.datamodule import FleetDataModule
from fsdtrain.data.shard import write_shards
from fsdtrain.data.stream import load_window
from fsdtrain.engine.module import DrivingModule
from fsdtrain.engine.step import TrainingStep
from fsdtrain.errors import UserError
from fsdtrain.report.examples import draw_examples, predict_examples


@pytest.fixture
def module(make_network: Callable, make_training: Callable) -> DrivingModule:
    return DrivingModule(TrainingStep(make_network()), make_training())


@pytest.fixture
def make_datamodule(
    make_clip: Callable, module: DrivingModule, tmp_path: Path
) -> Callable[..., FleetDataModule]:
    def make(*, batch_size: int = 2, **clip_changes: object) -> FleetDataModule:
        clips = [make_clip(clip_id=f"clip-{number}", **clip_changes) for number in range(3)]
        write_shards(clips, tmp_path / "val", prefix="val", clips_per_shard=2)
        return FleetDataModule(
            train=None,
            val=str(tmp_path / "val"),
            image_size=module.step.network.image_size,
            num_frames=2,
            batch_size=batch_size,
            max_bad_clips=1,
            target_builders=[head.target_builder() for _, head in module.heads()],
        )

    return make


def test_clips_spread_over_the_set_are_drawn(
    module: DrivingModule, make_datamodule: Callable[..., FleetDataModule], tmp_path: Path
) -> None:
    folder = tmp_path / "run" / "pictures"
    paths = draw_examples(module, make_datamodule(), folder, num_clips=2)
    assert [path.name for path in paths] == ["clip-0.png", "clip-2.png"]
    assert sorted(folder.iterdir()) == paths
    for path in paths:
        with Image.open(path) as image:
            assert image.width > 700


def test_no_more_clips_than_there_are(
    module: DrivingModule, make_datamodule: Callable[..., FleetDataModule], tmp_path: Path
) -> None:
    datamodule = make_datamodule()
    assert len(draw_examples(module, datamodule, tmp_path / "p", num_clips=50)) == 3
    assert draw_examples(module, datamodule, tmp_path / "q", num_clips=0) == []


def test_what_is_drawn_is_what_the_model_says_of_that_clip(
    module: DrivingModule, make_datamodule: Callable[..., FleetDataModule]
) -> None:
    datamodule = make_datamodule(batch_size=3)
    plan = datamodule.val_dataloader().plan
    samples = []
    for index in (2, 0):
        window = load_window(plan, index, np.random.default_rng(0))
        targets = {}
        for build in plan.target_builders:
            targets.update(build(window))
        samples.append(Sample(window=window, targets=targets, clip_index=index))
    module.train()
    examples = predict_examples(module, samples, plan)
    assert module.training, "left as it was"
    assert [example.clip_id for example in examples] == ["clip-2", "clip-0"]

    module.eval()
    # The loader's own batch is the reference.
    with torch.no_grad():
        (batch,) = datamodule.val_dataloader()
        output = module.step(batch)
    for example, row in zip(examples, [2, 0], strict=True):
        assert (
            example.boxes
            == load_window(plan, int(batch.clip_index_B[row]), np.random.default_rng(0)).boxes[-1]
        )
        logits = output.outputs["vehicle"]["logits_BTXY"][row, -1].double().numpy()
        np.testing.assert_allclose(
            example.vehicle_probability_XY, 1 / (1 + np.exp(-logits)), rtol=1e-4, atol=1e-6
        )
        assert example.vehicle_truth_XY is not None
        cover = batch.targets["vehicle_cover"][row, -1].numpy()
        np.testing.assert_array_equal(example.vehicle_truth_XY, (cover > 1) & (cover != 255))
        paths = output.outputs["path"]["path_BKS2"][row].numpy()
        np.testing.assert_allclose(example.path_prediction_KS2, paths, rtol=1e-4, atol=1e-5)
        assert example.path_mode_probability_K is not None
        assert example.path_mode_probability_K.sum() == pytest.approx(1)
        # 10 m/s, as the fixture drives.
        np.testing.assert_allclose(
            example.path_constant_velocity_S2, [[5, 0], [10, 0], [15, 0], [20, 0]], rtol=1e-5
        )


def test_clips_without_labels_or_ego_motion_are_drawn(
    module: DrivingModule, make_datamodule: Callable[..., FleetDataModule], tmp_path: Path
) -> None:
    datamodule = make_datamodule(has_ego_motion=False, annotations=())
    assert len(draw_examples(module, datamodule, tmp_path / "pictures", num_clips=1)) == 1


def test_a_clip_that_cannot_be_read_is_left_out_and_logged(
    module: DrivingModule,
    make_datamodule: Callable[..., FleetDataModule],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    datamodule = make_datamodule()
    located = datamodule.catalog("val").clips[0]
    member = next(one for one in located.entry.members if one.name.endswith(".h264"))
    with Path(located.shard).open("r+b") as shard:
        shard.seek(member.offset)
        shard.write(b"\xff" * 16)
    paths = draw_examples(module, datamodule, tmp_path / "pictures", num_clips=3)
    assert [path.stem for path in paths] == ["clip-1", "clip-2"]
    assert "clip-0" in caplog.text


def test_a_folder_that_cannot_be_made_is_a_user_error(
    module: DrivingModule, make_datamodule: Callable[..., FleetDataModule], tmp_path: Path
) -> None:
    (tmp_path / "pictures").write_text("a file")
    with pytest.raises(UserError, match="cannot write"):
        draw_examples(module, make_datamodule(), tmp_path / "pictures", num_clips=1)
