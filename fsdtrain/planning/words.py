"""Amounts and answers of a plan in words. It does not know how anything was found."""

from fsdtrain.planning.record import Limit, Question, ScalePoint

LIMITS: dict[Limit, str] = {
    "compute": "compute",
    "memory": "the device's own memory",
    "network": "the network (exchange of gradients)",
    "input": "input (storage and decoding)",
    "stragglers": "waiting for the slowest device",
    "failures": "failures (restarts, lost work, checkpoints)",
}
DURATIONS = (("years", 365.25 * 86400), ("days", 86400.0), ("hours", 3600.0), ("minutes", 60.0))
PREFIXES = ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def duration(seconds: float) -> str:
    """93600 -> "1.08 days"."""
    for name, unit_s in DURATIONS:
        if seconds >= 1.5 * unit_s:
            return f"{seconds / unit_s:.3g} {name}"
    return f"{seconds:.3g} s" if seconds >= 1 else f"{seconds * 1e3:.3g} ms"


def amount(value: float, unit: str, *, digits: int = 4) -> str:
    """3.62e14, "FLOP/s" -> "362 TFLOP/s"."""
    factor, prefix = next((one for one in PREFIXES if abs(value) >= one[0]), (1.0, ""))
    return f"{value / factor:.{digits}g} {prefix}{unit}"


def money(value: float, currency: str) -> str:
    """1234.5, "USD" -> "1,234 USD"."""
    return f"{value:,.0f} {currency}" if value >= 100 else f"{value:.2f} {currency}"


def devices(count: int, devices_per_node: int = 1) -> str:
    """16, 8 -> "16 devices (2 nodes)"."""
    text = "1 device" if count == 1 else f"{count:,} devices"
    nodes = -(-count // devices_per_node)
    return text if devices_per_node == 1 or nodes == 1 else f"{text} ({nodes:,} nodes)"


def limit_words(limit: Limit, bound: str) -> str:
    """What limits, with the profile's own word for it: "compute (latency)"."""
    return f"compute ({bound})" if limit == "compute" else LIMITS[limit]


def describe_point(
    point: ScalePoint, question: Question, *, bound: str, devices_per_node: int = 1
) -> str:
    """One sentence: "16 devices take 2.9 days at 93.1% efficiency; limited by ..."."""
    verb = "takes" if point.num_devices == 1 else "take"
    parts = [
        f"{devices(point.num_devices, devices_per_node)} {verb} {duration(point.time_to_train_s)} "
        f"at {point.efficiency:.1%} efficiency"
    ]
    if point.power_w is not None:
        parts.append(f"on {amount(point.power_w, 'W')}")
    if point.cost is not None:
        parts.append(f"for {money(point.cost, question.currency)}")
    return f"{', '.join(parts)}; limited by {limit_words(point.limit, bound)}."
