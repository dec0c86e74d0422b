"""What a fleet of one kind of machine is made of, besides the machine: nodes, networks, power.

A fleet is a YAML file of figures, each with its source and how far to trust it; the shipped ones
are in configs/fleet. It does not know what is trained, nor how long a step takes.
"""

from typing import Literal, TypeVar

import msgspec

# How a figure is known, from the best to the worst: by a clock here; by the maker; by someone who
# saw the maker's text; by arithmetic from these; reported; sources differ; by an analyst; from
# memory; a choice, for it is not public; set by the user.
Confidence = Literal[
    "measured", "stated", "attributed", "derived", "press", "conflicting", "inferred", "recalled",
    "assumed", "given",
]  # fmt: skip
ASSUMPTIONS: frozenset[Confidence] = frozenset({"inferred", "recalled", "assumed"})

# The ending of a figure's name, its unit in words, and the SI value of one of it.
UNITS: dict[str, tuple[str, float]] = {
    "_gb_per_s": ("GB/s", 1e9),
    "_us": ("us", 1e-6),
    "_hours": ("h", 3600.0),
    "_megapixels_per_s": ("Mpixel/s", 1e6),
    "_s": ("s", 1.0),
    "_watts": ("W", 1.0),
    "_share": ("share", 1.0),
    "_price_per_hour": ("money/h", 1.0 / 3600),
    "_price_per_kwh": ("money/kWh", 1.0 / 3.6e6),
    "pue": ("ratio", 1.0),
}


class Figure(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One figure of a fleet.

    Args:
        value: in the unit that the figure's name ends with.
        source: where it is from, short.
        confidence: how far to trust it.
        low: with `high` the range within which the truth is thought to lie; None: not judged.
        high: see `low`.
    """

    value: float
    source: str
    confidence: Confidence
    low: float | None = None
    high: float | None = None


class NetworkLevel(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A network that joins groups of the level before it, or single devices at the first.

    Args:
        name: "NVLink".
        num_devices: of a group that it joins; None: as many as there are.
        latency_us: of one message between two neighbours.
        bandwidth_gb_per_s: that each device can send with at this level, one direction.
    """

    name: str
    num_devices: int | None
    latency_us: Figure
    bandwidth_gb_per_s: Figure

    @property
    def alpha_s(self) -> float:
        return self.latency_us.value * 1e-6

    @property
    def bytes_per_s(self) -> float:
        return self.bandwidth_gb_per_s.value * 1e9


class Fleet(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One kind of machine in numbers. A figure that is None is not counted, and plans say so.

    Args:
        name: of the fleet.
        summary: one line.
        machine: that one device is, for a backend that models machines ("h100"); None: a profile
            has to be given.
        devices_per_node: that share a host and fail to start without each other.
        levels: from the inside out; the last one joins all.
        device_watts: the most that one device takes.
        node_watts: of all of a node besides its devices.
        pue: power usage effectiveness: the site's power over what reaches the nodes.
        device_mtbf_hours: mean time between stops of the training that one device causes.
        restart_s: from a stop until training goes on.
        checkpoint_start_s: that training waits for a checkpoint of any size.
        checkpoint_gb_per_s: at which training waits for a checkpoint to be written.
        straggler_share: standard deviation of one device's step time over its mean.
        storage_gb_per_s: that all devices together read at.
        node_input_gb_per_s: that a node reads at.
        node_decode_megapixels_per_s: that a node's hosts and decoders turn into input.
        device_price_per_hour: in the currency of the question.
        energy_price_per_kwh: in the currency of the question.
        notes: what a reader of any plan of it must know.
    """

    name: str
    summary: str
    machine: str | None
    devices_per_node: int
    levels: tuple[NetworkLevel, ...]
    device_watts: Figure | None = None
    node_watts: Figure | None = None
    pue: Figure | None = None
    device_mtbf_hours: Figure | None = None
    restart_s: Figure | None = None
    checkpoint_start_s: Figure | None = None
    checkpoint_gb_per_s: Figure | None = None
    straggler_share: Figure | None = None
    storage_gb_per_s: Figure | None = None
    node_input_gb_per_s: Figure | None = None
    node_decode_megapixels_per_s: Figure | None = None
    device_price_per_hour: Figure | None = None
    energy_price_per_kwh: Figure | None = None
    notes: tuple[str, ...] = ()

    def figures(self) -> dict[str, Figure]:
        """All that are known, by name; those of a network as "NVLink latency_us"."""
        found = {name: each for name in FIGURE_NAMES if (each := getattr(self, name)) is not None}
        for level in self.levels:
            for name in LEVEL_FIGURE_NAMES:
                found[f"{level.name} {name}"] = getattr(level, name)
        return found

    def missing(self) -> tuple[str, ...]:
        """Names of the figures that nobody gave, prices apart."""
        return tuple(
            name for name in FIGURE_NAMES if getattr(self, name) is None and "price" not in name
        )

    def si(self, name: str) -> float | None:
        """A figure in seconds, bytes, watts; None: not known."""
        figure: Figure | None = getattr(self, name)
        return None if figure is None else figure.value * unit_of(name)[1]

    def with_figure(self, name: str, value: float) -> "Fleet":
        """This fleet with another value for one of `figures`."""
        level_name, _, rest = name.rpartition(" ")
        if not level_name:
            return _with(self, name, value)
        levels = tuple(
            _with(each, rest, value) if each.name == level_name else each for each in self.levels
        )
        return msgspec.structs.replace(self, levels=levels)


FIGURE_NAMES = (
    "device_watts", "node_watts", "pue", "device_mtbf_hours", "restart_s", "checkpoint_start_s",
    "checkpoint_gb_per_s", "straggler_share", "storage_gb_per_s", "node_input_gb_per_s",
    "node_decode_megapixels_per_s", "device_price_per_hour", "energy_price_per_kwh",
)  # fmt: skip
LEVEL_FIGURE_NAMES = ("latency_us", "bandwidth_gb_per_s")


def unit_of(name: str) -> tuple[str, float]:
    """Of a figure, by the ending of its name: in words, and the SI value of one of it."""
    return next(unit for ending, unit in UNITS.items() if name.endswith(ending))


Owner = TypeVar("Owner", Fleet, NetworkLevel)


def _with(owner: Owner, name: str, value: float) -> Owner:
    figure = msgspec.structs.replace(getattr(owner, name), value=value)
    return msgspec.structs.replace(owner, **{name: figure})
