"""Reads the events of torch.profiler: which op ran for how long, in which phase and layer.

It does not run anything, and knows of a GPU only that its kernels are events of their own.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence

from torch.autograd.profiler_util import FunctionEvent

from fsdtrain.op_work import CallWork, describe_shapes
from fsdtrain.step_profile import PHASES, OpProfile, Phase, TimelineEvent

PHASE_RANGE = "fsdtrain phase: "
LAYER_RANGE = "fsdtrain layer: "
RANGES = (PHASE_RANGE, LAYER_RANGE, "Optimizer.")  # the last one is torch's
MICROSECOND = 1e-6
# aten::mm, fsdtrain::bev_pool; what autograd does itself is no op.
OP_NAME = re.compile(r"(?!autograd::)[A-Za-z_]\w*::\w+")


def phase_ranges(events: Sequence[FunctionEvent]) -> dict[Phase, tuple[float, float]]:
    """Start and end of each phase in microseconds, by the host's clock."""
    found = {
        event.name: (event.time_range.start, event.time_range.end)
        for event in events
        if event.name.startswith(PHASE_RANGE) and _is_on_cpu(event)
    }
    return {phase: found[PHASE_RANGE + phase] for phase in PHASES}


def collect_ops(
    events: Sequence[FunctionEvent],
    ranges: Mapping[Phase, tuple[float, float]],
    *,
    dtype: str,
    on_cuda: bool,
    work: Mapping[tuple[str, str], CallWork],
) -> tuple[OpProfile, ...]:
    """Calls of one op with equal shapes in one phase and layer together, the slowest first.

    On a GPU the time of an op is that of its kernels; kernels that no op has launched, as those of
    a compiled step, are ops by their own names.

    Args:
        events: of one step.
        ranges: of its phases.
        dtype: what the ops compute in.
        on_cuda: whether kernels are timed, or what the host does.
        work: of one call by name and shapes of an op.
    """
    alike: dict[tuple[str, str, Phase, str | None], list[FunctionEvent]] = defaultdict(list)
    layers = _layers_by_sequence(events)
    flops: dict[int, int] = defaultdict(int)
    num_bytes: dict[int, int] = defaultdict(int)
    for event in events:
        if event.flops:
            # Counted at the outermost call, which leaves the work to another.
            worker = _worker(event, on_cuda=on_cuda)
            flops[worker.id] = max(flops[worker.id], event.flops)
        if not _is_op(event):
            continue
        call = work.get(_kind(event))
        if call is not None and not any(_kind(each) in work for each in _ops(event)):
            worker = _worker(event, on_cuda=on_cuda)
            # The profiler has formulas of its own, for fewer ops.
            flops[worker.id] = max(flops[worker.id], call.flops)
            num_bytes[worker.id] += call.num_bytes
        # By time, not by the caller: on a GPU, autograd calls from a thread of its own.
        phase = _phase_at(event, ranges)
        alike[*_kind(event), phase, _layer_of(event, layers)].append(event)
    if on_cuda:
        for event in _kernels_of_no_op(events):
            alike[event.name, "", _phase_at(event, ranges), None].append(event)
    begin = min(start for start, _ in ranges.values())
    ops = [
        OpProfile(
            name=name,
            shapes=shapes,
            dtype=dtype,
            num_calls=len(calls),
            time_s=MICROSECOND * sum(_own_time(call, on_cuda=on_cuda) for call in calls),
            flops=_sum(flops, calls),
            num_bytes=_sum(num_bytes, calls),
            bound_by=None,
            phase=phase,
            layer=layer,
            start_s=MICROSECOND * (min(call.time_range.start for call in calls) - begin),
        )
        for (name, shapes, phase, layer), calls in alike.items()
    ]
    return tuple(sorted(ops, key=lambda op: -op.time_s))


