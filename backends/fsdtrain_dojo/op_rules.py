"""What the machine does with each ATen op: matrix unit, vector unit, or only moving data.

The whole table in one place, and `register_op` for ops that are not in it. An op that is neither
here nor free of floating-point outputs is refused: nothing runs in FP32 unseen.
"""

from dataclasses import dataclass
from enum import Enum

from torch.fx import Node

from fsdtrain.backend import BackendError
from fsdtrain.step_graph.nodes import op_name, output_values
from fsdtrain.step_graph.user_line import user_line


class Kind(Enum):
    """Where an op runs, which says how its operands and results are stored."""

    MATRIX = "matrix"  # multiply-accumulate: reads narrow operands, accumulates wide
    VECTOR = "vector"  # computes in FP32 registers, rounds what it stores
    NORM = "norm"  # as VECTOR; a loss does not reach back over it
    SELECT = "select"  # as VECTOR, but every result is an operand or zero, or one negated
    MOVE = "move"  # copies or views, nothing to round
    CONSTANT = "constant"  # makes values of its own: immediates stay as they are


@dataclass(frozen=True, kw_only=True)
class OpRule:
    """How one op is treated.

    Args:
        kind: where it runs.
        operands: of a matrix op, the positions of the arguments the matrix unit reads.
        rounded_outputs: which results are stored tensors; the others are statistics the op keeps
            for its own backward, in FP32. None: all.
        addresses: positions of arguments that are coordinates.
    """

    kind: Kind
    operands: tuple[int, ...] = ()
    rounded_outputs: tuple[int, ...] | None = None
    addresses: tuple[int, ...] = ()


def _rules(kind: Kind, names: str) -> dict[str, OpRule]:
    return {f"aten.{name}": OpRule(kind=kind) for name in names.split()}


_PRIMS = {"prims.fma": OpRule(kind=Kind.VECTOR)}
_FIRST_ONLY = OpRule(kind=Kind.NORM, rounded_outputs=(0,))

