"""The places of a step where a tensor is stored, and what is known of each from step to step.

A site is one stored tensor of the captured graph. `SiteTable` holds, for all sites of a run, the
bias in use, the history of largest magnitudes it is chosen from, the counts the kernels keep, and
the step that the random generator is keyed by. It does not know graphs.
"""

import zlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, distributed

from fsdtrain.backend import BackendError, TensorNumerics
from fsdtrain_dojo.arithmetic.random_bits import stream_key
from fsdtrain_dojo.arithmetic.rounding import (
    NUM_COUNTS,
    Count,
    Rounder,
    Rounding,
    amax,
    make_rounder,
)
from fsdtrain_dojo.formats import Format
from fsdtrain_dojo.measurement import Measurement, describe, measure
from fsdtrain_dojo.recipe import Recipe
from fsdtrain_dojo.site import Site

Store = Callable[[Tensor], None]
MAX_SITES = 16384
_NO_KEY = (0, 0)


def choose_biases(
    formats: Sequence[Format], amax: NDArray[np.float32], margin_bits: int
) -> NDArray[np.int64]:
    """For each format the largest bias, so the finest grid, that holds amax * 2**margin_bits.

    Clamped to what the format has; its default for an amax of zero.
    """
    fields = np.array(
        [(f.max_exponent_field, f.mantissa_bits, f.bias, f.min_bias, f.max_bias) for f in formats]
    ).reshape(-1, 5)
    max_field, mantissa_bits, default, lowest, highest = fields.T
    mantissa, exponent = np.frexp(amax)  # amax = mantissa * 2**exponent, mantissa in [0.5, 1)
    largest_mantissa = 1 - 0.5 ** (mantissa_bits + 1.0)
    bias = max_field + 1 - exponent - (mantissa > largest_mantissa) - margin_bits
    return np.where(amax == 0, default, np.clip(bias, lowest, highest))


