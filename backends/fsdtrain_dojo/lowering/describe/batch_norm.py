"""Batch norm and its gradients, as kernels."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from fsdtrain_dojo.lowering.describe.nest import Indexed, bind
from fsdtrain_dojo.lowering.describe.norm_gradient_nests import (
    make_gradient_sums,
    make_input_gradient,
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
from fsdtrain_dojo.lowering.op_call import Expansion, OpCall


def describe_batch_norm(call: OpCall) -> Expansion:
    """Of all forms of batch norm: with statistics of the batch, or with running ones."""
    given = _bind_batch_norm(call)
    data, weight, bias = given["input"], given["weight"], given["bias"]
    norm = _batch_norm(call, data)
    out, *others = call.outputs
    values = []
    if not given["training"]:
        assert not any(each is not None and each.num_elements for each in others), call.name
        mean, rstd = given["running_mean"], norm.statistic(".rstd")
        kernels = [make_rstd(norm, given["running_var"], rstd, given["eps"])]
    else:
        mean, rstd = norm.statistic(".mean", others[0]), norm.statistic(".rstd", others[1])
        variance = norm.statistic(".variance")
        kernels = [
            make_mean(norm, data, mean),
            make_variance(norm, data, mean, variance),
            make_rstd(norm, variance, rstd, given["eps"]),
        ]
        kernels += _renew_running(norm, given, (mean, variance), others[2:])
        values = [mean, variance]
    if out is not None:  # what checkpointing computes again may be the statistics only
        kernels.append(
            make_result(norm, data=data, mean=mean, rstd=rstd, weight=weight, bias=bias, out=out)
        )
    return expand(call, kernels, *values, rstd)


def describe_batch_norm_backward(call: OpCall) -> Expansion:
    """Of native_batch_norm_backward.

    Sums of gradients for each channel, over the batch, serve all three results.
    """
    given = bind(
        call,
        "gradient input weight running_mean running_var save_mean save_invstd train eps mask",
    )
    norm = _batch_norm(call, given["input"])
    mean, rstd = given["save_mean"], given["save_invstd"]
    dx, dweight, dbias = call.outputs
    kernels: list[Kernel] = []
    if not given["train"]:
        mean, rstd = given["running_mean"], norm.statistic(".rstd")
        kernels.append(make_rstd(norm, given["running_var"], rstd, given["eps"]))
    total, product = norm.statistic(".total", dbias), norm.statistic(".product", dweight)
    if dweight is not None or dbias is not None or given["train"]:
        kernels.append(
            make_gradient_sums(
                norm, gradient=given["gradient"], data=given["input"], mean=mean, rstd=rstd,
                weight=None, total=total, product=product,
            )
        )  # fmt: skip
    if dx is not None:
        sums = {"total": total, "product": product} if given["train"] else {}
        kernels.append(_batch_norm_dx(norm, given, mean, rstd, sums, dx))
    return expand(call, kernels, rstd, total, product)


def _bind_batch_norm(call: OpCall) -> dict[str, Any]:
    """The arguments of any form of batch norm."""
    names = "input weight bias running_mean running_var training momentum eps"
    if call.op == "aten._native_batch_norm_legit_no_training":
        return bind(call, names.replace("training ", "")) | {"training": False}
    if isinstance(call.args[3], bool):  # no_stats: nothing that runs along
        names = names.replace("running_mean running_var ", "")
        return bind(call, names) | {"running_mean": None, "running_var": None}
    return bind(call, names)


def _batch_norm(call: OpCall, data: Value) -> Norm:
    batch, channels, *axes = data.shape
    loops = (
        Loop("n", batch),
        Loop("c", channels),
        *(Loop(f"i{axis}", size) for axis, size in enumerate(axes)),
    )
    return Norm(
        call=call, loops=loops, data=tuple(range(len(loops))), statistics=(1,), parameters=(1,)
    )


def _renew_running(
    norm: Norm,
    given: dict[str, Any],
    fresh: tuple[Value, Value],
    outputs: Sequence[Value | None],
) -> list[Kernel]:
    """Running statistics as they are after this batch, of those that are wanted."""
    momentum: float = given["momentum"]
    # The variance that runs along is the unbiased one.
    correction = norm.num_reduced / max(norm.num_reduced - 1, 1)
    kernels = []
    for name, new, factor, output in zip(
        ("running_mean", "running_var"), fresh, (1.0, correction), outputs, strict=False
    ):
        if output is None:
            continue

        def renew(tensors: Sequence[Tensor], factor: float = factor) -> Tensor:
            old, new = tensors
            return old * (1 - momentum) + new * (momentum * factor)

        kernels.append(
            norm.make_small_kernel(
                f".{name}", reads=[given[name], new], writes=[output], formula=renew, flops=3
            )
        )
    return kernels


def _batch_norm_dx(
    norm: Norm,
    given: dict[str, Any],
    mean: Value,
    rstd: Value,
    sums: dict[str, Value],
    out: Value,
) -> Kernel:
    """As of any norm, but that the weight is the same for all elements of a statistic."""
    if sums:
        return make_input_gradient(
            norm, gradient=given["gradient"], data=given["input"], mean=mean, rstd=rstd,
            weight=given["weight"], out=out, **sums,
        )  # fmt: skip
    return norm.make_kernel(
        ".dx",
        data={"dy": given["gradient"]},
        statistics={"rstd": rstd},
        parameters={"weight": given["weight"]},
        writes=[Indexed(out, norm.data)],
        formula=lambda of: of["dy"] * (of["rstd"] * of["weight"] if "weight" in of else of["rstd"]),
        flops=1,
    )
