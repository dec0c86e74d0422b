"""Precision recipes: which tensor role is stored in which format, rounded how, with which bias.

A recipe is plain data, checked on construction. It does not know graphs or tensors; which tensor
plays which role is decided in `capture/roles.py`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from enum import Enum
from typing import Any, Literal

from fsdtrain.backend import BackendError
from fsdtrain_dojo.arithmetic.rounding import Rounding
from fsdtrain_dojo.formats import FP32, Denormals, Format, find_format


class Role(Enum):
    """What a tensor is to the machine.

    The matrix unit reads the first three and writes the fourth; the vector unit reads and writes
    the fifth and sixth; the last three live from step to step.
    """

    ACTIVATION = "activation"
    WEIGHT = "weight"
    ACTIVATION_GRADIENT = "activation_gradient"
    WEIGHT_GRADIENT = "weight_gradient"
    VECTOR = "vector"
    VECTOR_GRADIENT = "vector_gradient"
    MASTER_WEIGHT = "master_weight"
    FIRST_MOMENT = "first_moment"
    SECOND_MOMENT = "second_moment"


KEPT_BETWEEN_STEPS = (Role.MASTER_WEIGHT, Role.FIRST_MOMENT, Role.SECOND_MOMENT)

# delayed: from the largest magnitudes of past steps; current: from the tensor itself, which costs
# a pass over it; a number: that bias, always.
BiasRule = Literal["delayed", "current"] | int


@dataclass(frozen=True, kw_only=True)
class Rule:
    """How the tensors of one role are stored."""

    format: Format = FP32
    rounding: Rounding = Rounding.NEAREST
    bias: BiasRule = "delayed"

    def __post_init__(self) -> None:
        if isinstance(self.bias, int):
            self.format.check_bias(self.bias)

    @property
    def is_exact(self) -> bool:
        """Whether storing changes nothing."""
        return self.format is FP32

    @property
    def fixed_bias(self) -> int | None:
        """The bias of every tensor; None: it is chosen for each."""
        if isinstance(self.bias, int):
            return self.bias
        return self.format.bias if self.format.min_bias == self.format.max_bias else None


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A rule for every role, and how biases follow the magnitudes.

    Args:
        rules: by role; a role that is left out stays FP32.
        amax_history: steps whose largest magnitude a delayed bias looks back on.
        margin_bits: binades kept free above that magnitude.
    """

    rules: Mapping[Role, Rule] = field(default_factory=dict)
    amax_history: int = 16
    margin_bits: int = 0

    def __post_init__(self) -> None:
        if self.amax_history < 1:
            raise BackendError(
                f"backend.recipe.amax_history={self.amax_history}: must be at least 1"
            )
        if not 0 <= self.margin_bits <= 8:
            raise BackendError(f"backend.recipe.margin_bits={self.margin_bits}: must be 0 to 8")

    def rule(self, role: Role) -> Rule:
        """The rule of a role."""
        return self.rules.get(role, Rule())

    @property
    def is_identity(self) -> bool:
        """Whether nothing is rounded at all."""
        return all(rule.is_exact for rule in self.rules.values())


def bf16_options() -> dict[str, Any]:
    """The default recipe, as configs/backend/recipe/bf16.yaml has it."""
    return {
        role.value: {"format": "fp32" if role in KEPT_BETWEEN_STEPS else "bf16"} for role in Role
    }


def read_recipe(
    options: Mapping[str, Any],
    *,
    denormals: str = "gradual",
    uhp_has_specials: bool = False,
) -> Recipe:
    """A recipe from the plain values of a config.

    Args:
        options: {role: {format, rounding, bias}, amax_history, margin_bits}.
        denormals: of every CFloat format (`formats.Denormals`).
        uhp_has_specials: whether UHP's all-ones exponent means infinity and NaN.

    Raises:
        BackendError: an unknown role, format, rounding or option, or a bias out of range.
    """
    known = {role.value: role for role in Role}
    others = {each.name for each in fields(Recipe)} - {"rules"}
    unknown = sorted(set(options) - set(known) - others)
    if unknown:
        raise BackendError(
            f"backend.recipe.{unknown[0]}: no such role; roles are {', '.join(known)}, and "
            f"{' and '.join(sorted(others))} are set beside them"
        )
    readings = {each.value: each for each in Denormals}
    if denormals not in readings:
        raise BackendError(f"backend.denormals={denormals!r}: must be {', '.join(readings)}")
    rules = {
        known[name]: _read_rule(name, value, readings[denormals], uhp_has_specials)
        for name, value in options.items()
        if name in known
    }
    numbers = {name: options[name] for name in others & set(options)}
    for name, value in numbers.items():
        if not isinstance(value, int) or isinstance(value, bool):
            raise BackendError(f"backend.recipe.{name}={value!r}: must be a whole number")
    return Recipe(rules=rules, **numbers)


def _read_rule(role: str, options: object, denormals: Denormals, uhp_has_specials: bool) -> Rule:
    where = f"backend.recipe.{role}"
    allowed = {"format", "rounding", "bias"}
    if not isinstance(options, Mapping) or set(options) - allowed or "format" not in options:
        raise BackendError(
            f"{where}={options!r}: must be a mapping with format, and if wanted rounding and bias"
        )
    try:
        found = find_format(str(options["format"]))
    except BackendError as error:
        raise BackendError(f"{where}: {error}") from error
    if found.name.startswith("cfloat"):
        found = replace(found, denormals=denormals)
    if found.name == "cfloat16_uhp":
        found = found.with_specials(uhp_has_specials)
    roundings = {each.value: each for each in Rounding}
    rounding = options.get("rounding", "nearest")
    if rounding not in roundings:
        raise BackendError(f"{where}.rounding={rounding!r}: must be {' or '.join(roundings)}")
    bias = options.get("bias", "delayed")
    if bias not in ("delayed", "current") and (not isinstance(bias, int) or isinstance(bias, bool)):
        raise BackendError(f"{where}.bias={bias!r}: must be delayed, current or a whole number")
    try:
        return Rule(format=found, rounding=roundings[rounding], bias=bias)
    except BackendError as error:
        raise BackendError(f"{where}: {error}") from error
