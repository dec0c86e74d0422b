"""Recipes: the shipped ones, what is refused, and that the two readings reach the formats."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from fsdtrain_dojo.arithmetic.rounding import Rounding
from fsdtrain_dojo.backend import DojoBackend
from fsdtrain_dojo.formats import BF16, CFLOAT8_1_4_3, Denormals
from fsdtrain_dojo.recipe import Recipe, Role, Rule, read_recipe
from omegaconf import OmegaConf

from fsdtrain.backend import BackendError

RECIPES = Path(__file__).parents[3] / "configs" / "backend" / "recipe"


def load(name: str) -> Mapping[str, Any]:
    plain = OmegaConf.to_container(OmegaConf.load(RECIPES / f"{name}.yaml"))
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


@pytest.mark.parametrize("name", [path.stem for path in RECIPES.glob("*.yaml")])
def test_shipped_recipes_are_read_and_name_every_role(name: str) -> None:
    options = load(name)
    recipe = read_recipe(options)
    assert set(recipe.rules) == set(Role)
    assert DojoBackend(recipe=options).recipe == recipe


def test_fp32_is_the_identity_and_bf16_is_the_default() -> None:
    assert read_recipe(load("fp32")).is_identity
    assert not read_recipe(load("bf16")).is_identity
    assert DojoBackend().recipe == read_recipe(load("bf16"))


def test_a_role_left_out_stays_fp32() -> None:
    recipe = read_recipe({"weight": {"format": "bf16"}})
    assert recipe.rule(Role.WEIGHT).format == BF16
    assert recipe.rule(Role.ACTIVATION).is_exact


def test_the_readings_of_the_white_paper_reach_the_formats() -> None:
    recipe = read_recipe(
        {
            "weight": {"format": "cfloat8_1_4_3", "rounding": "stochastic", "bias": 9},
            "activation": {"format": "bf16"},
            "second_moment": {"format": "cfloat16_uhp"},
        },
        denormals="literal",
        uhp_has_specials=True,
    )
    weight = recipe.rule(Role.WEIGHT)
    assert weight == Rule(
        format=CFLOAT8_1_4_3.with_denormals(Denormals.LITERAL),
        rounding=Rounding.STOCHASTIC,
        bias=9,
    )
    assert weight.fixed_bias == 9
    assert recipe.rule(Role.ACTIVATION).format == BF16
    assert recipe.rule(Role.SECOND_MOMENT).format.has_specials


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"wieght": {"format": "bf16"}}, "backend.recipe.wieght: no such role; roles are activ"),
        ({"weight": {"format": "fp8"}}, "backend.recipe.weight: format 'fp8' is not known; known"),
        ({"weight": "bf16"}, "backend.recipe.weight='bf16': must be a mapping with format"),
        ({"weight": {"rounding": "nearest"}}, "must be a mapping with format"),
        ({"weight": {"format": "bf16", "round": "up"}}, "must be a mapping with format"),
        ({"weight": {"format": "bf16", "rounding": "up"}}, "must be nearest or stochastic"),
        ({"weight": {"format": "cfloat8_1_4_3", "bias": 64}}, "bias 64 of format cfloat8_1_4_3:"),
        ({"weight": {"format": "cfloat8_1_4_3", "bias": -1}}, "allowed is 0 to 63"),
        ({"weight": {"format": "bf16", "bias": 3}}, "bias 3 of format bf16: allowed is only 127"),
        ({"weight": {"format": "bf16", "bias": "auto"}}, "must be delayed, current or a whole"),
        ({"weight": {"format": "bf16", "bias": True}}, "must be delayed, current or a whole"),
        ({"amax_history": 0}, "amax_history=0: must be at least 1"),
        ({"amax_history": "long"}, "amax_history='long': must be a whole number"),
        ({"margin_bits": 9}, "margin_bits=9: must be 0 to 8"),
    ],
)
def test_wrong_recipes_are_refused_with_the_remedy(options: Any, complaint: str) -> None:
    with pytest.raises(BackendError) as caught:
        read_recipe(options)
    assert complaint in str(caught.value)


def test_wrong_reading_of_denormals() -> None:
    with pytest.raises(BackendError, match="must be gradual, literal, flush"):
        DojoBackend(denormals="ieee")


def test_default_recipe_rounds_nothing_the_optimiser_keeps() -> None:
    recipe = Recipe(rules=DojoBackend().recipe.rules)
    for role in (Role.MASTER_WEIGHT, Role.FIRST_MOMENT, Role.SECOND_MOMENT):
        assert recipe.rule(role).is_exact
