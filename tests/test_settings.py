"""Settings: a wrong value is one sentence with the field's name; a stranger's class stays shut."""

import dataclasses
import re
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hydra.errors import HydraException
from omegaconf import OmegaConf

from fsdtrain.build import build_network
from fsdtrain.data.geometry import BevGrid
from fsdtrain.errors import UserError
from fsdtrain.heads.head import Head
from fsdtrain.hydra_app import compose_config
from fsdtrain.models.hydra_bev import HydraBev
from fsdtrain.ops.table import OpTable
from fsdtrain.settings import (
    ModelSettings,
    Settings,
    instantiate,
    read_compare_settings,
    read_settings,
)


def settings(*overrides: str, command: str = "fit") -> Settings:
    return read_settings(compose_config(command, ["run_dir=.", *overrides]))


def refusal(*overrides: str) -> str:
    with pytest.raises(UserError) as caught:
        settings(*overrides)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_the_shipped_configuration_is_plain_values() -> None:
    def leaves(value: object) -> Iterator[object]:
        if isinstance(value, dict):
            for inner in value.values():
                yield from leaves(inner)
        elif isinstance(value, list | tuple):
            for inner in value:
                yield from leaves(inner)
        elif hasattr(value, "__struct_fields__"):
            for name in value.__struct_fields__:
                yield from leaves(getattr(value, name))
        else:
            yield value

    found = settings()
    assert {type(leaf) for leaf in leaves(found)} <= {
        int,
        float,
        str,
        bool,
        type(None),
        type(Path()),
    }
    assert found.model.image_size == tuple(compose_config("fit", ["run_dir=."]).model.image_size)
    assert found.backend_options == {
        key: value for key, value in found.backend.items() if key != "name"
    }


@pytest.mark.parametrize(
    ("override", "options"),
    [
        ("model.lift=steerable", ("deformable", "depth_splat", "project_sample")),
        ("backend.machine=d9_tile", ("d1_die", "d1_tile", "h100")),
        ("backend.recipe=fp3", ("bf16", "cfp8")),
    ],
)
def test_an_unknown_option_of_a_nested_group_lists_those_there_are(
    override: str, options: tuple[str, ...]
) -> None:
    with pytest.raises(HydraException) as caught:
        settings("backend=dojo", override)
    assert all(option in str(caught.value) for option in options)


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (("a=tpu",), "neither an installed backend (cpu, cuda, dojo) nor a folder"),
        (("a=FOLDER",), "one of a and b is a folder"),
        (("num_seeds=-1",), "num_seeds=-1: must be at least 0"),
        (("margin=0",), "margin=0.0: must be positive"),
        (("resume=last",), "resume"),
        (("numerics=false", "performance=false"), "nothing to compare"),
        (("numerics=false", "bisect=true"), "numerics=true"),
    ],
)
def test_compare_refuses_what_cannot_be_compared(
    overrides: tuple[str, ...], sentence: str, tmp_path: Path
) -> None:
    given = [each.replace("FOLDER", str(tmp_path)) for each in overrides]
    with pytest.raises(UserError, match=re.escape(sentence)):
        read_compare_settings(compose_config("compare", ["run_dir=.", *given]))


def test_the_sides_of_a_comparison_are_backends_or_folders(tmp_path: Path) -> None:
    folder = tmp_path / "a b=c"
    folder.mkdir()
    found = read_compare_settings(
        compose_config("compare", ["run_dir=.", f"a={folder}", f"b={tmp_path}"])
    )
    assert (found.a_dir, found.b_dir) == (folder, tmp_path)
    live = read_compare_settings(
        compose_config(
            "compare", ["run_dir=.", "a=dojo", "a.recipe=cfp8", "a.machine=d1_die", "b=cpu"]
        )
    )
    assert live.a["recipe"]["activation"]["format"] == "cfloat8_1_4_3"
    assert live.a["machine"]["name"] == "d1_die"
    assert live.b["name"] == "cpu"


