"""Norms and their gradients: pieces against ATen."""

import pytest
import torch
from fsdtrain_dojo.lowering.describe.normalization import RULES
from fsdtrain_dojo.lowering.kernel import Kernel
from torch import Tensor

from tests.backends.dojo.lowering.pieces import check_kernels, make_call

aten = torch.ops.aten
TRAINED = (0, 1, 2, 3, 4)
each_affine = pytest.mark.parametrize("is_affine", [True, False])
each_shape = pytest.mark.parametrize("shape", [(5, 7), (3, 4, 11), (3, 5, 6, 7), (2, 3, 4, 2, 5)])


def by_name(kernels: tuple[Kernel, ...]) -> dict[str, Kernel]:
    return {kernel.name.removeprefix("op"): kernel for kernel in kernels}


def parameters(size: int | tuple[int, ...], is_affine: bool) -> tuple[Tensor | None, Tensor | None]:
    return (torch.randn(size), torch.randn(size)) if is_affine else (None, None)


@each_affine
@each_shape
def test_batch_norm_of_a_batch(shape: tuple[int, ...], is_affine: bool):
    data = torch.randn(shape) * 2 + 1
    weight, bias = parameters(shape[1], is_affine)
    running = torch.randn(shape[1]), torch.rand(shape[1])
    call, tensors = make_call(
        aten._native_batch_norm_legit_functional.default,
        data, weight, bias, *running, True, 0.2, 1e-3,
    )  # fmt: skip
    kernels = check_kernels(RULES[call.op], call, tensors)
    assert set(by_name(kernels)) == {
        ".mean", ".variance", ".rstd", ".running_mean", ".running_var", ".result"
    }  # fmt: skip


def test_statistics_nobody_wants_are_made_all_the_same():
    data = torch.randn(3, 4, 5)
    call, tensors = make_call(
        aten._native_batch_norm_legit.no_stats, data, None, None, True, 0.1, 1e-5, used=(0,)
    )
    kernels = check_kernels(RULES[call.op], call, tensors)
    assert [kernel.name for kernel in kernels] == ["op.mean", "op.variance", "op.rstd", "op.result"]


@each_affine
def test_batch_norm_with_running_statistics(is_affine: bool):
    data, running = torch.randn(3, 4, 5, 2), (torch.randn(4), torch.rand(4) + 0.1)
    weight, bias = parameters(4, is_affine)
    call, tensors = make_call(
        aten._native_batch_norm_legit_no_training.default,
        data, weight, bias, *running, 0.1, 1e-5, used=(0,),
    )  # fmt: skip
    assert len(check_kernels(RULES[call.op], call, tensors)) == 2


@pytest.mark.parametrize("train", [True, False])
@each_affine
@each_shape
def test_gradients_of_batch_norm(shape: tuple[int, ...], is_affine: bool, train: bool):
    data, weight = torch.randn(shape) + 2, parameters(shape[1], is_affine)[0]
    running = torch.randn(shape[1]), torch.rand(shape[1]) + 0.1
    _, *saved = aten.native_batch_norm(data, weight, None, *running, train, 0.1, 1e-5)
    call, tensors = make_call(
        aten.native_batch_norm_backward.default,
        torch.randn(shape), data, weight, *running, *saved, train, 1e-5,
        [True, is_affine, is_affine], used=(0, 1, 2) if is_affine else (0,),
    )  # fmt: skip
    kernels = by_name(check_kernels(RULES[call.op], call, tensors))
    assert (".sums" in kernels) == (train or is_affine)


@each_affine
@pytest.mark.parametrize(("shape", "num_features"), [((5, 7), 1), ((3, 4, 11), 1), ((3, 4, 5), 2)])
def test_layer_norm(shape: tuple[int, ...], num_features: int, is_affine: bool):
    features = shape[-num_features:]
    call, tensors = make_call(
        aten.native_layer_norm.default,
        torch.randn(shape) + 1, list(features), *parameters(features, is_affine), 1e-5,
    )  # fmt: skip
    kernels = by_name(check_kernels(RULES[call.op], call, tensors))
    mean = kernels[".mean"]
    assert tuple(mean.loops[loop].size for loop in sorted(mean.reductions)) == features


