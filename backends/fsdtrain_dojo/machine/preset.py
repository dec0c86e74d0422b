"""A machine as a table of named constants and a function that puts them together.

The names are the knobs of `backend.machine`. It does not know any machine.
"""

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from fsdtrain.backend import BackendError
from fsdtrain_dojo.machine.check import check_machine
from fsdtrain_dojo.machine.quantity import UNITS, Quantity
from fsdtrain_dojo.machine.schema import Machine


class Values:
    """The constants of one machine in SI units, for the function that builds it."""

    def __init__(self, constants: Mapping[str, Quantity]) -> None:
        self._constants = constants

    def __getitem__(self, name: str) -> float:
        return self._constants[name].si

    def number(self, name: str) -> int:
        """A constant that counts pieces or bytes."""
        return round(self._constants[name].si)


@dataclass(frozen=True, kw_only=True)
class Preset:
    """One machine that can be asked for by name.

    Args:
        name: of the machine.
        summary: one line.
        constants: by the name of the knob, which ends with the unit.
        build: from these constants, or others of the same names.
        is_hypothetical: nobody has built it.
    """

    name: str
    summary: str
    constants: Mapping[str, Quantity]
    build: Callable[[Values], Machine]
    is_hypothetical: bool = False

    def __post_init__(self) -> None:
        for name, each in self.constants.items():
            assert name.endswith(UNITS[each.unit][1]), f"{name} is in {each.unit}"

    def machine(self, given: Mapping[str, object]) -> Machine:
        """The machine with some of its constants as the user wants them.

        Raises:
            BackendError: a name it does not have, a value it cannot take, or values that
                contradict each other.
        """
        constants = dict(self.constants)
        for name, value in given.items():
            if name not in constants:
                raise BackendError(_no_such_knob(self, name))
            constants[name] = constants[name].given(name, value)
        machine = replace(
            self.build(Values(constants)),
            name=self.name,
            summary=self.summary,
            is_hypothetical=self.is_hypothetical,
            constants=constants,
        )
        check_machine(machine)
        return machine


def _no_such_knob(preset: Preset, name: str) -> str:
    close = difflib.get_close_matches(name, preset.constants, n=3)
    meant = f"; did you mean {' or '.join(close)}?" if close else ""
    return (
        f"backend.machine.{name}: machine {preset.name} has no such constant{meant} It has "
        f"{', '.join(sorted(preset.constants))}"
    )
