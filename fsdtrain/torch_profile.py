"""Profile a training step with torch.profiler, for backends that run ATen ops.

It knows no backend: what an op computes in and whether a GPU's kernels are timed, it is told.
"""

import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.autograd.profiler_util import FunctionEvent
from torch.optim import Optimizer
from torch.profiler import ProfilerActivity, profile, record_function
from torch.utils.hooks import RemovableHandle

from fsdtrain.step_profile import PHASES, OpProfile, Origin, Phase, StepProfile, TimelineEvent

NUM_WARM_UPS = 2  # libraries choose kernels, the optimiser makes its state, compilers compile
PHASE_RANGE = "fsdtrain phase: "
LAYER_RANGE = "fsdtrain layer: "
MICROSECOND = 1e-6


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
    """Time one step by the clock, and another one op by op.

    Args:
        step: gives an object whose `loss` is differentiated.
        batch: what it takes.
        optimizer: of the step's parameters, which are changed.
        backend: name of the backend.
        device: in words.
        dtype: what the ops compute in, as the profile shall name it.
        on_cuda: time the GPU's kernels rather than the CPU's ops.
        is_eager: whether the step runs op by op through PyTorch, so that its FLOPs can be counted
            and its layers be told.
        autocast: entered around the forward pass.
        update: what stands for `optimizer.step()`.
        notes: for the reader of the profile.
    """
    origin: Origin = "MEASURED"
    parts: dict[Phase, Callable[[Any], Any]] = {
        "forward": lambda _: _forward(step, batch, optimizer, autocast),
        "backward": lambda loss: loss.backward(),
        "optimizer": lambda _: (update or optimizer.step)(),
    }

    def step_once() -> None:
        given: Any = None
        for phase in PHASES:
            with record_function(PHASE_RANGE + phase):
                given = parts[phase](given)
        if on_cuda:
            torch.cuda.synchronize()

    for _ in range(NUM_WARM_UPS):
        step_once()
    started = time.perf_counter()
    step_once()
    step_time_s = time.perf_counter() - started
    with _named_layers(step) if is_eager else nullcontext():
        events = _record(step_once, on_cuda=on_cuda)
    ranges = _phase_ranges(events)
    begin = min(start for start, _ in ranges.values())
    ops = _collect_ops(events, ranges, begin, dtype=dtype, on_cuda=on_cuda)
    return StepProfile(
        backend=backend,
        device=device,
        origin=origin,
        step_time_s=step_time_s,
        ops=ops,
        flops=_count_flops(step_once) if is_eager else None,
        timeline=_timeline(events, begin),
        notes=notes,
    )


def _record(step_once: Callable[[], None], *, on_cuda: bool) -> list[FunctionEvent]:
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if on_cuda else [])
    for _ in range(2):  # the first step under the profiler is slow, and thrown away
        with profile(activities=activities, record_shapes=True, with_flops=True) as recorded:
            step_once()
    events: list[FunctionEvent] = recorded.events()
    return events


def _count_flops(step_once: Callable[[], None]) -> float | None:
    # It brings triton where that is installed, and importing a backend is cheap.
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        step_once()
    return float(counter.get_total_flops()) or None


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


def _phase_ranges(events: Sequence[FunctionEvent]) -> dict[Phase, tuple[float, float]]:
    """Start and end of each phase in microseconds."""
    found = {
        event.name: (event.time_range.start, event.time_range.end)
        for event in events
        if event.name.startswith(PHASE_RANGE) and _is_on_cpu(event)
    }
    return {phase: found[PHASE_RANGE + phase] for phase in PHASES}


