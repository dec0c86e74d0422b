"""How a site rounds, in plain words that a script can keep, and the function they stand for."""

from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor

from fsdtrain.backend import BackendError
from fsdtrain_dojo.arithmetic.rounding import NUM_COUNTS, Rounding, amax, make_rounder
from fsdtrain_dojo.formats import Format
from fsdtrain_dojo.recipe import Recipe, Role
from fsdtrain_dojo.site import Site
from fsdtrain_dojo.sites import choose_biases, site_key


def describe_store(site: Site, seed: int) -> dict[str, object]:
    """The words.

    Args:
        site: where a tensor is stored.
        seed: of stochastic rounding, in the first step of a training run.
    """
    return {
        "format": site.rule.format.name,
        "rounding": site.rule.rounding.value,
        "bias": site.rule.fixed_bias,  # None: chosen from the tensor
        "key": list(site_key(seed, 1, site)),
    }


def read_store(words: Mapping[str, object], recipe: Recipe) -> Callable[[Tensor], None]:
    """The function that rounds a tensor in place.

    Args:
        words: as `describe_store` gives them.
        recipe: whose formats they name.

    Raises:
        BackendError: the recipe has no such format.
    """
    stored = _find_format(str(words["format"]), recipe)
    rounder = make_rounder(stored, Rounding(words["rounding"]))
    bias, key = words["bias"], words["key"]
    assert bias is None or isinstance(bias, int)
    assert isinstance(key, list)

    def store(tensor: Tensor) -> None:
        counts = torch.zeros(NUM_COUNTS, dtype=torch.int64, device=tensor.device)
        chosen = bias
        if chosen is None:
            largest = np.array([amax(tensor)], np.float32)
            chosen = int(choose_biases([stored], largest, recipe.margin_bits)[0])
        rounder(tensor, chosen, counts, (key[0], key[1]), 0)

    return store


def _find_format(name: str, recipe: Recipe) -> Format:
    formats = {rule.format.name: rule.format for rule in map(recipe.rule, Role)}
    if name not in formats:
        raise BackendError(
            f"format {name!r} is in no role of this recipe, which has {', '.join(sorted(formats))}"
        )
    return formats[name]
