"""Checks of values, which on a GPU cost a synchronisation: there, once for each shape.

What costs nothing, dtypes, devices and shapes, is checked at every call and not here.
"""

from collections.abc import Callable, Hashable

import torch

_passed: set[tuple[Hashable, ...]] = set()


def check_once(key: tuple[Hashable, ...], check: Callable[[], None]) -> None:
    """Run `check`, which raises on bad values, unless it has passed for this key on this GPU.

    It always runs for tensors on the CPU, and never while `torch.compile` traces or a CUDA graph is
    being captured.

    Args:
        key: the op, what its tensors look like, and their `torch.device`.
        check: of these tensors.
    """
    if torch.compiler.is_compiling():
        return
    devices = [part for part in key if isinstance(part, torch.device)]
    assert devices, f"no torch.device in the key {key}"
    if all(device.type == "cpu" for device in devices):
        check()
    elif key not in _passed and not torch.cuda.is_current_stream_capturing():
        check()
        _passed.add(key)
