"""Layer, group and RMS norms and their gradients, as kernels; rules of all norms."""

from typing import Any

import torch

from fsdtrain_dojo.lowering.describe.batch_norm import (
    describe_batch_norm,
    describe_batch_norm_backward,
)
from fsdtrain_dojo.lowering.describe.nest import Over, bind
from fsdtrain_dojo.lowering.describe.norm_gradient_nests import (
    make_gradient_sums,
    make_input_gradient,
    make_parameter_gradients,
)
from fsdtrain_dojo.lowering.describe.norm_nests import (
    Norm,
    expand,
    make_mean,
    make_result,
    make_rstd,
    make_variance,
)
from fsdtrain_dojo.lowering.kernel import Kernel, Loop, Value
from fsdtrain_dojo.lowering.op_call import Describe, Expansion, OpCall


def describe_layer_norm(call: OpCall) -> Expansion:
    """Of native_layer_norm: over the last dimensions."""
    given = bind(call, "input normalized_shape weight bias eps")
    norm = _layer_norm(call, given["input"], len(given["normalized_shape"]))
    return _describe_rows(norm, given, given["eps"], *call.outputs)


def describe_rms_norm(call: OpCall) -> Expansion:
    """Of _fused_rms_norm: over the last dimensions, and not centred."""
    given = bind(call, "input normalized_shape weight eps")
    norm = _layer_norm(call, given["input"], len(given["normalized_shape"]))
    eps = torch.finfo(torch.float32).eps if given["eps"] is None else given["eps"]
    out, rstd = call.outputs
    return _describe_rows(norm, given | {"bias": None}, eps, out, None, rstd, has_mean=False)


def describe_group_norm(call: OpCall) -> Expansion:
    """Of native_group_norm: over groups of channels of an image."""
    given = bind(call, "input weight bias N C HxW group eps")
    norm = _group_norm(call, given["input"], given["group"])
    return _describe_rows(norm, given, given["eps"], *call.outputs)


def describe_layer_norm_backward(call: OpCall) -> Expansion:
    """Of native_layer_norm_backward."""
    given = bind(call, "gradient input normalized_shape mean rstd weight bias mask")
    norm = _layer_norm(call, given["input"], len(given["normalized_shape"]))
    return _describe_rows_backward(norm, given, *call.outputs)


def describe_rms_norm_backward(call: OpCall) -> Expansion:
    """Of _fused_rms_norm_backward."""
    given = bind(call, "gradient input normalized_shape rstd weight mask")
    norm = _layer_norm(call, given["input"], len(given["normalized_shape"]))
    dx, dweight = call.outputs
    return _describe_rows_backward(norm, given | {"mean": None}, dx, dweight, None)


def describe_group_norm_backward(call: OpCall) -> Expansion:
    """Of native_group_norm_backward."""
    given = bind(call, "gradient input mean rstd weight N C HxW group mask")
    norm = _group_norm(call, given["input"], given["group"])
    return _describe_rows_backward(norm, given, *call.outputs)


def _describe_rows(
    norm: Norm,
    given: dict[str, Any],
    eps: float,
    out: Value | None,
    mean_output: Value | None,
    rstd_output: Value | None,
    *,
    has_mean: bool = True,
) -> Expansion:
    assert out is not None
    data = given["input"]
    mean = norm.statistic(".mean", mean_output) if has_mean else None
    variance, rstd = norm.statistic(".variance"), norm.statistic(".rstd", rstd_output)
    kernels = [] if mean is None else [make_mean(norm, data, mean)]
    kernels += [
        make_variance(norm, data, mean, variance),
        make_rstd(norm, variance, rstd, eps),
        make_result(
            norm, data=data, mean=mean, rstd=rstd, weight=given["weight"], bias=given["bias"],
            out=out,
        ),
    ]  # fmt: skip
    return expand(norm.call, kernels, mean, variance, rstd)


def _describe_rows_backward(
    norm: Norm,
    given: dict[str, Any],
    dx: Value | None,
    dweight: Value | None,
    dbias: Value | None,
) -> Expansion:
    shared: dict[str, Any] = {
        "gradient": given["gradient"],
        "data": given["input"],
        "mean": given["mean"],
        "rstd": given["rstd"],
    }
    kernels: list[Kernel] = []
    sums: dict[str, Any] = {}
    if dx is not None:
        sums = {
            "weight": given["weight"],
            "total": None if given["mean"] is None else norm.statistic(".total"),
            "product": norm.statistic(".product"),
        }
        kernels.append(make_gradient_sums(norm, **shared, **sums))
        kernels.append(make_input_gradient(norm, **shared, **sums, out=dx))
    if dweight is not None or dbias is not None:
        kernels.append(make_parameter_gradients(norm, **shared, dweight=dweight, dbias=dbias))
    return expand(norm.call, kernels, sums.get("total"), sums.get("product"))


def _layer_norm(call: OpCall, data: Value, num_features: int) -> Norm:
    num_rows = len(data.shape) - num_features
    rows, features = tuple(range(num_rows)), tuple(range(num_rows, len(data.shape)))
    return Norm(
        call=call,
        loops=tuple(
            Loop(f"row{axis}" if axis < num_rows else f"feature{axis - num_rows}", size)
            for axis, size in enumerate(data.shape)
        ),
        data=rows + features,
        statistics=rows + (None,) * num_features,
        parameters=features,
    )


def _group_norm(call: OpCall, data: Value, num_groups: int) -> Norm:
    batch, channels, *axes = data.shape
    points = tuple(Loop(f"i{axis}", size) for axis, size in enumerate(axes))
    if num_groups in (1, channels):
        # One loop is enough for the channels: of the only group, or each a group.
        return Norm(
            call=call,
            loops=(Loop("n", batch), Loop("c", channels), *points),
            data=tuple(range(len(data.shape))),
            statistics=(0, 1 if num_groups == channels else None),
            parameters=(1,),
        )
    loops = (
        Loop("n", batch),
        Loop("g", num_groups),
        Loop("c", channels // num_groups, is_splittable=False),
        *points,
    )
    over: tuple[Over, ...] = (0, (1, 2), *range(3, len(loops)))
    return Norm(call=call, loops=loops, data=over, statistics=(0, 1), parameters=((1, 2),))


RULES: dict[str, Describe] = {
    "aten.native_batch_norm": describe_batch_norm,
    "aten._native_batch_norm_legit": describe_batch_norm,
    "aten._native_batch_norm_legit_functional": describe_batch_norm,
    "aten._native_batch_norm_legit_no_training": describe_batch_norm,
    "aten.native_batch_norm_backward": describe_batch_norm_backward,
    "aten.native_layer_norm": describe_layer_norm,
    "aten.native_layer_norm_backward": describe_layer_norm_backward,
    "aten.native_group_norm": describe_group_norm,
    "aten.native_group_norm_backward": describe_group_norm_backward,
    "aten._fused_rms_norm": describe_rms_norm,
    "aten._fused_rms_norm_backward": describe_rms_norm_backward,
}
