"""Profile a training step with torch.profiler, for backends that run ATen and custom ops.

It knows no backend: what an op computes in and whether a GPU's kernels are timed, it is told.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from statistics import median
from typing import Any

import torch
from torch import nn
from torch.autograd.profiler_util import FunctionEvent
from torch.optim import Optimizer
from torch.profiler import ProfilerActivity, profile, record_function
from torch.utils.hooks import RemovableHandle

from fsdtrain.op_work import CallWork, WorkCounter
from fsdtrain.profiled_events import (
    LAYER_RANGE,
    PHASE_RANGE,
    busy_seconds,
    collect_ops,
    collect_timeline,
    phase_ranges,
)
from fsdtrain.step_profile import PHASES, MemoryUse, Phase, StepProfile

NUM_WARM_UPS = 2  # libraries choose kernels, the optimiser makes its state, compilers compile
NUM_GPU_WARM_UPS = 4  # a CUDA graph is captured in the third step
NUM_TIMED_ON_GPU = 10


def profile_with_torch(
    step: nn.Module,
    batch: Any,
    optimizer: Optimizer,
    *,
    backend: str,
    device: str,
    dtype: str,
    on_cuda: bool = False,
    is_eager: bool = True,
    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
    update: Callable[[], object] | None = None,
    notes: tuple[str, ...] = (),
) -> StepProfile:
    """Time whole steps by the clock, and another one op by op.

    The bytes of an op are an estimate: what its tensors hold.

    Args:
        step: gives an object whose `loss` is differentiated.
        batch: what it takes.
        optimizer: of the step's parameters, which are changed.
        backend: name of the backend.
        device: in words.
        dtype: what the ops compute in, as the profile shall name it.
        on_cuda: time the GPU's kernels rather than the CPU's ops, by CUDA's own events.
        is_eager: whether the step runs op by op through PyTorch, so that its FLOPs and bytes can be
            counted and its layers be told.
        autocast: entered around the forward pass.
        update: what stands for `optimizer.step()`.
        notes: for the reader of the profile.
    """
    parts: dict[Phase, Callable[[Any], Any]] = {
        "forward": lambda _: _forward(step, batch, optimizer, autocast),
        "backward": lambda loss: loss.backward(),
        "optimizer": lambda _: (update or optimizer.step)(),
    }

    def step_once(*, synchronizes: bool = False) -> None:
        given: Any = None
        for phase in PHASES:
            with record_function(PHASE_RANGE + phase):
                given = parts[phase](given)
                if synchronizes:  # so that kernels lie within their phase
                    torch.cuda.synchronize()

    for _ in range(NUM_GPU_WARM_UPS if on_cuda else NUM_WARM_UPS):
        step_once()
    times_s, memory = _time_on_gpu(step_once) if on_cuda else _time_on_cpu(step_once)
    with _named_layers(step) if is_eager else nullcontext():
        events = _record(partial(step_once, synchronizes=on_cuda), on_cuda=on_cuda)
    flops, work = _count(step_once) if is_eager else (None, {})
    if on_cuda:
        told = f"{len(times_s)} steps one after the other, by CUDA's events: "
        notes = (*notes, told + f"{1e3 * min(times_s):.2f} to {1e3 * max(times_s):.2f} ms")
    ranges = phase_ranges(events)
    timeline = collect_timeline(events, ranges)
    return StepProfile(
        backend=backend,
        device=device,
        origin="MEASURED",
        step_time_s=median(times_s),
        ops=collect_ops(events, ranges, dtype=dtype, on_cuda=on_cuda, work=work),
        flops=flops,
        memory=memory,
        busy_s={"GPU": busy_seconds(timeline, "GPU")} if on_cuda else {},
        timeline=timeline,
        notes=notes,
    )


def _time_on_cpu(step_once: Callable[[], None]) -> tuple[list[float], tuple[MemoryUse, ...]]:
    started = time.perf_counter()
    step_once()
    return [time.perf_counter() - started], ()


def _time_on_gpu(step_once: Callable[[], None]) -> tuple[list[float], tuple[MemoryUse, ...]]:
    """Of steps one after the other, as in training: none waits for the one before."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    ends = [
        torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]  # torch's
        for _ in range(NUM_TIMED_ON_GPU + 1)
    ]
    ends[0].record()
    for end in ends[1:]:
        step_once()
        end.record()
    torch.cuda.synchronize()
    times_s = [1e-3 * start.elapsed_time(end) for start, end in zip(ends, ends[1:], strict=False)]
    capacity = torch.cuda.get_device_properties().total_memory
    peaks = {
        "allocated": torch.cuda.max_memory_allocated(),
        "reserved": torch.cuda.max_memory_reserved(),
    }
    memory = tuple(
        MemoryUse(name=f"GPU memory {name}", peak_bytes=peak, capacity_bytes=capacity)
        for name, peak in peaks.items()
    )
    return times_s, memory


def _record(step_once: Callable[[], None], *, on_cuda: bool) -> list[FunctionEvent]:
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if on_cuda else [])
    for _ in range(2):  # the first step under the profiler is slow, and thrown away
        with profile(activities=activities, record_shapes=True, with_flops=True) as recorded:
            step_once()
    events: list[FunctionEvent] = recorded.events()
    return events


def _count(
    step_once: Callable[[], None],
) -> tuple[float | None, Mapping[tuple[str, str], CallWork]]:
    """FLOPs of a step, and the work of each kind of call."""
    # It brings triton where that is installed, and importing a backend is cheap.
    from torch.utils.flop_counter import FlopCounterMode, flop_registry

    with FlopCounterMode(display=False) as counter, WorkCounter(flop_registry) as counted:
        step_once()
    return float(counter.get_total_flops()) or None, counted.work


@contextmanager
def _named_layers(step: nn.Module) -> Iterator[None]:
    """Every call of a submodule is a range with the module's path in its name."""
    open_ranges: list[record_function] = []

    def enter(name: str, *_: Any) -> None:
        open_ranges.append(record_function(LAYER_RANGE + name))
        open_ranges[-1].__enter__()  # type: ignore[no-untyped-call]  # torch's

    def leave(*_: Any) -> None:
        open_ranges.pop().__exit__(None, None, None)

    hooks: list[RemovableHandle] = []
    for name, module in step.named_modules():
        if name:
            hooks.append(module.register_forward_pre_hook(partial(enter, name)))
            hooks.append(module.register_forward_hook(leave, always_call=True))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _forward(
    step: nn.Module,
    batch: Any,
    optimizer: Optimizer,
    autocast: Callable[[], AbstractContextManager[Any]],
) -> Any:
    optimizer.zero_grad()
    with autocast():
        return step(batch).loss
