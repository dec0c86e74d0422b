"""What one element of an element-wise op costs on a vector unit: (flops, special functions).

A flop is an addition, a multiplication, a comparison or a selection; a multiply-add counts 2. A
special is a result of exp, log, reciprocal, square root or sine. Functions that are made of others
count these: sigmoid is exp, add, reciprocal. Polynomials count their multiply-adds: erf is one of
degree 5 and an exp (Abramowitz and Stegun 7.1.26).
"""

from fsdtrain_dojo.lowering.op_call import OpCall

Cost = tuple[int, int]

_ERF: Cost = (13, 2)  # the polynomial in 1 / (1 + p x), times exp(-x^2)

_COSTS: dict[str, Cost] = {
    **dict.fromkeys(
        (
            "sqrt", "rsqrt", "reciprocal", "exp", "exp2", "log", "log2", "log10", "sin", "cos",
        ),
        (0, 1),
    ),
    **dict.fromkeys(("expm1", "log1p", "erfinv", "i0", "digamma", "lgamma"), (8, 1)),
    **dict.fromkeys(("asin", "acos", "atan", "atan2", "tan", "polygamma"), (10, 1)),
    **dict.fromkeys(("sinh", "cosh", "logaddexp"), (3, 2)),
    **dict.fromkeys(("div", "remainder", "fmod", "floor_divide", "sinc"), (1, 1)),
    **dict.fromkeys(("erf", "erfc", "special_ndtr"), _ERF),
    "sigmoid": (1, 2),
    "sigmoid_backward": (3, 0),
    "tanh": (3, 2),
    "tanh_backward": (3, 0),
    "silu": (2, 2),
    "silu_backward": (6, 2),
    "mish": (5, 4),
    "mish_backward": (9, 4),
    "gelu": (_ERF[0] + 4, _ERF[1]),
    "gelu_backward": (_ERF[0] + 8, _ERF[1] + 1),
    "softplus": (2, 2),
    "softplus_backward": (3, 2),
    "log_sigmoid_forward": (4, 2),
    "log_sigmoid_backward": (4, 2),
    "elu": (3, 1),
    "elu_backward": (4, 1),
    "celu": (4, 1),
    "hardsigmoid": (4, 0),
    "hardswish": (5, 0),
    "hardsigmoid_backward": (3, 0),
    "hardswish_backward": (6, 0),
    "hardtanh": (2, 0),
    "clamp": (2, 0),
    "addcmul": (3, 0),
    "addcdiv": (3, 1),
    "lerp": (3, 0),
    "fma": (2, 0),
    "hypot": (3, 1),
    "logit": (2, 2),
    "logit_backward": (4, 1),
    "xlogy": (2, 1),
    "special_xlog1py": (10, 1),
    "special_entr": (2, 1),
    "native_dropout": (3, 0),
    "native_dropout_backward": (2, 0),
    "leaky_relu": (2, 0),
    "leaky_relu_backward": (2, 0),
    "_prelu_kernel": (2, 0),
    "_prelu_kernel_backward": (4, 0),
    "nan_to_num": (3, 0),
}  # fmt: skip
_DEFAULT: Cost = (1, 0)


def element_cost(call: OpCall) -> Cost:
    """(flops, specials) of one element of the op's result."""
    name = call.op.rpartition(".")[2]
    if name == "pow":
        return _power_cost(call.args)
    if name in ("add", "sub", "rsub") and _scale(call) != 1:
        return 2, 0
    if name == "gelu" and call.kwargs.get("approximate") == "tanh":
        return 9, 2
    if name == "gelu_backward" and call.kwargs.get("approximate") == "tanh":
        return 17, 2
    return _COSTS.get(name, _DEFAULT)


def _scale(call: OpCall) -> object:
    return call.kwargs.get("alpha", call.args[2] if len(call.args) > 2 else 1)


def _power_cost(arguments: tuple[object, ...]) -> Cost:
    exponent = arguments[1]
    if isinstance(exponent, int | float):
        if float(exponent).is_integer() and 0 <= exponent <= 8:
            bits = int(exponent)
            return max(bits.bit_length() + bits.bit_count() - 2, 1), 0
        if exponent in (0.5, -0.5, -1):
            return 0, 1
    return 1, 2
