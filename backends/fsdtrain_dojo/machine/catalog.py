"""The machines that can be asked for by name, and `backend.machine` read into one."""

from collections.abc import Mapping

from fsdtrain.backend import BackendError
from fsdtrain_dojo.machine.preset import Preset
from fsdtrain_dojo.machine.presets import amd, d1, google, nvidia
from fsdtrain_dojo.machine.quantity import Confidence
from fsdtrain_dojo.machine.schema import Machine

PRESETS: dict[str, Preset] = {
    each.name: each for each in (*d1.PRESETS, *google.PRESETS, *nvidia.PRESETS, *amd.PRESETS)
}


def read_machine(options: object) -> Machine:
    """The machine that `backend.machine` describes.

    Args:
        options: a name, or a mapping with `name` and values for its constants by their names, in
            the unit that the name ends with: {"name": "d1_tile", "die_crossing_ns": 150}. None
            leaves a constant as it is, so that a config can list knobs of several machines.

    Raises:
        BackendError: no such machine or constant, a value that a constant cannot have, or values
            that contradict each other.
    """
    if isinstance(options, str):
        options = {"name": options}
    if not isinstance(options, Mapping) or not isinstance(options.get("name"), str):
        raise BackendError(
            f"backend.machine={options!r}: must be the name of a machine ({', '.join(PRESETS)}), "
            "or a mapping with `name` and values for its constants"
        )
    preset = find_preset(options["name"])
    given = {str(name): value for name, value in options.items() if name != "name"}
    known = {name for each in PRESETS.values() for name in each.constants}
    return preset.machine(
        {name: value for name, value in given.items() if value is not None or name not in known}
    )


def find_preset(name: str) -> Preset:
    """The preset of this name.

    Raises:
        BackendError: there is none.
    """
    if name not in PRESETS:
        raise BackendError(
            f"backend.machine={name!r}: no such machine; there are {', '.join(PRESETS)}"
        )
    return PRESETS[name]


def with_constants(machine: Machine, given: Mapping[str, float]) -> Machine:
    """A machine that was read from a preset, with other values for some of its constants.

    What the user had given stays, unless `given` has it too.

    Raises:
        BackendError: as `read_machine` does.
    """
    kept = {
        name: each.value
        for name, each in machine.constants.items()
        if each.confidence is Confidence.GIVEN
    }
    return find_preset(machine.name).machine({**kept, **given})
