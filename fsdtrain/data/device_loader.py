"""A ClipLoader whose batches are on a GPU: the next one is copied while this one is computed with.

Which loader and which GPU, it is told. It knows neither Lightning nor what a batch holds.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple, Protocol

import torch
from torch.utils._pytree import tree_leaves

from fsdtrain.data.batch import ClipBatch
from fsdtrain.data.device_video import move_batch
from fsdtrain.data.loader import ClipLoader
from fsdtrain.data.stream import StreamPlan


class BatchCopy(Protocol):
    """A way to a device, in two halves."""

    def send(self, batch: ClipBatch) -> Any:
        """Begin; the result is for `receive` alone."""
        ...

    def receive(self, sent: Any) -> ClipBatch:
        """The batch on the device; whoever computes with it need not wait."""
        ...


class StreamCopy:
    """Copies, and decodes, on a CUDA stream of its own, beside what the device computes.

    The copy runs by itself only out of pinned memory. The process waits for decoders.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]  # torch's

    def send(self, batch: ClipBatch) -> tuple[ClipBatch, torch.cuda.Event]:
        """Queue the copies; the pinned memory is kept by torch until they are done."""
        with torch.cuda.stream(self._stream):
            copied = move_batch(batch, self._device)
            done = torch.cuda.Event()  # type: ignore[no-untyped-call]  # torch's
            done.record(self._stream)
        return copied, done

    def receive(self, sent: tuple[ClipBatch, torch.cuda.Event]) -> ClipBatch:
        """Let the current stream, not the process, wait for this batch and no later one."""
        copied, done = sent
        current = torch.cuda.current_stream(self._device)
        current.wait_event(done)
        for tensor in tree_leaves(copied):
            # Otherwise its memory could be filled anew while the current stream still reads it.
            tensor.record_stream(current)
        return copied


class _Ahead(NamedTuple):
    sent: Any  # what BatchCopy.send made
    state: dict[str, Any]  # of the loader, with this batch as the last one handed out


class DeviceLoader:
    """Iterates a ClipLoader one batch ahead; its state counts what it has handed out itself."""

    def __init__(self, loader: ClipLoader, copy: BatchCopy) -> None:
        self._loader, self._copy = loader, copy
        self._state: dict[str, Any] | None = None

    @property
    def plan(self) -> StreamPlan:
        """What decides what the batches are."""
        return self._loader.plan

    def __len__(self) -> int:
        """Batches of a whole epoch."""
        return len(self._loader)

    def __iter__(self) -> Iterator[ClipBatch]:
        batches = iter(self._loader)
        ahead = self._send_next(batches)
        while ahead is not None:
            sent, self._state = ahead
            ahead = self._send_next(batches)
            yield self._copy.receive(sent)

    def _send_next(self, batches: Iterator[ClipBatch]) -> _Ahead | None:
        batch = next(batches, None)
        if batch is None:
            return None
        return _Ahead(sent=self._copy.send(batch), state=self._loader.state_dict())

    def state_dict(self) -> dict[str, Any]:  # Lightning's protocol
        """As ClipLoader's."""
        return self._loader.state_dict() if self._state is None else self._state

    def load_state_dict(self, state: dict[str, Any]) -> None:  # Lightning's protocol
        """As ClipLoader's, with its errors."""
        self._loader.load_state_dict(state)
        self._state = None