_RULES: dict[str, OpRule] = {
    **_PRIMS,
    "aten.convolution": OpRule(kind=Kind.MATRIX, operands=(0, 1)),
    "aten.convolution_backward": OpRule(kind=Kind.MATRIX, operands=(0, 1, 2)),
    "aten.mm": OpRule(kind=Kind.MATRIX, operands=(0, 1)),
    "aten.bmm": OpRule(kind=Kind.MATRIX, operands=(0, 1)),
    "aten.addmm": OpRule(kind=Kind.MATRIX, operands=(1, 2)),
    "aten.baddbmm": OpRule(kind=Kind.MATRIX, operands=(1, 2)),
    "aten.addbmm": OpRule(kind=Kind.MATRIX, operands=(1, 2)),
    "aten._trilinear": OpRule(kind=Kind.MATRIX, operands=(0, 1, 2)),  # nn.Bilinear
    # Norms keep mean and inverse deviation, and running statistics, in FP32.
    "aten._native_batch_norm_legit": _FIRST_ONLY,
    "aten._native_batch_norm_legit_functional": _FIRST_ONLY,
    "aten._native_batch_norm_legit_no_training": _FIRST_ONLY,
    "aten.native_batch_norm": _FIRST_ONLY,
    "aten.native_layer_norm": _FIRST_ONLY,
    "aten.native_group_norm": _FIRST_ONLY,
    "aten._fused_rms_norm": _FIRST_ONLY,
    "aten._embedding_bag": _FIRST_ONLY,
    **_rules(
        Kind.NORM,
        "native_batch_norm_backward native_layer_norm_backward native_group_norm_backward "
        "_fused_rms_norm_backward linalg_vector_norm _weight_norm_interface "
        "_weight_norm_interface_backward "
        # Resampling and pooling, too, are layers and no part of a loss.
        "avg_pool1d avg_pool2d avg_pool3d avg_pool2d_backward avg_pool3d_backward "
        "_adaptive_avg_pool2d _adaptive_avg_pool2d_backward _adaptive_avg_pool3d "
        "_adaptive_avg_pool3d_backward upsample_bilinear2d upsample_bilinear2d_backward "
        "upsample_bicubic2d upsample_bicubic2d_backward upsample_linear1d "
        "upsample_linear1d_backward upsample_trilinear3d upsample_trilinear3d_backward "
        "_upsample_bilinear2d_aa _upsample_bilinear2d_aa_backward upsample_nearest1d_backward "
        "upsample_nearest2d_backward upsample_nearest3d_backward "
        "_upsample_nearest_exact1d_backward _upsample_nearest_exact2d_backward "
        "_upsample_nearest_exact3d_backward embedding_dense_backward _embedding_bag_backward "
        "_embedding_bag_dense_backward norm",
    ),
    "aten.grid_sampler_2d": OpRule(kind=Kind.NORM, addresses=(1,)),
    "aten.grid_sampler_3d": OpRule(kind=Kind.NORM, addresses=(1,)),
    "aten.grid_sampler_2d_backward": OpRule(kind=Kind.NORM, addresses=(2,)),
    "aten.grid_sampler_3d_backward": OpRule(kind=Kind.NORM, addresses=(2,)),
    "aten.searchsorted": OpRule(kind=Kind.VECTOR, addresses=(0, 1)),
    "aten.bucketize": OpRule(kind=Kind.VECTOR, addresses=(0, 1)),
    "aten.rrelu_with_noise_functional": OpRule(kind=Kind.VECTOR, rounded_outputs=(0,)),
    "aten.native_dropout": OpRule(kind=Kind.VECTOR, rounded_outputs=(0,)),
    "aten.nll_loss_forward": OpRule(kind=Kind.VECTOR, rounded_outputs=(0,)),
    "aten.nll_loss2d_forward": OpRule(kind=Kind.VECTOR, rounded_outputs=(0,)),
    "aten.linalg_inv_ex": OpRule(kind=Kind.VECTOR, rounded_outputs=(0,)),
    "aten._linalg_solve_ex": OpRule(kind=Kind.VECTOR, rounded_outputs=(0,)),
    "aten._linalg_det": OpRule(kind=Kind.VECTOR, rounded_outputs=(0,)),
    "aten._linalg_slogdet": OpRule(kind=Kind.VECTOR, rounded_outputs=(0, 1)),
    "aten.linalg_cholesky_ex": OpRule(kind=Kind.VECTOR, rounded_outputs=(0,)),
    **_rules(
        Kind.VECTOR,
        "add sub rsub mul div addcmul addcdiv lerp pow square sqrt rsqrt reciprocal exp exp2 "
        "expm1 log log2 log10 log1p sin cos tan asin acos atan atan2 sinh cosh tanh erf erfc "
        "erfinv sinc logit logit_backward sigmoid log_sigmoid_forward log_sigmoid_backward "
        "softplus softplus_backward silu silu_backward mish mish_backward gelu gelu_backward "
        "elu elu_backward leaky_relu leaky_relu_backward hardsigmoid hardsigmoid_backward "
        "hardswish hardswish_backward hardtanh_backward sigmoid_backward tanh_backward prelu "
        "_prelu_kernel _prelu_kernel_backward glu glu_backward logaddexp xlogy special_xlog1py "
        "floor ceil round trunc frac fmod remainder floor_divide hypot sum mean var std "
        "var_mean std_mean prod cumsum cumprod logsumexp logcumsumexp _softmax "
        "_softmax_backward_data _safe_softmax _log_softmax _log_softmax_backward_data "
        "nll_loss_backward nll_loss2d_backward binary_cross_entropy "
        "binary_cross_entropy_backward binary_cross_entropy_with_logits mse_loss "
        "mse_loss_backward smooth_l1_loss smooth_l1_loss_backward huber_loss "
        "huber_loss_backward _cdist_forward dist native_dropout_backward bernoulli rand randn "
        "rand_like randn_like uniform normal max_pool2d_with_indices_backward "
        "max_pool3d_with_indices_backward max_unpool2d index_put _unsafe_index_put index_add "
        "index_reduce scatter_add scatter_reduce embedding_bag im2col col2im dot vdot mv "
        "_thnn_fused_lstm_cell _thnn_fused_lstm_cell_backward_impl _thnn_fused_gru_cell "
        "_thnn_fused_gru_cell_backward affine_grid_generator addmv addr trace linalg_lu_solve "
        "linalg_solve_triangular linalg_cross celu soft_margin_loss soft_margin_loss_backward "
        "rrelu_with_noise_backward _cdist_backward nansum histc put normal_functional "
        "exponential log_normal geometric cauchy digamma lgamma polygamma i0 deg2rad rad2deg "
        "special_entr special_i0e special_i1 special_i1e special_ndtri special_log_ndtr "
        "special_erfcx",
    ),
    **_rules(
        Kind.SELECT,
        "relu threshold threshold_backward hardtanh clamp clamp_min clamp_max neg abs sgn sign "
        "where masked_fill maximum minimum fmax fmin amax amin max min sort topk median "
        "max_pool1d max_pool2d_with_indices max_pool3d_with_indices cummax cummin "
        "adaptive_max_pool2d adaptive_max_pool2d_backward kthvalue index_fill tril triu "
        "copysign nan_to_num",
    ),
    **_rules(
        Kind.MOVE,
        "view _unsafe_view reshape permute transpose t numpy_T slice select expand squeeze "
        "unsqueeze cat stack split split_with_sizes unsafe_split unsafe_split_with_sizes unbind "
        "unfold clone detach alias as_strided as_strided_scatter diagonal diagonal_backward "
        "diag_embed flip roll rot90 gather index _unsafe_index index_select take embedding "
        "constant_pad_nd reflection_pad1d reflection_pad2d reflection_pad3d replication_pad3d "
        "replication_pad1d replication_pad2d pixel_shuffle pixel_unshuffle channel_shuffle "
        "repeat repeat_interleave slice_backward select_backward slice_scatter select_scatter "
        "scatter masked_scatter masked_scatter_backward index_copy block_diag masked_select "
        "lift_fresh_copy upsample_nearest1d upsample_nearest2d upsample_nearest3d "
        "_upsample_nearest_exact1d _upsample_nearest_exact2d _upsample_nearest_exact3d "
        "contiguous _to_copy copy lift_fresh view_copy expand_copy copy_",
    ),
    **_rules(
        Kind.CONSTANT,
        "full full_like zeros zeros_like ones ones_like empty empty_like empty_strided "
        "new_empty new_zeros new_ones new_full new_empty_strided fill _efficientzerotensor "
        "arange linspace eye scalar_tensor",
    ),
}
# Overlaps add up in backward.
_RULES |= _rules(
    Kind.VECTOR,
    "unfold_backward reflection_pad1d_backward reflection_pad2d_backward "
    "reflection_pad3d_backward replication_pad1d_backward replication_pad2d_backward "
    "replication_pad3d_backward affine_grid_generator_backward",
)