def test_validate_reads_the_same_settings() -> None:
    assert settings(command="validate") == settings()


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        # The wrong type: the path of the field.
        ("training.max_steps=abc", r"int.*training\.max_steps"),
        ("training.max_steps=1.5", r"int.*training\.max_steps"),
        ("training.max_steps=null", r"int.*training\.max_steps"),
        ("training.learning_rate=fast", r"float.*training\.learning_rate"),
        ("training.schedule=linear", r"linear.*training\.schedule"),
        ("training.monitor_mode=best", r"training\.monitor_mode"),
        ("training.ema_decay=yes", r"training\.ema_decay"),
        ("data.source=cloud", r"data\.source"),
        ("data.cameras=front", r"data\.cameras"),
        ("data.batch_size=[1,2]", r"data\.batch_size"),
        ("model.image_size=[48]", r"model\.image_size"),
        ("model.image_size=[48,96,3]", r"model\.image_size"),
        ("model.grid.cell_m=small", r"model\.grid\.cell_m"),
        ("model.heads=vehicle", r"model\.heads"),
        ("model.network=3", r"model\.network"),
        ("model.pillars.heights_m=[]", r"model\.pillars\.heights_m=.*at least one"),
        ("model.pillars.max_views=0", r"model\.pillars\.max_views=0: .*at least 1"),
        ("backend.name=null", r"backend\.name"),
        ("resume=first", r"resume"),
        ("seed=one", r"seed"),
        ("num_report_clips=many", r"num_report_clips"),
        # The wrong value: what is allowed.
        ("training.max_steps=-3", r"training\.max_steps=-3: .*at least 1"),
        ("training.max_steps=0", r"training\.max_steps=0: .*at least 1"),
        ("training.learning_rate=0", r"training\.learning_rate=0.*positive"),
        ("training.learning_rate=nan", r"training\.learning_rate=nan.*positive"),
        ("training.warmup_fraction=1", r"training\.warmup_fraction=1"),
        ("training.warmup_fraction=-0.1", r"training\.warmup_fraction=-0.1"),
        ("training.ema_decay=1", r"training\.ema_decay=1.*null"),
        ("training.ema_decay=0", r"training\.ema_decay=0.*null"),
        ("training.weight_decay=-1", r"training\.weight_decay=-1"),
        ("training.gradient_clip_norm=-1", r"training\.gradient_clip_norm=-1.*null"),
        ("training.gradient_clip_norm=0", r"training\.gradient_clip_norm=0.*null"),
        ("training.accumulate_batches=0", r"training\.accumulate_batches=0"),
        ("training.validate_every_steps=0", r"training\.validate_every_steps=0"),
        ("training.log_every_steps=0", r"training\.log_every_steps=0"),
        ("training.early_stop_patience=0", r"training\.early_stop_patience=0.*null"),
        ("data.batch_size=0", r"data\.batch_size=0"),
        ("data.num_workers=-1", r"data\.num_workers=-1"),
        ("data.max_bad_clips=-1", r"data\.max_bad_clips=-1"),
        ("data.frame_stride=0", r"data\.frame_stride=0"),
        ("data.crop_top=1", r"data\.crop_top=1"),
        ("data.crop_bottom=-0.5", r"data\.crop_bottom=-0.5"),
        ("data.cameras=[]", r"data\.cameras"),
        ("model.image_size=[0,96]", r"model\.image_size=.*0"),
        ("model.num_frames=0", r"model\.num_frames=0"),
        ("model.grid.cell_m=0", r"model\.grid: .*cells of 0"),
        ("model.grid.cell_m=0.7", r"model\.grid: .*whole number of cells of 0.7 m"),
        ("model.grid.x_max_m=-100", r"model\.grid: x from .* to -100"),
        ("seed=-1", r"seed=-1"),
        ("num_report_clips=-1", r"num_report_clips=-1"),
    ],
)
def test_a_wrong_value_is_one_sentence_that_names_the_field(override: str, sentence: str) -> None:
    assert re.search(sentence, refusal(override)), refusal(override)


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (("data=shards",), "data.train"),
        (("data=shards", "data.train=/somewhere"), "data.val"),
        (("data.source=shards",), "data.train=<folder or shard>"),
        (("data.fleet=null",), "data.fleet"),
        (("ckpt_path=a.ckpt", "resume=last"), "not both"),
        (("~backend.name",), "backend.name is missing"),
        (("~model.heads.vehicle", "~model.heads.path"), "model.heads={}: must be at least one"),
        (("data.crop_top=0.6", "data.crop_bottom=0.5"), "data.crop_top"),
    ],
)
def test_what_does_not_go_together_is_one_sentence(
    overrides: tuple[str, ...], sentence: str
) -> None:
    assert sentence in refusal(*overrides)


@pytest.mark.parametrize(
    "override",
    ["+training.max_step=3", "+data.batchsize=2", "+model.depth=3", "+seeds=1", "+model.grid.z=1"],
)
def test_an_unknown_key_is_named(override: str) -> None:
    name = override[1:].split("=")[0].split(".")[-1]
    assert f"`{name}`" in refusal(override)


def test_null_turns_the_optional_parts_off() -> None:
    found = settings(
        "training.ema_decay=null",
        "training.gradient_clip_norm=null",
        "data.augmentation=null",
        "data.cameras=[front,rear]",
    )
    assert found.training.ema_decay is None
    assert found.training.gradient_clip_norm is None
    assert found.data.augmentation is None
    assert found.data.cameras == ("front", "rear")


def test_paths_may_begin_at_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/driver")
    assert settings("ckpt_path='~/last.ckpt'").ckpt_path == Path("/home/driver/last.ckpt")


def test_a_missing_value_is_named() -> None:
    config = compose_config("fit", ["run_dir=."])
    OmegaConf.update(config, "training.learning_rate", "???")
    with pytest.raises(UserError, match=r"a value is needed for training\.learning_rate"):
        read_settings(config)