def collect_timeline(
    events: Sequence[FunctionEvent], ranges: Mapping[Phase, tuple[float, float]]
) -> tuple[TimelineEvent, ...]:
    """A track for each thread's outermost ops, and one for the kernels of the GPU."""
    begin = min(start for start, _ in ranges.values())
    threads = sorted({event.thread for event in events if _is_on_cpu(event)})
    found = []
    for event in events:
        if _is_kernel(event):
            resource = "GPU"
        elif _is_op(event) and not any(_ops(event)):
            resource = f"CPU thread {threads.index(event.thread) + 1}"
        else:
            continue
        found.append(
            TimelineEvent(
                resource=resource,
                name=event.name.removeprefix("aten::"),
                start_s=MICROSECOND * (event.time_range.start - begin),
                end_s=MICROSECOND * (event.time_range.end - begin),
            )
        )
    return tuple(sorted(found, key=lambda event: (event.resource, event.start_s)))


def busy_seconds(timeline: Sequence[TimelineEvent], resource: str) -> float:
    """For how long at least one event kept the resource busy."""
    total_s, end_s = 0.0, float("-inf")
    own = (event for event in timeline if event.resource == resource)
    for event in sorted(own, key=lambda event: event.start_s):
        total_s += max(0.0, event.end_s - max(event.start_s, end_s))
        end_s = max(end_s, event.end_s)
    return total_s


def _sum(counted: Mapping[int, int], calls: Sequence[FunctionEvent]) -> int | None:
    # A kernel may have the number of an op.
    return sum(counted.get(call.id, 0) for call in calls if _is_on_cpu(call)) or None


def _kind(event: FunctionEvent) -> tuple[str, str]:
    return event.name, describe_shapes(event.input_shapes or ())


def _is_op(event: FunctionEvent) -> bool:
    return _is_on_cpu(event) and OP_NAME.fullmatch(event.name) is not None


def _is_on_cpu(event: FunctionEvent) -> bool:
    return event.device_type.name == "CPU"


def _is_kernel(event: FunctionEvent) -> bool:
    """On the GPU; what ran there within a named range is an event of the range's name as well."""
    is_range = event.is_user_annotation or event.name.startswith(RANGES)
    return not _is_on_cpu(event) and not is_range


def _own_time(event: FunctionEvent, *, on_cuda: bool) -> float:
    if _is_kernel(event):
        return _duration(event)
    return float(event.self_device_time_total if on_cuda else event.self_cpu_time_total)


def _duration(event: FunctionEvent) -> float:
    return float(event.time_range.end - event.time_range.start)


def _kernels_of_no_op(events: Sequence[FunctionEvent]) -> list[FunctionEvent]:
    """An op only tells names and times of its kernels, and so they are told apart."""
    launched = Counter(
        (kernel.name, kernel.duration) for event in events if _is_op(event)
        for kernel in event.kernels
    )  # fmt: skip
    found = []
    for event in events:
        if not _is_kernel(event):
            continue
        key = (event.name, _duration(event))
        if launched[key]:
            launched[key] -= 1
        else:
            found.append(event)
    return found


def _phase_at(event: FunctionEvent, ranges: Mapping[Phase, tuple[float, float]]) -> Phase:
    return next(
        (phase for phase in PHASES if event.time_range.start <= ranges[phase][1]), PHASES[-1]
    )


def _worker(event: FunctionEvent, *, on_cuda: bool) -> FunctionEvent:
    """The op below `event` that takes most of its time by itself."""
    below = [_worker(child, on_cuda=on_cuda) for child in event.cpu_children if _is_op(child)]
    return max([event, *below], key=lambda each: _own_time(each, on_cuda=on_cuda))


def _ops(event: FunctionEvent) -> Iterator[FunctionEvent]:
    """Those that `event` was called by."""
    return (caller for caller in _callers(event) if _is_op(caller))


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


def _layer_of(event: FunctionEvent, layers: Mapping[int, str]) -> str | None:
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
