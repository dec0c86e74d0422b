"""Every shipped YAML is composed, read and bound to what it names; a new knob breaks a list."""

import dataclasses
import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from omegaconf import DictConfig, OmegaConf

from fsdtrain.backend import installed_backends
from fsdtrain.data.augment import Augmentation
from fsdtrain.data.synthetic.fleet import SyntheticFleet
from fsdtrain.hydra_app import compose_config
from fsdtrain.paths import config_dir
from fsdtrain.planning.fleet_file import fleet_names
from fsdtrain.settings import (
    Settings,
    _find_class,
    read_compare_settings,
    read_plan_settings,
    read_profile_settings,
    read_settings,
)

COMMANDS = ("fit", "validate", "profile")
SIDED = ("backend", "backend/machine", "backend/recipe")  # groups that `compare` has twice
GROUPS = (
    "backend", "backend/machine", "backend/recipe", "data", "experiment", "model", "model/lift",
    "training",
)  # fmt: skip
FILES = sorted(config_dir().rglob("*.yaml"))
OPTIONS = [
    (group, path.stem)
    for path in FILES
    if (group := path.parent.relative_to(config_dir()).as_posix()) in GROUPS
]
# What `build_network` adds to the options of the config.
GIVEN = {
    "network": ("grid", "image_size", "heads", "make_lift", "ops"),
    "lift": ("grid", "ops", "in_channels", "out_channels"),
    "heads": ("grid",),
}

# Adding a knob is a decision: it has a default that works, one owner and a comment with its unit.
KNOBS = {
    "": "ckpt_path num_report_clips resume run_dir seed",
    "backend": "devices name precision",
    "data": (
        "augmentation batch_size cameras crop_bottom crop_top fleet frame_stride frames "
        "max_bad_clips num_workers source train val"
    ),
    "model": "heads image_size lift network num_frames",
    "model.grid": "cell_m x_max_m x_min_m y_max_m y_min_m",
    "model.pillars": "heights_m max_views",
    "training": (
        "accumulate_batches early_stop_patience ema_decay gradient_clip_norm "
        "learning_rate log_every_steps max_steps monitor monitor_mode schedule "
        "validate_every_steps warmup_fraction weight_decay"
    ),
}
PROFILE_KNOBS = {**KNOBS, "": "ckpt_path explain num_report_clips page resume run_dir seed trace"}
# Options of classes: whoever owns the class owns them.
LEAVES = ("data.augmentation", "data.fleet", "model.heads", "model.lift", "model.network")


def compose(command: str, *overrides: str) -> DictConfig:
    """Composed, with a word in the place of what the user has to give."""
    needs_dojo = any(override.startswith("backend/") for override in overrides)
    backend = ["backend=dojo"] if needs_dojo else []
    config = compose_config(command, ["run_dir=.", *backend, *overrides])
    if config.data.source == "shards":
        config.data.train = config.data.val = "given"
    return config


def test_every_file_belongs_to_a_group_that_is_tested() -> None:
    others = {str(path.relative_to(config_dir())) for path in FILES} - {
        f"{group}/{option}.yaml" for group, option in OPTIONS
    }
    # No part of a configuration: tests/planning reads them all.
    others -= {f"fleet/{name}.yaml" for name in fleet_names()}
    # These are composed with every one of the others.
    assert others == {
        "compare.yaml",
        "fit.yaml",
        "plan.yaml",
        "validate.yaml",
        "profile.yaml",
        "run.yaml",
        "hydra/hydra_logging/fsdtrain.yaml",
        "hydra/job_logging/fsdtrain.yaml",
    }


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(("group", "option"), OPTIONS)
def test_every_option_composes_and_reads(group: str, option: str, command: str) -> None:
    read = read_profile_settings if command == "profile" else read_settings
    settings = read(compose(command, f"{group}={option}"))
    assert isinstance(settings, Settings)


@pytest.mark.parametrize("side", ["a", "b"])
@pytest.mark.parametrize(("group", "option"), OPTIONS)
def test_every_option_composes_on_both_sides_of_a_comparison(
    group: str, option: str, side: str
) -> None:
    package = group.replace("backend", side).replace("/", ".")
    override = f"{package}={option}" if group in SIDED else f"{group}={option}"
    needs_dojo = group in SIDED[1:]
    config = compose_config(
        "compare", ["run_dir=.", *([f"{side}=dojo"] if needs_dojo else []), override]
    )
    if config.data.source == "shards":
        config.data.train = config.data.val = "given"
    settings = read_compare_settings(config)
    if group == "backend":
        assert (settings.a if side == "a" else settings.b)["name"] == option


