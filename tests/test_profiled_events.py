"""Events of a step on a GPU, made by hand: who gets the time of which kernel."""

from collections.abc import Sequence
from typing import Any

import pytest
from torch.autograd import DeviceType
from torch.autograd.profiler_util import FunctionEvent

from fsdtrain.op_work import CallWork
from fsdtrain.profiled_events import (
    LAYER_RANGE,
    PHASE_RANGE,
    busy_seconds,
    collect_ops,
    collect_timeline,
    phase_ranges,
)
from fsdtrain.step_profile import TimelineEvent


class Events:
    """One host thread and one GPU; microseconds."""

    def __init__(self) -> None:
        self.events: list[FunctionEvent] = []

    def add(self, name: str, start: float, end: float, **more: Any) -> FunctionEvent:
        number = more.pop("id", 100 + len(self.events))
        event = FunctionEvent(
            id=number, name=name, thread=1, start_us=start, end_us=end, use_device="cuda", **more
        )
        self.events.append(event)
        return event

    def op(
        self,
        name: str,
        start: float,
        end: float,
        *,
        shapes: Sequence[Sequence[int]] = (),
        caller: FunctionEvent | None = None,
        kernels: Sequence[tuple[str, float, float]] = (),
        flops: int = 0,
    ) -> FunctionEvent:
        event = self.add(name, start, end, input_shapes=shapes, flops=flops)
        if caller is not None:
            caller.append_cpu_child(event)
            event.set_cpu_parent(caller)
        for kernel, kernel_start, kernel_end in kernels:
            event.append_kernel(kernel, 0, kernel_end - kernel_start)
            self.kernel(kernel, kernel_start, kernel_end)
        return event

    def kernel(self, name: str, start: float, end: float, **more: Any) -> None:
        self.add(name, start, end, device_type=DeviceType.CUDA, **more)


@pytest.fixture
def step() -> list[FunctionEvent]:
    found = Events()
    for phase, start, end in (
        ("forward", 0, 100), ("backward", 100, 200), ("optimizer", 200, 300),
    ):  # fmt: skip
        found.add(PHASE_RANGE + phase, start, end, is_user_annotation=True)
        # The same range as the GPU sees it: no kernel.
        found.kernel(PHASE_RANGE + phase, start + 5, end - 5)
    found.kernel("Optimizer.step#AdamW.step", 215, 235)
    found.kernel("Torch-Compiled Region: 0/0", 120, 165, is_user_annotation=True)
    layer = found.add(LAYER_RANGE + "stem", 1, 40, is_user_annotation=True)
    conv = found.op("aten::conv2d", 2, 30, shapes=[[1, 3, 8, 8], [4, 3, 3, 3]], flops=1000)
    layer.append_cpu_child(conv)
    conv.set_cpu_parent(layer)
    outer = found.op("aten::convolution", 3, 29, shapes=[[1, 3, 8, 8], [4, 3, 3, 3]], caller=conv)
    found.op(
        "aten::cudnn_convolution", 4, 28, shapes=[[1, 3, 8, 8], [4, 3, 3, 3]], caller=outer,
        kernels=[("sm90_gemm", 30, 50)],
    )  # fmt: skip
    found.op(
        "fsdtrain::bev_pool",
        50,
        60,
        shapes=[[2, 8]],
        kernels=[("_pool", 61, 64), ("_pool", 64, 71)],
    )
    # A compiled backward pass: its kernels belong to no op. The second is like one of an op, and
    # its number is that of an op with FLOPs.
    found.add("CompiledFunctionBackward", 110, 120)
    found.kernel("triton_poi_fused", 121, 151)
    found.kernel("_pool", 160, 163, id=conv.id)
    found.op("aten::_fused_adamw_", 210, 220, kernels=[("adamw", 221, 231)])
    return found.events


WORK = {
    # The profiler has counted the same FLOPs.
    ("aten::convolution", "1x3x8x8, 4x3x3x3"): CallWork(flops=1000, num_bytes=2000),
    # Below another one that has been counted.
    ("aten::cudnn_convolution", "1x3x8x8, 4x3x3x3"): CallWork(flops=7, num_bytes=7),
    ("fsdtrain::bev_pool", "2x8"): CallWork(flops=0, num_bytes=64),
    ("aten::_fused_adamw_", ""): CallWork(flops=50, num_bytes=0),
}


def test_kernels_go_to_the_ops_that_launched_them_or_stand_for_themselves(
    step: list[FunctionEvent],
) -> None:
    ranges = phase_ranges(step)
    assert ranges["backward"] == (100, 200), "by the host's clock"
    ops = collect_ops(step, ranges, dtype="bf16", on_cuda=True, work=WORK)
    times = [(op.name, op.phase, pytest.approx(1e6 * op.time_s)) for op in ops if op.time_s]
    assert times == [
        ("triton_poi_fused", "backward", 30),
        ("aten::cudnn_convolution", "forward", 20),
        ("fsdtrain::bev_pool", "forward", 10),
        ("aten::_fused_adamw_", "optimizer", 10),
        ("_pool", "backward", 3),
    ]
    on_gpu_s = sum(end - start for start, end in [(30, 50), (61, 71), (121, 151), (160, 163)])
    assert 1e6 * sum(op.time_s for op in ops) == pytest.approx(on_gpu_s + 10)


def test_work_and_bytes_go_to_the_op_that_does_it(step: list[FunctionEvent]) -> None:
    ops = collect_ops(step, phase_ranges(step), dtype="bf16", on_cuda=True, work=WORK)
    assert {op.name: op.flops for op in ops if op.flops} == {
        "aten::cudnn_convolution": 1000, "aten::_fused_adamw_": 50,
    }  # fmt: skip
    assert {op.name: op.num_bytes for op in ops if op.num_bytes} == {
        "aten::cudnn_convolution": 2000, "fsdtrain::bev_pool": 64,
    }  # fmt: skip
    layers = {op.name: op.layer for op in ops}
    assert layers["aten::cudnn_convolution"] == "stem"
    assert layers["fsdtrain::bev_pool"] is None


def test_the_gpus_track_has_kernels_and_no_ranges(step: list[FunctionEvent]) -> None:
    timeline = collect_timeline(step, phase_ranges(step))
    on_gpu = [(event.name, event.start_s) for event in timeline if event.resource == "GPU"]
    assert [name for name, _ in on_gpu] == [
        "sm90_gemm", "_pool", "_pool", "triton_poi_fused", "_pool", "adamw",
    ]  # fmt: skip
    assert on_gpu[0][1] == pytest.approx(30e-6)
    on_cpu = {event.name for event in timeline if event.resource == "CPU thread 1"}
    assert on_cpu == {"conv2d", "fsdtrain::bev_pool", "_fused_adamw_"}, "the outermost"
    assert busy_seconds(timeline, "GPU") == pytest.approx(73e-6)


def test_two_streams_at_once_are_busy_once() -> None:
    spans = [(0.0, 2.0), (1.0, 1.5), (1.8, 3.0), (5.0, 6.0), (5.0, 5.5)]
    timeline = [
        TimelineEvent(resource="GPU", name="k", start_s=start, end_s=end) for start, end in spans
    ] + [TimelineEvent(resource="CPU thread 1", name="op", start_s=0.0, end_s=9.0)]
    assert busy_seconds(timeline, "GPU") == pytest.approx(4.0)
    assert busy_seconds([], "GPU") == 0.0
