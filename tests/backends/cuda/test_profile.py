"""A profile beside the rates of its GPU; on a GPU, that it holds what the kernels did."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from fsdtrain_cuda import CudaBackend
from fsdtrain_cuda.profile import with_roofline
from fsdtrain_cuda.rates import DeviceRates
from torch.utils import _pytree

from fsdtrain.data.batch import ClipBatch
from fsdtrain.engine.step import TrainingStep
from fsdtrain.models.hydra_bev import HydraBev
from fsdtrain.report.profile_text import summary_lines
from fsdtrain.step_profile import OpProfile, StepProfile

RATES = DeviceRates(bytes_per_s=2e12, flops_per_s=500e12, dtype=torch.bfloat16)


def op(name: str, time_s: float, flops: int | None, num_bytes: int | None) -> OpProfile:
    return OpProfile(
        name=name, shapes="", dtype="bf16-mixed", num_calls=1, time_s=time_s, flops=flops,
        num_bytes=num_bytes, bound_by=None,
    )  # fmt: skip


def test_each_op_stands_below_the_roof_that_is_nearer() -> None:
    ops = (
        op("conv", 4e-3, 10**12, 10**9),  # 2 ms to multiply, 0.5 ms to move
        op("norm", 2e-3, None, 2 * 10**9),  # 1 ms to move
        op("in cache", 1e-3, None, 4 * 10**9),  # faster than memory
        op("fused", 1e-3, None, None),
        op("view", 0.0, None, 100),
    )
    profile = StepProfile(
        backend="cuda", device="d", origin="MEASURED", step_time_s=10e-3, ops=ops, flops=10**12,
        busy_s={"GPU": 8e-3},
    )  # fmt: skip
    found = with_roofline(profile, RATES)
    by_name = {each.name: each for each in found.ops}
    assert by_name["conv"].bound_by == "matrix"
    assert by_name["conv"].roofline_s == pytest.approx(2e-3)
    assert by_name["conv"].utilisation == pytest.approx(0.5)
    assert by_name["norm"].bound_by == "HBM"
    assert by_name["norm"].roofline_s == pytest.approx(1e-3)
    assert by_name["in cache"].roofline_s == 1e-3, "at its roof, not above"
    for name in ("fused", "view"):
        assert by_name[name].bound_by is by_name[name].roofline_s is None
    assert found.roofline_s == pytest.approx(4e-3)
    assert found.utilisation == pytest.approx(0.2)
    lines = dict(summary_lines(found))
    assert lines["busy"] == "GPU 80.0%"
    notes = " ".join(found.notes)
    assert "a copy moves 2000 GB/s, a bf16 product does 500.0 TFLOP/s" in notes
    assert "idle for 2.00 ms" in notes
    assert "estimated" in notes


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("options", [{}, {"compile": "default"}], ids=str)
def test_a_step_on_a_gpu(
    make_network: Callable[..., HydraBev],
    make_batch: Callable[..., ClipBatch],
    options: dict[str, Any],
) -> None:
    backend = CudaBackend(precision="bf16-mixed", **options)
    step = TrainingStep(make_network(ops=backend.op_table())).cuda()
    backend.compile_step(step)
    batch: Any = _pytree.tree_map(backend.to_device, make_batch())
    found = backend.profile_step(step, batch, torch.optim.AdamW(step.parameters(), fused=True))
    assert found.memory[0].peak_bytes <= found.memory[1].peak_bytes
    assert found.busy_s["GPU"] > 0
    kernel_s = sum(e.end_s - e.start_s for e in found.timeline if e.resource == "GPU")
    assert sum(each.time_s for each in found.ops) == pytest.approx(kernel_s, rel=1e-3)
    on_gpu = {each.name for each in found.timeline if each.resource == "GPU"}
    assert not any("Optimizer" in name or "Compiled" in name for name in on_gpu), "ranges"
    if not options:
        names = {each.name for each in found.ops if each.time_s}
        assert any(name.startswith("fsdtrain::") for name in names), "our kernels are ops"
        assert found.flops
