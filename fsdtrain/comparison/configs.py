"""Which knobs differ between two composed configurations, and which of them may.

Plain YAML, read by the safe loader. It does not know what a knob means, except for those that are
not of the training: where a run writes, its seed, and how much is drawn.
"""

from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec

from fsdtrain.comparison.record import ConfigDifference, Side
from fsdtrain.errors import UserError

# Seeds are compared by the manifests; a backend's own seed is the run's.
NOT_OF_THE_TRAINING = frozenset(("run_dir", "resume", "seed", "backend.seed", "num_report_clips"))
ABSENT = "(absent)"
MAX_JOINED = 4  # values of a group in one row
# More is no configuration of ours, but references in YAML that multiply, or name themselves.
MAX_FIELDS = 10_000
MAX_DEPTH = 30


def config_differences(
    a_yaml: str, b_yaml: str, *, allow: Collection[str] = ()
) -> tuple[ConfigDifference, ...]:
    """Every field that is not the same on both sides, each of them allowed.

    Of a group that only one side has, such as backend.machine, one row tells.

    Args:
        a_yaml: the composed configuration of side a.
        b_yaml: of side b.
        allow: fields or groups of them, "training.learning_rate", "data"; "*": all. The backend's
            fields may always differ.

    Raises:
        UserError: a difference that is not allowed, a name in `allow` that no field has, or no
            YAML.
    """
    a, b = read_fields(a_yaml, "a's config.yaml"), read_fields(b_yaml, "b's config.yaml")
    for name in allow:
        if name != "*" and not any(_is_within(field, name) for field in (*a, *b)):
            raise UserError(
                f"allow={name}: neither side's configuration has such a field; write it as in "
                "config.yaml, e.g. training.learning_rate, or a whole group such as data"
            )
    found = tuple(
        ConfigDifference(
            field=field,
            a=_text(a, field),
            b=_text(b, field),
            is_allowed=any(_is_within(field, name) for name in ("backend", *allow)),
        )
        for field in dict.fromkeys((*a, *b))
        if field not in NOT_OF_THE_TRAINING and _text(a, field) != _text(b, field)
    )
    refused = [each for each in found if not each.is_allowed]
    if refused:
        listed = "; ".join(f"{each.field}: {each.a} and {each.b}" for each in refused[:5])
        more = f"; and {len(refused) - 5} more" if len(refused) > 5 else ""
        names = ",".join(each.field for each in refused)
        raise UserError(
            f"the configurations of a and b differ in more than the backend ({listed}{more}): make "
            f"them the same, or allow it by name with allow=[{names}]"
        )
    return tuple(_join_absent(found))


def _join_absent(found: Sequence[ConfigDifference]) -> Iterator[ConfigDifference]:
    """One row for all of a group, such as backend.machine, that one side does not have at all."""
    groups: dict[tuple[str, Side | None], list[ConfigDifference]] = {}
    for each in found:
        absent: Side | None = "a" if each.a == ABSENT else "b" if each.b == ABSENT else None
        group, depth = ".".join(each.field.split(".")[:2]), each.field.count(".")
        is_inner = absent is not None and depth >= 2
        groups.setdefault((group, absent) if is_inner else (each.field, None), []).append(each)
    for (group, absent), rows in groups.items():
        if absent is None or len(rows) == 1:
            yield from rows
            continue
        values = {
            row.field.removeprefix(f"{group}."): row.b if absent == "a" else row.a for row in rows
        }
        there = [f"{name}={value}" for name, value in values.items() if value != "null"]
        more = f", and {len(there) - MAX_JOINED} more" if len(there) > MAX_JOINED else ""
        text = ", ".join(there[:MAX_JOINED]) + more
        yield ConfigDifference(
            field=group,
            a=ABSENT if absent == "a" else text,
            b=ABSENT if absent == "b" else text,
            is_allowed=all(row.is_allowed for row in rows),
        )


def read_fields(text: str, where: Path | str) -> dict[str, Any]:
    """The values of a nested configuration by dotted name; lists stay whole.

    Raises:
        UserError: it is no YAML, no mapping, or too large to be a configuration.
    """
    try:
        loaded: Any = msgspec.yaml.decode(text)  # by PyYAML's safe loader
    except (msgspec.DecodeError, RecursionError) as error:
        raise UserError(
            f"{where} is no YAML ({_first_line(error)}): give a folder that fit wrote"
        ) from error
    if not isinstance(loaded, dict):
        raise UserError(f"{where} holds no fields: give a folder that fit wrote")
    fields: dict[str, Any] = {}
    for name, value in _flatten(loaded, ""):
        fields[name] = value
        if len(fields) > MAX_FIELDS or name.count(".") > MAX_DEPTH:
            raise UserError(
                f"{where} has more than {MAX_FIELDS} fields, or some more than {MAX_DEPTH} groups "
                "deep: give a folder that fit wrote"
            )
    return fields


def _flatten(values: dict[Any, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, dict) and value and prefix.count(".") <= MAX_DEPTH:
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _is_within(field: str, name: str) -> bool:
    return name == "*" or field == name or field.startswith(f"{name.removesuffix('.*')}.")


def _text(fields: dict[str, Any], field: str) -> str:
    if field not in fields:
        return ABSENT
    value = fields[field]
    return (
        "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
    )


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]
