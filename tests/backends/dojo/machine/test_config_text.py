"""Every machine as a Hydra group: in step with its preset, and each of its constants a knob."""

import math

import pytest
from fsdtrain_dojo.machine.catalog import PRESETS, read_machine
from fsdtrain_dojo.machine.config_text import config_text
from omegaconf import OmegaConf

from fsdtrain.__main__ import main
from fsdtrain.hydra_app import compose_config
from fsdtrain.paths import config_dir

FOLDER = config_dir() / "backend" / "machine"


def composed(*overrides):
    config = compose_config("profile", ["run_dir=.", "backend=dojo", *overrides])
    return read_machine(OmegaConf.to_container(config.backend.machine))


def test_there_is_a_file_for_every_machine():
    assert {path.stem for path in FOLDER.glob("*.yaml")} == set(PRESETS)


@pytest.mark.parametrize("name", PRESETS)
def test_the_file_is_in_step_with_the_preset(name):
    text = (FOLDER / f"{name}.yaml").read_text()
    assert text == config_text(PRESETS[name]), "run tools/write_machine_configs.py"
    assert set(OmegaConf.create(text)) == {"name", *PRESETS[name].constants}


@pytest.mark.parametrize("name", PRESETS)
def test_a_machine_is_chosen_in_either_way(name):
    assert composed(f"backend/machine={name}") == composed(f"backend.machine={name}")
    assert composed(f"backend.machine={name}") == read_machine(name)


def test_the_default_is_a_tile():
    assert composed() == read_machine("d1_tile")


@pytest.mark.parametrize("name", PRESETS)
def test_every_constant_is_a_knob_without_a_plus(name):
    values = {
        knob: constant.high if constant.high is not None else constant.value
        for knob, constant in PRESETS[name].constants.items()
    }
    overrides = [f"backend.machine.{knob}={value!r}" for knob, value in values.items()]
    # One by one they are tried in test_catalog; here, that all of them are there.
    config = compose_config(
        "profile", ["run_dir=.", "backend=dojo", f"backend.machine={name}", *overrides]
    )
    found = OmegaConf.to_container(config.backend.machine)
    assert all(math.isclose(found[knob], value) for knob, value in values.items())


def test_the_comment_says_what_stands_behind_null():
    text = (FOLDER / "d1_tile.yaml").read_text()
    assert "\nclock_ghz: null # 2 GHz, attributed\n" in text
    assert "\nnum_accumulators: null # 4, assumed, 1 to 16\n" in text


@pytest.mark.usefixtures("a_process_of_its_own")
@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["backend.machine.die_crossing_ns=fast"], ["die_crossing_ns='fast'", "number in ns"]),
        (["backend.machine.die_crosing_ns=1"], ["Could not override", "die_crosing_ns"]),
        (["+backend.machine.die_crosing_ns=1"], ["did you mean die_crossing_ns"]),
        (["backend.machine=d3_die"], ["d3_die", "Available options", "d1_node"]),
        (["backend/machine=d3_die"], ["d3_die", "Available options", "d1_tile"]),
        (
            ["backend.machine=a100", "+backend.machine.die_crossing_ns=1"],
            ["machine a100 has no such constant"],
        ),
    ],
)
def test_a_wrong_machine_is_one_sentence(overrides, words, capsys, tmp_path):
    assert main(["profile", f"run_dir={tmp_path}", "backend=dojo", *overrides]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if "INFO" not in line]
    assert len(lines) == 1
    assert all(word in lines[0] for word in words), lines[0]
