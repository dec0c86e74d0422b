"""Fleets out of files: the shipped ones by name, a user's own by path, checked with sentences.

It does not know what the figures are used for.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from fsdtrain.errors import UserError
from fsdtrain.paths import config_dir
from fsdtrain.planning.fleet import (
    FIGURE_NAMES,
    LEVEL_FIGURE_NAMES,
    Figure,
    Fleet,
    NetworkLevel,
)

GIVEN = {"source": "given by the user", "confidence": "given"}
MAY_BE_ZERO = {"restart_s", "checkpoint_start_s", "straggler_share", "node_watts", "latency_us"}
MAX_BYTES = 1 << 20  # of a file


def fleet_names() -> tuple[str, ...]:
    """The fleets that are shipped."""
    return tuple(sorted(path.stem for path in (config_dir() / "fleet").glob("*.yaml")))


def read_fleet(name_or_path: str, given: Mapping[str, float] | None = None) -> Fleet:
    """A shipped fleet by name, or a user's own by the path of its YAML file.

    Args:
        name_or_path: "h100", or "my/fleet.yaml".
        given: other values for some of its figures, in the unit that the name ends with:
            {"device_price_per_hour": 2.5}.

    Raises:
        UserError: there is no such fleet or file, or what is in it is wrong.
    """
    is_path = name_or_path.endswith((".yaml", ".yml"))
    path = Path(name_or_path) if is_path else config_dir() / "fleet" / f"{name_or_path}.yaml"
    if not is_path and name_or_path not in fleet_names():
        raise UserError(
            f"fleet {name_or_path!r}: no such fleet; there are {', '.join(fleet_names())}, or give "
            "the path of your own .yaml file"
        )
    try:
        text = path.read_bytes()
    except OSError as error:
        raise UserError(f"fleet {name_or_path}: cannot be read: {error.strerror}") from error
    if len(text) > MAX_BYTES:
        raise UserError(
            f"fleet {name_or_path}: has {len(text):,} bytes; a fleet has at most {MAX_BYTES:,}"
        )
    return _change(parse_fleet(text, where=name_or_path), given or {}, name_or_path)


def parse_fleet(text: bytes, *, where: str) -> Fleet:
    """A fleet out of YAML; `where` begins the sentences.

    Raises:
        UserError: it is no YAML, a field is missing, unknown or of a wrong type, a value is not
            possible, or values contradict each other.
    """
    try:
        fleet = msgspec.convert(_spell_out(msgspec.yaml.decode(text)), Fleet, strict=False)
    except (msgspec.DecodeError, msgspec.ValidationError) as error:
        raise UserError(f"fleet {where}: {error}") from error
    _check(fleet, where)
    return fleet


def _spell_out(data: Any) -> Any:
    """A bare number for a figure is one that the user gives."""
    if not isinstance(data, dict):
        return data
    levels = data.get("levels")
    spelled = _spell_figures(data, FIGURE_NAMES)
    if isinstance(levels, list):
        spelled["levels"] = [
            _spell_figures(each, LEVEL_FIGURE_NAMES) if isinstance(each, dict) else each
            for each in levels
        ]
    return spelled


def _spell_figures(data: dict[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    return {
        name: {"value": value, **GIVEN} if name in names and _is_number(value) else value
        for name, value in data.items()
    }


def _is_number(value: object) -> bool:
    return isinstance(value, int | float | str) and not isinstance(value, bool)


def _change(fleet: Fleet, given: Mapping[str, float], where: str) -> Fleet:
    for name, value in given.items():
        if name not in FIGURE_NAMES:
            raise UserError(
                f"fleet {where}: has no figure {name!r}; there are {', '.join(FIGURE_NAMES)}"
            )
        was = getattr(fleet, name)
        source = GIVEN["source"] + (f"; file: {was.value:g} ({was.source})" if was else "")
        figure = Figure(value=float(value), source=source, confidence="given")
        fleet = msgspec.structs.replace(fleet, **{name: figure})
    _check(fleet, where)
    return fleet


def _check(fleet: Fleet, where: str) -> None:
    if not fleet.name:
        raise UserError(f"fleet {where}: name is empty")
    if fleet.devices_per_node < 1:
        raise UserError(
            f"fleet {where}: devices_per_node={fleet.devices_per_node}: must be at least 1"
        )
    for name, figure in fleet.figures().items():
        _check_figure(name, figure, where)
    if fleet.pue is not None and fleet.pue.value < 1:
        raise UserError(f"fleet {where}: pue={fleet.pue.value:g}: must be at least 1")
    _check_levels(fleet.levels, fleet.devices_per_node, where)


def _check_figure(name: str, figure: Figure, where: str) -> None:
    ending = name.rpartition(" ")[2]
    least = "at least 0" if ending in MAY_BE_ZERO else "above 0"
    for value in (figure.value, figure.low, figure.high):
        if value is None:
            continue
        if not math.isfinite(value) or value < 0 or (value == 0 and ending not in MAY_BE_ZERO):
            raise UserError(f"fleet {where}: {name}={value:g}: must be finite and {least}")
    if (figure.low is None) != (figure.high is None):
        raise UserError(f"fleet {where}: {name}: give both low and high, or neither")
    if figure.low is None or figure.high is None:
        return
    if not figure.low <= figure.value <= figure.high:
        raise UserError(
            f"fleet {where}: {name}={figure.value:g} does not lie between its low "
            f"{figure.low:g} and its high {figure.high:g}"
        )


def _check_levels(levels: tuple[NetworkLevel, ...], devices_per_node: int, where: str) -> None:
    if not levels or levels[-1].num_devices is not None:
        raise UserError(
            f"fleet {where}: levels: the last network has to join all devices: give it "
            "num_devices: null"
        )
    sizes = [1]
    for level in levels[:-1]:
        if level.num_devices is None or level.num_devices <= sizes[-1]:
            raise UserError(
                f"fleet {where}: level {level.name} joins {level.num_devices} devices: every level "
                f"but the last joins more than the one before it ({sizes[-1]})"
            )
        if level.num_devices % sizes[-1]:
            raise UserError(
                f"fleet {where}: level {level.name} joins {level.num_devices} devices, which is no "
                f"multiple of the {sizes[-1]} of the level before it"
            )
        sizes.append(level.num_devices)
    if any(max(size, devices_per_node) % min(size, devices_per_node) for size in sizes):
        raise UserError(
            f"fleet {where}: devices_per_node={devices_per_node} does not fit to the networks, "
            f"which join {', '.join(str(size) for size in sizes[1:])} devices"
        )
    if len({level.name for level in levels}) < len(levels):
        raise UserError(f"fleet {where}: two levels have the same name")
