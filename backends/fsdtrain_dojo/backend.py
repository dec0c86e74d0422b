"""The Dojo backend's door: registered, and not able to run yet.

The number formats, the emulated step and the machine model are not built; until they are, the
backend says so instead of running something else under its name.
"""

from typing import Any, ClassVar, NoReturn

from torch import nn

from fsdtrain.backend import (
    Availability,
    Backend,
    BackendError,
    Origin,
    Tolerance,
    TrainerParts,
)

NOT_YET = "the emulation of Dojo's arithmetic is not built yet; use backend=cpu"


class DojoBackend(Backend):
    """Takes no options yet."""

    name: ClassVar[str] = "dojo"
    value_origin: ClassVar[Origin] = "EMULATED"
    tolerance: ClassVar[Tolerance] = Tolerance(op_relative=0.0, loss_relative_after_ten_steps=0.0)

    @classmethod
    def availability(cls) -> Availability:
        return Availability(is_available=False, detail=NOT_YET)

    def device_name(self) -> str:
        return "emulated Tesla D1"

    def trainer_parts(self) -> TrainerParts:
        self._refuse()

    def profile_step(self, step: nn.Module, batch: Any) -> NoReturn:
        self._refuse()

    def _refuse(self) -> NoReturn:
        raise BackendError(f"backend 'dojo' is not available: {NOT_YET}")