def _collect_ops(
    events: Sequence[FunctionEvent],
    ranges: dict[Phase, tuple[float, float]],
    begin: float,
    *,
    dtype: str,
    on_cuda: bool,
) -> tuple[OpProfile, ...]:
    """Calls of one op with equal shapes in one phase and layer together, the slowest first."""
    alike: dict[tuple[str, str, Phase, str | None], list[FunctionEvent]] = defaultdict(list)
    layers = _layers_by_sequence(events)
    flops: dict[int, int] = defaultdict(int)
    for event in events:
        if event.flops:
            # Counted at the outermost call, which leaves the work to another.
            flops[_worker(event).id] += event.flops
        if not event.name.startswith("aten::") or not _is_on_cpu(event):
            continue
        # By time, not by the caller: on a GPU, autograd calls from a thread of its own.
        phase = next(
            (phase for phase in PHASES if event.time_range.start <= ranges[phase][1]), PHASES[-1]
        )
        layer = _layer_of(event, layers)
        alike[event.name, _describe_shapes(event), phase, layer].append(event)
    ops = [
        OpProfile(
            name=name,
            shapes=shapes,
            dtype=dtype,
            num_calls=len(calls),
            time_s=MICROSECOND
            * sum(
                call.self_device_time_total if on_cuda else call.self_cpu_time_total
                for call in calls
            ),
            flops=sum(flops[call.id] for call in calls) or None,
            num_bytes=None,
            bound_by=None,
            phase=phase,
            layer=layer,
            start_s=MICROSECOND * (min(call.time_range.start for call in calls) - begin),
        )
        for (name, shapes, phase, layer), calls in alike.items()
    ]
    return tuple(sorted(ops, key=lambda op: -op.time_s))


def _worker(event: FunctionEvent) -> FunctionEvent:
    """The op below `event` that takes most of its time by itself."""
    below = [_worker(child) for child in event.cpu_children if child.name.startswith("aten::")]
    return max([event, *below], key=lambda each: each.self_cpu_time_total)


def _timeline(events: Sequence[FunctionEvent], begin: float) -> tuple[TimelineEvent, ...]:
    """A track for each thread's outermost ops, and one for the kernels of the GPU."""
    threads = sorted({event.thread for event in events if _is_on_cpu(event)})
    found = []
    for event in events:
        start = MICROSECOND * (event.time_range.start - begin)
        end = MICROSECOND * (event.time_range.end - begin)
        if not _is_on_cpu(event):
            resource = "GPU"
        elif event.name.startswith("aten::") and not _is_within_op(event):
            resource = f"CPU thread {threads.index(event.thread) + 1}"
        else:
            continue
        found.append(
            TimelineEvent(
                resource=resource, name=event.name.removeprefix("aten::"), start_s=start, end_s=end
            )
        )
    return tuple(sorted(found, key=lambda event: (event.resource, event.start_s)))


def _is_within_op(event: FunctionEvent) -> bool:
    return any(caller.name.startswith("aten::") for caller in _callers(event))


def _callers(event: FunctionEvent) -> Iterator[FunctionEvent]:
    """From the inside out."""
    caller = event.cpu_parent
    while caller is not None:
        yield caller
        caller = caller.cpu_parent


def _layers_by_sequence(events: Sequence[FunctionEvent]) -> dict[int, str]:
    """The layer whose forward pass made the autograd node of each sequence number."""
    found = {}
    for event in sorted(events, key=lambda each: each.time_range.start):
        layer = _layer_around(event)
        if layer is not None and event.sequence_nr >= 0:
            # Ops that make no node carry the number of the next one: the last is the one.
            found[event.sequence_nr] = layer
    return found


def _layer_of(event: FunctionEvent, layers: dict[int, str]) -> str | None:
    """Of a backward op, that of the node it works for."""
    around = _layer_around(event)
    if around is not None:
        return around
    nodes = (caller for caller in _callers(event) if caller.name.startswith("autograd::"))
    node = next(nodes, None)
    return None if node is None else layers.get(node.sequence_nr)


def _layer_around(event: FunctionEvent) -> str | None:
    names = (caller.name for caller in _callers(event))
    inner = next((name for name in names if name.startswith(LAYER_RANGE)), None)
    return None if inner is None else inner.removeprefix(LAYER_RANGE)


def _is_on_cpu(event: FunctionEvent) -> bool:
    return event.device_type.name == "CPU"


def _describe_shapes(event: FunctionEvent) -> str:
    """4x24x48x48, 24x24x3x3: the tensors among an op's arguments."""
    shapes: Any = event.input_shapes or ()  # of each argument; torch's stub says of the first
    return ", ".join("x".join(map(str, shape)) for shape in shapes if shape)
