"""What the formats of a recipe may be replaced by, from narrow to wide. Knows no graphs.

8 bits with a fixed bias -> the same with biases that follow the tensors -> BF16 -> FP32.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from fsdtrain.backend import FormatLadders
from fsdtrain_dojo.formats import BF16, FP32, find_format
from fsdtrain_dojo.recipe import Role, bf16_options

Rung = Mapping[str, Any]  # {format, rounding, bias}, as a recipe has it
_WIDER: Final = (BF16, FP32)


def find_ladders(options: Mapping[str, Any]) -> FormatLadders:
    """The formats of every role, and options with wider ones.

    Args:
        options: of the backend; its recipe is one that was read without an error.
    """
    recipe = bf16_options() if options["recipe"] is None else dict(options["recipe"])
    ladders = {role.value: _rungs(recipe.get(role.value, {"format": FP32.name})) for role in Role}

    def options_at(rungs: Mapping[str, int]) -> Mapping[str, object]:
        chosen = {role: ladders[role][rung] for role, rung in rungs.items()}
        return {**options, "recipe": {**recipe, **chosen}}

    return FormatLadders(
        formats={role: [_describe(rung) for rung in rungs] for role, rungs in ladders.items()},
        options_at=options_at,
        known_name="bf16",
        known_options={**options, "recipe": bf16_options()},
    )


def _rungs(rule: Rung) -> Sequence[Rung]:
    used = find_format(rule["format"])
    rungs = [rule]
    # A bias of the narrow format need not be one of a wider.
    following = {**rule, "bias": "delayed"} if _is_fixed(rule) else rule
    if _is_fixed(rule) and used.min_bias < used.max_bias:
        rungs.append(following)
    wider = [each for each in _WIDER if each.num_bits > used.num_bits]
    return rungs + [{**following, "format": each.name} for each in wider]


def _is_fixed(rule: Rung) -> bool:
    return isinstance(rule.get("bias"), int)


def _describe(rule: Rung) -> str:
    name: str = rule["format"]
    if _is_fixed(rule):
        return f"{name} with bias {rule['bias']}"
    used = find_format(name)
    return f"{name} with biases that follow" if used.min_bias < used.max_bias else name
