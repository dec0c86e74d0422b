"""Leaves torch.compile as soon as the graphs are there, so that nothing runs and nothing stays."""

from collections.abc import Callable
from typing import Any

from torch._dynamo.exc import TorchDynamoException

from fsdtrain.backend import BackendError
from fsdtrain_dojo.capture.compiler import NOT_CAPTURED, explain, refuse_autocast, set_up_capture


class RecordedError(Exception):
    """Thrown by a compiler that has seen enough."""


def give_up(function: Callable[[], Any]) -> None:
    """Call a compiled function whose capture ends with `RecordedError`.

    Raises:
        BackendError: it ends otherwise: no static graph of known ops, or not captured at all.
    """
    set_up_capture()
    refuse_autocast()
    try:
        function()
    except TorchDynamoException as error:
        if isinstance(getattr(error, "inner_exception", None), RecordedError):
            return
        raise explain(error) from error
    raise BackendError(NOT_CAPTURED)
