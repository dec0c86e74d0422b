"""The headline figures of a profiled step, as cards of a value, a note and perhaps a bar.

It does not know HTML: every text here is plain, the template escapes it.
"""

from dataclasses import dataclass

from fsdtrain.engine.profile_record import ProfileRecord
from fsdtrain.report.amounts import in_seconds, percent, plain_number, with_prefix
from fsdtrain.step_profile import MemoryUse, StepProfile


@dataclass(frozen=True, kw_only=True)
class Card:
    """One figure of the whole step."""

    label: str
    value: str
    note: str
    percent: float | None = None  # of a bar; None: there is none


def make_cards(record: ProfileRecord) -> list[Card]:
    """Time, work, memory and energy, as far as the backend can tell."""
    profile = record.profile
    step_s = profile.step_time_s
    clips_per_s = f"{plain_number(record.num_clips / step_s)} clips a second" if step_s else ""
    cards = [
        Card(
            label="Step time",
            value=in_seconds(step_s),
            note=f"{record.num_clips} clips; {clips_per_s}",
        )
    ]
    if profile.flops and step_s:
        rate = with_prefix(profile.flops / step_s, "FLOP/s")
        note = f"{with_prefix(profile.flops, 'FLOP')} at {rate}"
        if profile.utilisation is None or not profile.peak_flops_per_s:
            cards.append(Card(label="Work", value=with_prefix(profile.flops, "FLOP"), note=note))
        else:
            peak = with_prefix(profile.peak_flops_per_s, "FLOP/s")
            cards.append(
                Card(
                    label="Of the peak rate",
                    value=percent(profile.utilisation),
                    note=f"{note}, of {peak}",
                    percent=100 * profile.utilisation,
                )
            )
    if profile.roofline_s is not None and step_s:
        share = profile.roofline_s / step_s
        note = f"its work and traffic allow {in_seconds(profile.roofline_s)}"
        cards.append(
            Card(label="Of the roofline", value=percent(share), note=note, percent=100 * share)
        )
    cards += [_memory_card(use) for use in profile.memory]
    if profile.energy_j is not None and step_s:
        watts = profile.energy_j / step_s
        limit = profile.power_limit_watts
        cards.append(
            Card(
                label="Energy of a step",
                value=with_prefix(profile.energy_j, "J"),
                note=f"{with_prefix(watts, 'W')} on average"
                + (f", of {with_prefix(limit, 'W')}" if limit else ""),
                percent=min(100 * watts / limit, 100.0) if limit else None,
            )
        )
    return cards


def _memory_card(use: MemoryUse) -> Card:
    full = use.peak_bytes / use.capacity_bytes if use.capacity_bytes else None
    capacity = f"of {with_prefix(use.capacity_bytes, 'B')}" if use.capacity_bytes else ""
    return Card(
        label=f"{use.name}, at most",
        value=with_prefix(use.peak_bytes, "B"),
        note="" if full is None else f"{percent(full)} {capacity}",
        percent=None if full is None else min(100 * full, 100.0),
    )


def make_meters(profile: StepProfile) -> tuple[Card, ...]:
    """For which share of the step each resource is busy, the busiest first."""
    ranked = sorted(profile.busy_s.items(), key=lambda item: -item[1])
    return tuple(
        Card(
            label=name,
            value=percent(seconds / profile.step_time_s),
            note=in_seconds(seconds),
            percent=min(100 * seconds / profile.step_time_s, 100.0),
        )
        for name, seconds in ranked
        if profile.step_time_s
    )
