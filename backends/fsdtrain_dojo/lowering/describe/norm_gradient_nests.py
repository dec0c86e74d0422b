"""The kernels that gradients of norms consist of: reductions and element-wise ones.

With xhat = (x - mean) * rstd, and m elements in a statistic, which sums are over, the gradient of
the input is rstd * (dy w - sum(dy w) / m - xhat * sum(dy w xhat) / m). An RMS norm has no mean, and
of the sums the second one only.
"""

from collections.abc import Mapping

from torch import Tensor

from fsdtrain_dojo.lowering.describe.nest import Indexed
from fsdtrain_dojo.lowering.describe.norm_nests import Norm, centred
from fsdtrain_dojo.lowering.kernel import Kernel, Value


def make_gradient_sums(
    norm: Norm,
    *,
    gradient: Value,
    data: Value,
    mean: Value | None,
    rstd: Value,
    weight: Value | None,
    total: Value | None,
    product: Value,
) -> Kernel:
    """Of every statistic sum(dy w), not for an RMS norm, and sum(dy w xhat)."""

    def add(of: Mapping[str, Tensor]) -> list[Tensor]:
        scaled = of["dy"] * of["weight"] if "weight" in of else of["dy"]
        products = (scaled * (centred(of) * of["rstd"])).sum(norm.reduced, keepdim=True)
        if total is None:
            return [products]
        return [scaled.sum(norm.reduced, keepdim=True), products]

    return norm.make_kernel(
        ".sums",
        data={"dy": gradient, "x": data},
        statistics={"mean": mean, "rstd": rstd},
        parameters={"weight": weight},
        writes=[Indexed(each, norm.statistics) for each in (total, product) if each is not None],
        formula=add,
        flops=3 + sum(each is not None for each in (mean, weight, total)),
    )


def make_input_gradient(
    norm: Norm,
    *,
    gradient: Value,
    data: Value,
    mean: Value | None,
    rstd: Value,
    weight: Value | None,
    total: Value | None,
    product: Value,
    out: Value,
) -> Kernel:
    """See the head of this file.

    Where statistics run over the same loops as parameters, sums come without the weight.
    """
    is_weight_common = norm.statistics == norm.parameters

    def differentiate(of: Mapping[str, Tensor]) -> Tensor:
        dy, scale = of["dy"], of["rstd"]
        if "weight" in of and is_weight_common:
            scale = scale * of["weight"]
        elif "weight" in of:
            dy = dy * of["weight"]
        if "total" in of:
            dy = dy - of["total"] / norm.num_reduced
        return scale * (dy - centred(of) * (of["rstd"] * of["product"] / norm.num_reduced))

    is_weighted = weight is not None and not is_weight_common
    return norm.make_kernel(
        ".dx",
        data={"dy": gradient, "x": data},
        statistics={"mean": mean, "rstd": rstd, "total": total, "product": product},
        parameters={"weight": weight},
        writes=[Indexed(out, norm.data)],
        formula=differentiate,
        flops=3 + is_weighted + sum(each is not None for each in (mean, total)),
    )


def make_parameter_gradients(
    norm: Norm,
    *,
    gradient: Value,
    data: Value,
    mean: Value | None,
    rstd: Value,
    dweight: Value | None,
    dbias: Value | None,
) -> Kernel:
    """The sums dweight = sum(dy xhat) and dbias = sum(dy), of those that are wanted."""

    def add(of: Mapping[str, Tensor]) -> list[Tensor]:
        terms = []
        if dweight is not None:
            terms.append(of["dy"] * (centred(of) * of["rstd"]))
        if dbias is not None:
            terms.append(of["dy"])
        return [each.sum(norm.reduced_for_parameters, keepdim=True) for each in terms]

    needs_data = dweight is not None
    return norm.make_kernel(
        ".dw" if needs_data else ".db",
        data={"dy": gradient, "x": data if needs_data else None},
        statistics={"mean": mean, "rstd": rstd} if needs_data else {},
        writes=[Indexed(each, norm.parameters) for each in (dweight, dbias) if each is not None],
        formula=add,
        flops=(3 + (mean is not None)) * needs_data + (dbias is not None),
    )
