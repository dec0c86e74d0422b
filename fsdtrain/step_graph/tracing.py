"""How PyTorch is to trace a module: which ops it may take apart, and how.

Its choices are made for speed on a device; a captured graph is to hold the ops that the machine
would run. Everything is put back when the tracing is done.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch._C import DispatchKey
from torch._ops import OpOverload
from torch.nn.attention import SDPBackend, sdpa_kernel

aten = torch.ops.aten

_KEYS = (DispatchKey.Autograd, DispatchKey.CompositeImplicitAutograd)
# PyTorch replaces these by a dozen smaller ops while it traces, which is slower and has other
# numbers than the op itself: interpolation weights are no stored tensors.
_KEPT_WHOLE = [
    overload
    for packet in (
        aten.upsample_nearest1d, aten.upsample_nearest2d, aten.upsample_nearest3d,
        aten.upsample_linear1d, aten.upsample_bilinear2d, aten.upsample_trilinear3d,
        aten.upsample_bicubic2d, aten._upsample_nearest_exact1d, aten._upsample_nearest_exact2d,
        aten._upsample_nearest_exact3d,
    )
    for overload in (packet.default, packet.vec)
]  # fmt: skip
_RECURRENT = [
    overload
    for packet in (aten.lstm, aten.gru, aten.rnn_tanh, aten.rnn_relu)
    for overload in (packet.input, packet.data)
]


@contextmanager
def tracing_whole_ops() -> Iterator[None]:
    """While the forward and backward pass are traced."""
    with ExitStack() as stack:
        # Under flash attention the backward pass of the CPU gets the wrong tensor, silently.
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        for overload in _KEPT_WHOLE:
            stack.enter_context(_python_kernels(overload, None))
        for overload in _RECURRENT:
            stack.enter_context(_python_kernels(overload, _recurrent_kernel(overload)))
        yield


@contextmanager
def _python_kernels(overload: OpOverload, kernel: Callable[..., Any] | None) -> Iterator[None]:
    """Puts `kernel` in the place of those that are written in Python; None: leaves none."""
    originals = {key: overload.py_kernels[key] for key in _KEYS if key in overload.py_kernels}
    for key in originals:
        del overload.py_kernels[key]
        if kernel is not None:
            overload.py_kernels[key] = kernel
    overload._dispatch_cache.clear()
    try:
        yield
    finally:
        overload.py_kernels.update(originals)
        overload._dispatch_cache.clear()


def _recurrent_kernel(overload: OpOverload) -> Callable[..., Any]:
    """PyTorch's own in C++, which eager runs as well, in matrix and vector ops.

    The one in Python loses the dropout between layers (torch 2.13, `_rnn_helper`), and oneDNN's has
    one op for a layer, whose matrix products nobody sees.
    """

    def trace(*args: Any, **kwargs: Any) -> Any:
        was_enabled = torch._C._get_mkldnn_enabled()
        torch._C._set_mkldnn_enabled(False)
        try:
            return overload._op_dk(DispatchKey.CompositeImplicitAutograd, *args, **kwargs)
        finally:
            torch._C._set_mkldnn_enabled(was_enabled)

    return trace
