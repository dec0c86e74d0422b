"""What the formats of a recipe may be replaced by."""

import pytest
from fsdtrain_dojo import DojoBackend
from fsdtrain_dojo.recipe import Role, bf16_options


def test_formats_go_from_the_one_in_use_to_fp32() -> None:
    recipe = {
        "activation": {"format": "cfloat8_1_4_3", "bias": 7},
        "weight": {"format": "cfloat8_1_4_3", "rounding": "stochastic"},
        "vector": {"format": "bf16"},
        "first_moment": {"format": "cfloat16_shp"},
        "amax_history": 4,
    }
    ladders = DojoBackend(recipe=recipe).wider_formats()
    assert ladders is not None
    follows = "with biases that follow"
    assert ladders.formats["activation"] == [
        "cfloat8_1_4_3 with bias 7", f"cfloat8_1_4_3 {follows}", "bf16", "fp32"
    ]  # fmt: skip
    assert ladders.formats["weight"] == [f"cfloat8_1_4_3 {follows}", "bf16", "fp32"]
    assert ladders.formats["vector"] == ["bf16", "fp32"]
    assert ladders.formats["first_moment"] == [f"cfloat16_shp {follows}", "fp32"]
    assert ladders.formats["vector_gradient"] == ["fp32"]


@pytest.mark.parametrize("rung", [0, 1, 2, 3])
def test_options_make_a_backend_with_that_rung(rung: int) -> None:
    recipe = {"activation": {"format": "cfloat8_1_4_3", "bias": 7}, "amax_history": 4}
    ladders = DojoBackend(recipe=recipe, seed=5, k_tile=64).wider_formats()
    assert ladders is not None
    chosen = DojoBackend(**ladders.options_at({"activation": rung, "vector": 0}))  # type: ignore[arg-type]
    rule = chosen.recipe.rule(Role.ACTIVATION)
    expected = [("cfloat8_1_4_3", 7), ("cfloat8_1_4_3", "delayed"), ("bf16", "delayed"),
                ("fp32", "delayed")]  # fmt: skip
    assert (rule.format.name, rule.bias) == expected[rung]
    assert chosen.recipe.amax_history == 4
    assert chosen.seed == 5


def test_the_known_recipe_is_bf16() -> None:
    ladders = DojoBackend(recipe={"vector": {"format": "cfloat8_1_5_2"}}).wider_formats()
    assert ladders is not None
    known = DojoBackend(**ladders.known_options)  # type: ignore[arg-type]
    assert {role.value: {"format": known.recipe.rule(role).format.name} for role in Role} == (
        bf16_options()
    )
    of_default = DojoBackend().wider_formats()
    assert of_default is not None
    assert of_default.formats["activation"] == ["bf16", "fp32"]
