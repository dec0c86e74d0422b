"""One step of many devices, and the training that it makes: every point of a scaling curve.

    step = max((compute + exposed exchange) x (1 + wait for the slowest device), input)
    training = samples / (samples a second x useful share of the time)

Input is read ahead, so that it has the time for which devices wait for each other, too. The batch
of a device stays as devices are added (weak scaling). All figures are MODELLED, but for
the step of one device, which may have been measured.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from fsdtrain.planning.device_step import DeviceStep, Workload
from fsdtrain.planning.exchange import exposed_s
from fsdtrain.planning.failures import Goodput, best_goodput
from fsdtrain.planning.fleet import Fleet
from fsdtrain.planning.record import Limit, Question, ScalePoint
from fsdtrain.planning.stragglers import straggler_share

LITTLE = 0.1  # of a step: where less is lost, the step's own work is what limits it
LEAST_USEFUL = 1e-3  # share of the time: below, a training is said not to end


@dataclass(frozen=True, kw_only=True)
class Part:
    """Devices of one kind that train together with all others."""

    step: DeviceStep
    fleet: Fleet
    num_devices: int

    @property
    def num_nodes(self) -> int:
        return -(-self.num_devices // self.fleet.devices_per_node)

    @property
    def num_samples(self) -> float:
        return self.num_devices * self.step.num_samples


def scale_point(parts: Sequence[Part], workload: Workload, question: Question) -> ScalePoint | None:
    """These devices training together; None: they stop so often that they never end.

    Args:
        parts: one kind each, with batches for which their steps take equally long.
        workload: what is trained.
        question: how much of it.
    """
    num_devices = sum(part.num_devices for part in parts)
    compute_s = max(part.step.step_s - part.step.exposed_s for part in parts)
    network_s = max(
        part.step.exposed_s + exposed_s(part.step.schedule, part.fleet, num_devices)
        for part in parts
    )
    work_s = compute_s + network_s
    sigma = max(part.fleet.si("straggler_share") or 0.0 for part in parts)
    straggling = straggler_share(sigma, num_devices)
    worked_s = work_s * (1 + straggling)
    input_s = max(0.0, _feed_s(parts, workload) - worked_s)
    step_s = worked_s + input_s
    goodput = _goodput(parts, workload)
    if goodput.useful_share < LEAST_USEFUL:
        return None
    num_samples = sum(part.num_samples for part in parts)
    rate = num_samples / step_s * goodput.useful_share
    time_s = question.num_samples * question.num_epochs / rate
    lost: dict[Limit, float] = {
        "network": network_s,
        "input": input_s,
        "stragglers": work_s * straggling,
        "failures": step_s * (1 / goodput.useful_share - 1),
    }
    energy_j = _power(parts, is_limit=False, time_s=time_s)
    return ScalePoint(
        num_devices=num_devices,
        step_s=step_s,
        compute_s=compute_s,
        exposed_s=network_s,
        input_s=input_s,
        straggler_share=straggling,
        failure_share=1 - goodput.useful_share,
        checkpoint_interval_s=goodput.interval_s,
        samples_per_s=rate,
        time_to_train_s=time_s,
        efficiency=rate / sum(part.num_devices * part.step.samples_per_s for part in parts),
        limit=_limit(lost, step_s / goodput.useful_share, parts),
        power_w=_power(parts, is_limit=True, time_s=1.0),
        energy_j=energy_j,
        ingest_bytes_per_s=num_samples * (workload.sample_bytes or 0.0) / step_s,
        cost=_cost(parts, time_s, energy_j),
        samples_per_step=num_samples,
    )


def _feed_s(parts: Sequence[Part], workload: Workload) -> float:
    """Seconds in which the batches of one step come out of storage and decoders."""
    sample_bytes, pixels = workload.sample_bytes or 0.0, workload.pixels_per_sample or 0.0
    feeds = [0.0]
    stores = [each for part in parts if (each := part.fleet.si("storage_gb_per_s")) is not None]
    if stores:
        feeds.append(sum(part.num_samples for part in parts) * sample_bytes / min(stores))
    for part in parts:
        # The fullest node has the most to read.
        in_node = min(part.num_devices, part.fleet.devices_per_node) * part.step.num_samples
        if part.step.data_wait_s:
            feeds.append(part.step.step_s + part.step.data_wait_s)
        for amount, name in (
            (in_node * sample_bytes, "node_input_gb_per_s"),
            (in_node * pixels, "node_decode_megapixels_per_s"),
        ):
            rate = part.fleet.si(name)
            if rate is not None:
                feeds.append(amount / rate)
    return max(feeds)


def _goodput(parts: Sequence[Part], workload: Workload) -> Goodput:
    """With the stops of all kinds, the longest restart and the slowest checkpoint."""
    rate = 0.0
    for part in parts:
        mtbf_s = part.fleet.si("device_mtbf_hours")
        rate += part.num_devices / mtbf_s if mtbf_s else 0.0
    return best_goodput(
        checkpoint_s=max(_checkpoint_s(part.fleet, workload) for part in parts),
        mtbf_s=1 / rate if rate else math.inf,
        restart_s=max(part.fleet.si("restart_s") or 0.0 for part in parts),
    )


def _checkpoint_s(fleet: Fleet, workload: Workload) -> float:
    start_s, rate = fleet.si("checkpoint_start_s") or 0.0, fleet.si("checkpoint_gb_per_s")
    return start_s + (workload.checkpoint_bytes / rate if rate else 0.0)


def _limit(lost: dict[Limit, float], wall_s: float, parts: Sequence[Part]) -> Limit:
    if sum(lost.values()) >= LITTLE * wall_s:
        return max(lost, key=lambda name: lost[name])
    slowest = max(parts, key=lambda part: part.step.step_s)
    return slowest.step.limit


def _power(parts: Sequence[Part], *, is_limit: bool, time_s: float) -> float | None:
    """Watts times `time_s`, of devices and nodes, cooling included; None: not known.

    Args:
        parts: of the fleet.
        is_limit: what the site has to supply; else what is drawn on average, where that is known.
        time_s: 1 for watts.
    """
    total = 0.0
    for part in parts:
        limit = part.fleet.si("device_watts")
        if limit is None:
            return None
        drawn = part.step.watts
        watts = limit if is_limit or drawn is None else min(limit, drawn)
        rest = part.num_nodes * (part.fleet.si("node_watts") or 0.0)
        pue = part.fleet.si("pue") or 1.0
        total += (part.num_devices * watts + rest) * pue
    return total * time_s


def _cost(parts: Sequence[Part], time_s: float, energy_j: float | None) -> float | None:
    """In the currency of the question; None: no price was given for some of the devices."""
    total = 0.0
    for part in parts:
        price = part.fleet.si("device_price_per_hour")
        if price is None:
            return None
        total += part.num_devices * price * time_s
    energy_prices = [each for part in parts if (each := part.fleet.si("energy_price_per_kwh"))]
    if energy_prices and energy_j is not None:
        total += energy_j * max(energy_prices)
    return total