# --- classes that a config names -------------------------------------------------------------

GRID = BevGrid(x_min_m=-8.0, x_max_m=8.0, y_min_m=-8.0, y_max_m=8.0, cell_m=1.0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Engine:
    cylinders: int
    fuel: str = "petrol"
    stroke_mm: tuple[float, ...] = (80.0,)

    def __post_init__(self) -> None:
        if self.cylinders < 1:
            raise ValueError(f"cylinders={self.cylinders}: must be at least 1")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Turbine(Engine):
    stages: int = 3


class Untouchable:
    """Whoever makes one has called what must not be called."""

    def __init__(self, **options: object) -> None:
        raise AssertionError("called")


def target(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    """pytest does not register this file as a module; a config can name only what is one."""
    monkeypatch.setitem(sys.modules, __name__, sys.modules.get(__name__) or _this_module())


def _this_module() -> Any:
    module = types.ModuleType(__name__)
    module.__dict__.update(globals())
    return module


def test_builds_the_named_class_with_its_options() -> None:
    options = {"_target_": target(Turbine), "stages": 5, "fuel": "kerosene"}
    assert instantiate(options, Engine, cylinders=8) == Turbine(
        cylinders=8, stages=5, fuel="kerosene"
    )
    assert options["_target_"], "the settings stay as they were"


@pytest.mark.parametrize(
    "name",
    [
        "os.system",
        "os._exit",
        "builtins.eval",
        "builtins.exec",
        "builtins.__import__",
        "subprocess.Popen",
        "subprocess.run",
        "shutil.rmtree",
        "pathlib.Path",
        "functools.partial",
        "torch.load",
        "pickle.Unpickler",
        "torch.nn.Module",
        "fsdtrain.settings.instantiate",
        "fsdtrain.models.hydra_bev.HydraBev.forward",
        "fsdtrain.heads",
    ],
)
def test_what_is_no_such_class_is_refused_and_never_called(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Arguments that would leave a trace if any of these were called."""
    marker = tmp_path / "called"
    monkeypatch.chdir(tmp_path)
    options = {"_target_": name, "command": f"touch {marker}", "args": ["touch", str(marker)]}
    with pytest.raises(UserError, match=f"_target_={name}") as caught:
        instantiate(options, Head, grid=GRID)
    assert "\n" not in str(caught.value)
    assert not marker.exists()


def test_a_class_of_another_kind_is_not_made() -> None:
    with pytest.raises(UserError, match=r"is not a .*Engine"):
        instantiate({"_target_": target(Untouchable)}, Engine)


def test_the_settings_themselves_name_no_class_to_import() -> None:
    """Reading settings imports nothing: the class is looked up where it is built."""
    name = "antigravity"
    assert name not in sys.modules
    settings(f"model.network._target_={name}.fly")
    assert name not in sys.modules


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("fsdtrain.heads.no_such_file.Head", "no such class"),
        ("fsdtrain.heads.head.NoSuchHead", "no such class"),
        ("no_such_package.Head", "no such class"),
        ("Head", "no such class"),
        ("", "no such class"),
        ("..", "no such class"),
        ("a b", "no such class"),
        (3, "_target_ is missing"),
        (None, "_target_ is missing"),
    ],
)
def test_a_class_that_is_not_there_is_one_sentence(name: object, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence) as caught:
        instantiate({"_target_": name}, Head)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"cylinders": 4, "wings": 2}, "wings"),
        ({}, "cylinders"),
        ({"cylinders": "four"}, r"cylinders.*int"),
        ({"cylinders": 4, "fuel": 3}, r"fuel.*str"),
        ({"cylinders": 4, "stroke_mm": ["long"]}, r"stroke_mm.*float"),
        ({"cylinders": 0}, "cylinders=0: must be at least 1"),
    ],
)
def test_options_that_do_not_fit_are_one_sentence(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence) as caught:
        instantiate({"_target_": target(Engine), **options}, Engine)
    assert target(Engine) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("model.network.stage_channels=3", "stage_channels"),
        ("model.network.stage_channels=[a,b]", "stage_channels"),
        ("model.network.stem_stride=3", "stem_stride=3"),
        ("model.lift.max_views=two", "max_views"),
        ("model.image_size=[47,96]", "image_size"),
        ("+model.network.depth=3", "depth"),
        ("~model.lift.max_views", "max_views"),
        ("model.lift._target_=fsdtrain.models.memory.BevMemory", "Lift"),
        ("model.heads.path.hidden=wide", "hidden"),
        ("+model.heads.vehicle.colour=red", "colour"),
    ],
)
def test_a_network_that_cannot_be_built_is_one_sentence(override: str, sentence: str) -> None:
    model = settings(override).model
    with pytest.raises(UserError, match=sentence) as caught:
        build(model)
    assert "\n" not in str(caught.value)


def build(model: ModelSettings) -> HydraBev:
    return build_network(model, OpTable())