class SiteTable:
    """All sites of a run, in the order in which they were found.

    A training step is one forward pass and its backward pass. Biases and keys stay as they are
    within a step; `begin_step` takes in what the last one has seen. A tensor whose site has no
    history yet is looked at before it is rounded.
    """

    def __init__(
        self, recipe: Recipe, *, seed: int, device: torch.device, read_every_steps: int
    ) -> None:
        self.recipe = recipe
        self.seed = seed
        self.device = device
        self.read_every_steps = read_every_steps
        self.step = 0
        self.sites: list[Site] = []
        self._index: dict[str, int] = {}
        self._history = np.zeros((0, recipe.amax_history), np.float32)  # -1: not seen
        self._counts = torch.zeros((MAX_SITES, NUM_COUNTS), dtype=torch.int64, device=device)
        self._biases: list[int | None] = []
        self._keys: list[tuple[int, int]] = []
        self._is_pending = False  # whether counts hold what is not in the history yet
        self._resumed: dict[str, NDArray[np.float32]] = {}
        self._totals = np.zeros((0, NUM_COUNTS), np.int64)  # since the last reading
        self._measured: dict[int, Measurement] = {}

    def begin_step(self) -> None:
        """Take in the last step's magnitudes, choose biases, and go on to the next step."""
        self._absorb()
        self.step += 1
        self._is_pending = True
        self._choose()

    def add(self, site: Site, *, is_training: bool) -> Store:
        """Register a site; returns the function that rounds a tensor of it in place.

        A site of the same name is the same site: a backward pass that computes or converts a
        tensor once more gets the very same numbers. Outside of training a bias is chosen from the
        tensor itself, and nothing is remembered.

        Raises:
            BackendError: more than MAX_SITES sites.
        """
        rounder = make_rounder(site.rule.format, site.rule.rounding)
        if not is_training:
            return self._evaluating_store(site, rounder)
        index = self._index.get(site.name)
        if index is None:
            index = self._append(site)
        return self._training_store(index, rounder)

    def _append(self, site: Site) -> int:
        index = len(self.sites)
        if index == MAX_SITES:
            raise BackendError(f"a step stores more than {MAX_SITES} tensors: {site.name}")
        self._index[site.name] = index
        self.sites.append(site)
        unseen = np.full(self.recipe.amax_history, -1, np.float32)
        self._history = np.vstack([self._history, self._resumed.pop(site.name, unseen)])
        self._totals = np.vstack([self._totals, np.zeros(NUM_COUNTS, np.int64)])
        self._biases.append(None)
        self._keys.append(_NO_KEY)
        self._choose(first=index)
        return index

    def _training_store(self, index: int, rounder: Rounder) -> Store:
        biases, keys, counts = self._biases, self._keys, self._counts[index]
        is_share = self.sites[index].is_rank_share

        def store(tensor: Tensor) -> None:
            bias = biases[index]
            if bias is None:
                bias = biases[index] = self._look(index, tensor)
            before = tensor.clone() if self._is_reading else None
            rounder(tensor, bias, counts, keys[index], _rank() * tensor.numel() if is_share else 0)
            if before is not None:
                self._measured[index] = measure(before, tensor, bias)

        return store

    def _evaluating_store(self, site: Site, rounder: Rounder) -> Store:
        counts = torch.zeros(NUM_COUNTS, dtype=torch.int64, device=self.device)
        key = site_key(self.seed, 0, site)

        def store(tensor: Tensor) -> None:
            bias = site.rule.fixed_bias
            if bias is None:
                bias = self._choose_one(site, np.array([amax(tensor)], np.float32))
            rounder(tensor, bias, counts, key, 0)

        return store

    def _look(self, index: int, tensor: Tensor) -> int:
        largest = _largest_of_all_ranks(np.array([amax(tensor)], np.float32), self.device)
        return self._choose_one(self.sites[index], largest)

    def _choose_one(self, site: Site, largest: NDArray[np.float32]) -> int:
        return int(choose_biases([site.rule.format], largest, self.recipe.margin_bits)[0])

    @property
    def _is_reading(self) -> bool:
        return self.read_every_steps > 0 and self.step % self.read_every_steps == 0

    def _absorb(self) -> None:
        """Counts -> history and totals. Of this step once, however often it is called."""
        if not self._is_pending:
            return
        self._is_pending = False
        num_sites = len(self.sites)
        counts = self._counts[:num_sites].cpu().numpy()
        largest = counts[:, Count.AMAX_BITS].astype(np.int32).view(np.float32)
        # A rank that has not met a site (an empty share) leaves it to the others.
        seen = np.where(counts[:, Count.ELEMENTS] > 0, largest, -1).astype(np.float32)
        seen = _largest_of_all_ranks(seen, self.device)
        column = self._history[:, self.step % self.recipe.amax_history]
        np.copyto(column, seen, where=seen >= 0)
        self._totals += counts
        self._totals[:, Count.AMAX_BITS] = counts[:, Count.AMAX_BITS]
        self._counts[:num_sites] = 0

    def _choose(self, first: int = 0) -> None:
        """Biases and keys of this step, for the sites from `first` on."""
        sites = self.sites[first:]
        largest = self._history[first:].max(axis=1, initial=-1)
        biases = choose_biases(
            [site.rule.format for site in sites], largest, self.recipe.margin_bits
        ).tolist()
        for offset, (site, bias, magnitude) in enumerate(zip(sites, biases, largest, strict=True)):
            rule = site.rule
            if rule.fixed_bias is not None:
                bias = rule.fixed_bias
            elif rule.bias == "current" or magnitude < 0:
                bias = None
            self._biases[first + offset] = bias
            if rule.rounding is Rounding.STOCHASTIC:
                self._keys[first + offset] = site_key(self.seed, self.step, site)

    def read(self) -> tuple[TensorNumerics, ...]:
        """What was measured in the last step, if it was one of every `read_every_steps`; once."""
        if not self._measured:
            return ()
        self._absorb()
        measured, self._measured = self._measured, {}
        reading = tuple(
            describe(self.sites[index], self._totals[index], measurement)
            for index, measurement in measured.items()
        )
        self._totals[:] = 0
        return reading

    def state_dict(self) -> dict[str, Any]:
        """For the checkpoint: the step, and the histories by site; plain values and tensors."""
        self._absorb()
        return {
            "step": self.step,
            "sites": [site.name for site in self.sites],
            "amax_history": torch.from_numpy(self._history.copy()),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` was taken; sites that are not captured yet find theirs later.

        Raises:
            BackendError: the recipe has another length of history.
        """
        history = state["amax_history"].numpy()
        if history.shape[1] != self.recipe.amax_history:
            raise BackendError(
                f"the checkpoint holds {history.shape[1]} steps of magnitudes, but "
                f"backend.recipe.amax_history={self.recipe.amax_history}: resume with the recipe "
                "of the run"
            )
        self.step = state["step"]
        self._is_pending = False
        self._resumed = dict(zip(state["sites"], history, strict=True))
        for name, index in self._index.items():
            self._history[index] = self._resumed.pop(name, -1)
        self._choose()


def site_key(seed: int, step: int, site: Site) -> tuple[int, int]:
    """Of the random numbers that a tensor of the site is rounded with in this step."""
    return stream_key(seed, step, zlib.crc32(site.name.encode()))


def _rank() -> int:
    return distributed.get_rank() if distributed.is_initialized() else 0


def _largest_of_all_ranks(values: NDArray[np.float32], device: torch.device) -> NDArray[np.float32]:
    if not distributed.is_initialized():
        return values
    shared = torch.from_numpy(values).to(device)
    distributed.all_reduce(shared, op=distributed.ReduceOp.MAX)
    found: NDArray[np.float32] = shared.cpu().numpy()
    return found