@pytest.mark.parametrize("option", [name for group, name in OPTIONS if group == "experiment"])
def test_an_experiment_changes_something_and_adds_no_knob(option: str) -> None:
    plain, changed = compose("fit"), compose("fit", f"experiment={option}")
    assert changed != plain
    assert set(knobs(changed)) == set(knobs(plain))


def classes(config: DictConfig) -> Iterator[tuple[str, type, dict[str, Any], tuple[str, ...]]]:
    """(where, class, options in the config, options that the code adds) of every `_target_`."""
    plain: Any = OmegaConf.to_container(config, resolve=True)
    places = {
        "network": plain["model"]["network"],
        "lift": plain["model"]["lift"],
        "fleet": plain["data"]["fleet"],
        "augmentation": plain["data"]["augmentation"],
        **{f"heads.{name}": options for name, options in plain["model"]["heads"].items()},
    }
    for where, options in places.items():
        if options is not None:
            arguments = dict(options)
            found = _find_class(arguments.pop("_target_"))
            yield where, found, arguments, GIVEN.get(where.partition(".")[0], ())


@pytest.mark.parametrize(("group", "option"), OPTIONS)
def test_named_classes_take_their_options(group: str, option: str) -> None:
    for where, found, options, given in classes(compose("fit", f"{group}={option}")):
        try:
            inspect.signature(found).bind(**options, **dict.fromkeys(given))
        except TypeError as error:
            pytest.fail(f"{where}: {found.__qualname__}: {error}")


@pytest.mark.parametrize(
    ("knob", "kind"), [("fleet", SyntheticFleet), ("augmentation", Augmentation)]
)
def test_all_options_of_the_data_can_be_seen_and_are_the_defaults(knob: str, kind: Any) -> None:
    """Hydra overrides what stands in the YAML; the class's own defaults serve its other users."""
    options = dict(compose("fit").data[knob])
    assert options.pop("_target_") == f"{kind.__module__}.{kind.__qualname__}"
    assert options == dataclasses.asdict(kind())


@pytest.mark.parametrize("name", list(installed_backends()))
def test_a_backends_group_names_its_options(name: str) -> None:
    entry = installed_backends()[name]
    assert entry.backend_class is not None
    options: Any = OmegaConf.to_container(compose("fit", f"backend={name}").backend)
    assert options.pop("name") == name
    signature = inspect.signature(entry.backend_class)
    signature.bind(**options)
    assert set(options) == set(signature.parameters), "every option stands in the YAML"


def knobs(node: DictConfig, prefix: str = "") -> Iterator[str]:
    for name in node:
        path = f"{prefix}{name!s}"
        value = None if path == "run_dir" else node[name]
        if isinstance(value, DictConfig) and path not in LEAVES:
            yield from knobs(value, f"{path}.")
        else:
            yield path


@pytest.mark.parametrize("command", COMMANDS)
def test_a_new_knob_breaks_this_list(command: str) -> None:
    found: dict[str, list[str]] = {}
    for knob in sorted(knobs(compose(command))):
        group, _, name = knob.rpartition(".")
        found.setdefault(group, []).append(name)
    expected = PROFILE_KNOBS if command == "profile" else KNOBS
    assert {group: " ".join(names) for group, names in found.items()} == expected


def test_a_new_knob_of_compare_breaks_this_list() -> None:
    config = compose_config("compare", ["run_dir=."])
    found = [knob for knob in sorted(knobs(config)) if "." not in knob]
    assert " ".join(found) == (
        "a_dir allow b_dir bisect ckpt_path margin metric num_report_clips num_seeds numerics page "
        "performance repro resume run_dir seed target_loss trace tune"
    )
    assert set(config.a) == set(compose("fit", "backend=cpu").backend)
    assert set(config.b) == set(compose("fit", "backend=dojo").backend)


def test_a_new_knob_of_plan_breaks_this_list() -> None:
    config = compose_config("plan", ["run_dir=."])
    assert isinstance(read_plan_settings(config), Settings)
    found = set(knobs(config)) - set(knobs(compose("fit", "backend=dojo")))
    assert " ".join(sorted(found)) == (
        "budget currency figures fleets max_devices max_global_batch mixed num_epochs num_samples "
        "page press profiles target_days"
    )


def test_the_configs_are_those_of_this_checkout() -> None:
    assert config_dir() == Path(__file__).resolve().parent.parent / "configs"


def test_presets_are_ordered_by_size() -> None:
    def width(option: str) -> int:
        channels: Any = compose("fit", f"model={option}").model.network.stage_channels
        return sum(channels)

    assert width("tiny") < width("small") < width("base")
