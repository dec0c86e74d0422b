"""Fleets out of files: the shipped ones hold together, wrong ones get a sentence."""

from pathlib import Path

import pytest
from fsdtrain_dojo.machine.catalog import read_machine
from fsdtrain_dojo.machine.totals import totals

from fsdtrain.errors import UserError
from fsdtrain.planning.fleet import ASSUMPTIONS, unit_of
from fsdtrain.planning.fleet_file import fleet_names, parse_fleet, read_fleet

SMALL = """
name: mine
summary: two boxes
machine: null
devices_per_node: 4
levels:
  - {name: bus, num_devices: 4, latency_us: 2, bandwidth_gb_per_s: 1e2}
  - {name: cable, num_devices: null, latency_us: 0, bandwidth_gb_per_s: 12.5}
device_watts: 300
pue: 1.4
"""
MACHINES = "a100 d1_tile d1_tray d2_wafer exapod h100 h200 mi300x".split()


def test_the_shipped_fleets_are_those_of_the_machines() -> None:
    assert list(fleet_names()) == MACHINES


@pytest.mark.parametrize("name", MACHINES)
def test_a_shipped_fleet_knows_all_but_prices(name: str) -> None:
    fleet = read_fleet(name)
    assert fleet.name == fleet.machine == name
    assert fleet.missing() == ()
    assert fleet.device_price_per_hour is None
    for key, figure in fleet.figures().items():
        assert figure.source, key
        assert figure.confidence not in ASSUMPTIONS or figure.low is not None, key
        assert unit_of(key)[1] > 0


@pytest.mark.parametrize("name", MACHINES)
def test_device_and_network_are_those_of_the_modelled_machine(name: str) -> None:
    """What backend dojo says of the same machine, where it says so."""
    fleet, machine = read_fleet(name), read_machine(name)
    assert fleet.device_watts is not None
    assert fleet.device_watts.value == pytest.approx(machine.power.limit_watts)
    network = totals(machine).network_bytes_per_s
    first, last = fleet.levels[0].bandwidth_gb_per_s, fleet.levels[-1].bandwidth_gb_per_s
    if name in ("d1_tray", "exapod"):
        assert last.value * 1e9 == pytest.approx(network)
    elif name == "d1_tile":
        tray = totals(read_machine("d1_tray")).network_bytes_per_s
        assert last.value * 1e9 * 6 == pytest.approx(tray, rel=1e-3)
    elif name != "d2_wafer":
        assert first.value * 1e9 < network <= 1.01e9 * (first.high or 0)


def test_a_users_own_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(SMALL)
    fleet = read_fleet(str(path), {"device_price_per_hour": 2.5})
    assert fleet.levels[0].bytes_per_s == 100e9
    assert fleet.levels[0].alpha_s == pytest.approx(2e-6)
    assert fleet.si("device_price_per_hour") == pytest.approx(2.5 / 3600)
    assert fleet.si("restart_s") is None
    assert fleet.figures()["device_watts"].confidence == "given"
    assert "restart_s" in fleet.missing()


def test_a_given_value_remembers_what_the_file_had() -> None:
    figure = read_fleet("h100", {"restart_s": 60}).restart_s
    assert figure is not None
    assert (figure.value, figure.confidence, figure.low) == (60.0, "given", None)
    assert "file: 300" in figure.source


def test_one_figure_changes_in_a_fleet_or_its_network() -> None:
    fleet = read_fleet("h100")
    slow = fleet.with_figure("InfiniBand bandwidth_gb_per_s", 1.0)
    assert slow.levels[1].bytes_per_s == 1e9
    assert slow.levels[0] == fleet.levels[0]
    assert fleet.with_figure("restart_s", 7.0).si("restart_s") == 7.0


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (("name: mine", "name: ''"), "name is empty"),
        (("devices_per_node: 4", "devices_per_node: 0"), "devices_per_node=0: must be at least 1"),
        (("pue: 1.4", "pue: 0.4"), "pue=0.4: must be at least 1"),
        (("device_watts: 300", "device_watts: -3"), "device_watts=-3: must be finite and above 0"),
        (("device_watts: 300", "device_watts: .nan"), "device_watts=nan: must be finite"),
        (("device_watts: 300", "watts: 300"), "unknown field `watts`"),
        (("device_watts: 300", "device_watts: many"), "float"),
        (("device_watts: 300", "device_watts: {value: 3}"), "missing required field `source`"),
        (("num_devices: 4,", "num_devices: 1,"), "level bus joins 1 devices"),
        (("num_devices: null", "num_devices: 8"), "the last network has to join all"),
        (("devices_per_node: 4", "devices_per_node: 3"), "does not fit to the networks"),
        (("name: cable", "name: bus"), "two levels have the same name"),
        (("levels:", "levels: ["), "parsing"),
        (
            ("pue: 1.4", "pue: {value: 1.4, source: x, confidence: sure}"),
            "Invalid enum value 'sure'",
        ),
        (
            ("pue: 1.4", "pue: {value: 1.4, source: x, confidence: press, low: 2, high: 3}"),
            "pue=1.4 does not lie between its low 2 and its high 3",
        ),
        (
            ("pue: 1.4", "pue: {value: 1.4, source: x, confidence: press, low: 1}"),
            "give both low and high, or neither",
        ),
    ],
)
def test_a_wrong_file_gets_a_sentence(change: tuple[str, str], sentence: str) -> None:
    text = SMALL.replace(*change)
    assert text != SMALL
    with pytest.raises(UserError, match="^fleet mine.yaml: ") as caught:
        parse_fleet(text.encode(), where="mine.yaml")
    assert sentence in str(caught.value)


def test_an_unknown_fleet_lists_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"fleet 'b200': no such fleet; there are a100, d1_tile"):
        read_fleet("b200")
    with pytest.raises(UserError, match="cannot be read: No such file"):
        read_fleet(str(tmp_path / "none.yaml"))
    with pytest.raises(UserError, match="has no figure 'watts'; there are device_watts"):
        read_fleet("h100", {"watts": 3})
    with pytest.raises(UserError, match="restart_s=-1: must be finite and at least 0"):
        read_fleet("h100", {"restart_s": -1})