@each_affine
@pytest.mark.parametrize(("shape", "num_features"), [((5, 7), 1), ((3, 4, 11), 1), ((3, 4, 5), 2)])
def test_gradients_of_layer_norm(shape: tuple[int, ...], num_features: int, is_affine: bool):
    features = shape[-num_features:]
    data, (weight, bias) = torch.randn(shape) + 1, parameters(features, is_affine)
    _, *saved = aten.native_layer_norm(data, list(features), weight, bias, 1e-5)
    call, tensors = make_call(
        aten.native_layer_norm_backward.default,
        torch.randn(shape), data, list(features), *saved, weight, bias,
        [True, is_affine, is_affine], used=(0, 1, 2) if is_affine else (0,),
    )  # fmt: skip
    check_kernels(RULES[call.op], call, tensors)


class RmsNormBackward:
    """PyTorch has none for the CPU: autograd of the definition."""

    _schema = aten._fused_rms_norm_backward.default._schema

    def __call__(self, gradient, data, shape, rstd, weight, mask):
        del rstd
        data = data.clone().requires_grad_()
        weight = torch.ones(shape) if weight is None else weight.clone()
        normed = data / (data.square().mean(-1, keepdim=True) + 1e-2).sqrt()
        (normed * weight.requires_grad_()).backward(gradient)
        return data.grad, weight.grad if mask[1] else None


@each_affine
@pytest.mark.parametrize("eps", [None, 1e-2])
def test_rms_norm_and_its_gradients(is_affine: bool, eps: float | None):
    data, weight = torch.randn(3, 4, 9), parameters(9, is_affine)[0]
    call, tensors = make_call(aten._fused_rms_norm.default, data, [9], weight, eps)
    kernels = by_name(check_kernels(RULES[call.op], call, tensors))
    assert set(kernels) == {".variance", ".rstd", ".result"}
    call, tensors = make_call(
        RmsNormBackward(),
        torch.randn_like(data), data, [9], aten._fused_rms_norm(data, [9], weight, 1e-2)[1], weight,
        [True, is_affine],
    )  # fmt: skip
    check_kernels(RULES[call.op], call, tensors)


@each_affine
@pytest.mark.parametrize(
    ("shape", "groups"), [((3, 6, 5), 2), ((2, 6, 3, 4), 3), ((2, 4, 5), 4), ((2, 4, 5), 1)]
)
def test_group_norm_and_its_gradients(shape: tuple[int, ...], groups: int, is_affine: bool):
    data, (weight, bias) = torch.randn(shape) + 1, parameters(shape[1], is_affine)
    sizes = shape[0], shape[1], data[0, 0].numel(), groups
    call, tensors = make_call(aten.native_group_norm.default, data, weight, bias, *sizes, 1e-5)
    check_kernels(RULES[call.op], call, tensors)
    _, *saved = aten.native_group_norm(data, weight, bias, *sizes, 1e-5)
    call, tensors = make_call(
        aten.native_group_norm_backward.default,
        torch.randn(shape), data, *saved, weight, *sizes,
        [True, is_affine, is_affine], used=(0, 1, 2) if is_affine else (0,),
    )  # fmt: skip
    check_kernels(RULES[call.op], call, tensors)


@pytest.mark.parametrize("wanted", [0, 1, 2])
def test_a_gradient_of_layer_norm_by_itself(wanted: int):
    data, weight, bias = torch.randn(3, 7), torch.randn(7), torch.randn(7)
    _, *saved = aten.native_layer_norm(data, [7], weight, bias, 1e-5)
    mask = [number == wanted for number in range(3)]
    call, tensors = make_call(
        aten.native_layer_norm_backward.default,
        torch.randn(3, 7), data, [7], *saved, weight, bias, mask, used=(wanted,),
    )  # fmt: skip
    kernels = check_kernels(RULES[call.op], call, tensors)
    assert [kernel.name for kernel in kernels] == [["op.sums", "op.dx"], ["op.dw"], ["op.db"]][
        wanted
    ]