def register_op(name: str, rule: OpRule) -> None:
    """Teach the backend an op.

    For example: register_op("mylib.bev_pool", OpRule(kind=Kind.VECTOR)).

    Args:
        name: "<namespace>.<op>", without the overload.
        rule: how to treat it.

    Raises:
        BackendError: the op has a rule already.
    """
    if name in _RULES:
        raise BackendError(f"op {name} has a rule already: {_RULES[name]}")
    _RULES[name] = rule


def find_rule(node: Node) -> OpRule:
    """The rule of a node.

    Raises:
        BackendError: there is none; names op, dtype and shape, and says what to do.
    """
    name = op_name(node)
    if name == "aten.constant_pad_nd" and node.args[2:] and node.args[2] != 0:
        return OpRule(kind=Kind.SELECT)  # brings in a value that may be between those of a format
    if name in _RULES:
        return _RULES[name]
    if not any(value.is_floating_point() or value.is_complex() for value in output_values(node)):
        return OpRule(kind=Kind.MOVE)
    remedy = (
        "linalg functions that check their result cannot be captured: use their _ex variant, e.g. "
        "torch.linalg.inv_ex(x).inverse"
        if name == "with_effects"
        else "register it with fsdtrain_dojo.op_rules.register_op"
        f'("{name}", OpRule(kind=Kind.VECTOR)), or the kind that it is'
    )
    place = user_line(node.meta.get("stack_trace") or "")
    raise BackendError(
        f"op {name} ({_describe(node)}){place} is not known to backend dojo: {remedy}"
    )


def _describe(node: Node) -> str:
    operands = [
        f"{str(value.dtype).removeprefix('torch.')}{list(value.shape)}"
        for each in node.all_input_nodes
        for value in output_values(each)
    ]
    return ", ".join(operands) or "no operands"
