"""`compare --tune`: which roles of a recipe need a wider format, and what that costs.

Greedy, by gain in dB for modelled time, then back: what turned out not to be needed is taken out
again, so that no single step of the proposal can be left out. It knows no format and no backend,
only ladders of them (`Backend.wider_formats`). Gradients of one step are looked at: what is stored
from step to step (weights, moments) does not reach them.
"""

import logging
import math
from collections.abc import Callable, Mapping
from typing import Final

from torch import Tensor

from fsdtrain.backend import Backend, FormatLadders
from fsdtrain.comparison.record import TunedRecipe, WiderRole
from fsdtrain.errors import UserError
from fsdtrain.step_profile import Origin

logger = logging.getLogger(__name__)

DEFAULT_DISTANCE_DB: Final = 6.0  # below the backend's own recipe that is known to train
MAX_RUNS: Final = 60
_LEAST_GAIN_DB: Final = 0.1
_LEAST_COST: Final = 1e-4  # of the step's time; for changes that cost nothing

Options = Mapping[str, object]  # of a backend
Measure = Callable[[Options], float]  # SNR of all gradients in dB; infinite: no error
StepTime = Callable[[Options], float | None]  # modelled seconds
Levels = tuple[int, ...]  # how many rungs each role was moved up


def find_formats(backend: Backend) -> FormatLadders:
    """What a backend has to choose from.

    Raises:
        UserError: there is nothing to choose from.
    """
    ladders = backend.wider_formats()
    if ladders is None or not any(len(each) > 1 for each in ladders.formats.values()):
        raise UserError(
            f"tune: backend {backend.name} has no wider number formats to choose from; tune a "
            "backend that emulates narrow ones, with a recipe that has some"
        )
    return ladders


def tune(
    ladders: FormatLadders,
    *,
    measure: Measure,
    step_time: StepTime,
    origin: Origin,
    margin_snr_db: float | None = None,
    max_runs: int = MAX_RUNS,
) -> TunedRecipe:
    """The fewest wider formats with which all gradients come within the margin.

    Args:
        ladders: from the recipe to start from upwards.
        measure: runs the step, which takes about a second.
        step_time: of the step on the machine, which takes seconds to model; None: it is not known.
        origin: of what `measure` gives.
        margin_snr_db: the least SNR of all gradients against the reference; None: that of the
            recipe which the backend names as known to train, less `DEFAULT_DISTANCE_DB`.
        max_runs: how often `measure` is called at most.

    Raises:
        UserError: there is no margin to be had.
    """
    search = _Search(ladders, measure, step_time, origin, max_runs)
    why = f"{margin_snr_db} dB, as asked for"
    if margin_snr_db is None:
        known = measure(ladders.known_options)
        search.num_runs += 1
        if not math.isfinite(known):
            raise UserError(
                f"tune: the gradients of recipe {ladders.known_name} have no finite SNR, from "
                "which the margin would follow: give the margin in dB"
            )
        margin_snr_db = known - DEFAULT_DISTANCE_DB
        why = f"{margin_snr_db:.1f} dB, that of {ladders.known_name} less {DEFAULT_DISTANCE_DB:g}"
    return search.find(margin_snr_db, why)


def find_overrides(before: Options, after: Options, path: str = "backend") -> list[str]:
    """What turns some options into others on a command line; `after` lacks none of them."""
    found = []
    for name, value in after.items():
        was, where = before.get(name), f"{path}.{name}"
        if isinstance(value, Mapping) and isinstance(was, Mapping):
            found += find_overrides(was, value, where)
        elif value != was:
            found.append(f"{where}={value}")
    return found


def gradient_snr_db(expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> float:
    """Signal over error of all gradients together; infinite: no error; -infinite: not finite.

    Args:
        expected: gradients by weight.
        found: of the same weights.
    """
    signal = noise = 0.0
    for weight, gradient in expected.items():
        signal += float(gradient.double().square().sum())
        noise += float((found[weight].cpu().double() - gradient.cpu().double()).square().sum())
    if noise == 0:
        return math.inf
    if not math.isfinite(noise) or signal == 0:
        return -math.inf
    return 10 * math.log10(signal / noise)


class _Search:
    """One search, with what its runs have given."""

    def __init__(
        self,
        ladders: FormatLadders,
        measure: Measure,
        step_time: StepTime,
        origin: Origin,
        max_runs: int,
    ) -> None:
        self.ladders = ladders
        self.roles = tuple(ladders.formats)
        self.start: Levels = (0,) * len(self.roles)
        self.widest: Levels = tuple(len(ladders.formats[role]) - 1 for role in self.roles)
        self.measure = measure
        self.step_time = step_time
        self.origin = origin
        self.max_runs = max_runs
        self.num_runs = 0
        self.snrs: dict[Levels, float] = {}
        self.times: dict[Levels, float | None] = {}

    def find(self, margin: float, why: str) -> TunedRecipe:
        """Up, and back down."""
        needed = f"SNR of all gradients ({self.origin}; needed: {why})"
        if self._snr(self.start) >= margin:
            sentence = f"no role needs a wider format: {_db(self._snr(self.start))} {needed}"
            return TunedRecipe(margin_snr_db=margin, is_reached=True, steps=(), sentence=sentence)
        if self._snr(self.widest) < margin:
            sentence = (
                f"wider formats are not enough: with every role as wide as it can be "
                f"{_db(self._snr(self.widest))}, as it is {_db(self._snr(self.start))} {needed}"
            )
            return TunedRecipe(margin_snr_db=margin, is_reached=False, steps=(), sentence=sentence)
        found, is_minimal = self._descend(self._climb(margin), margin)
        steps = self._steps(found)
        return TunedRecipe(
            margin_snr_db=margin,
            is_reached=True,
            steps=steps,
            sentence=self._sentence(found, steps, needed, is_minimal=is_minimal),
            overrides=tuple(find_overrides(self._options(self.start), self._options(found))),
        )

    def _climb(self, margin: float) -> Levels:
        """From the start to levels that are enough, one step after another."""
        levels = self.start
        is_open = set(range(len(self.roles)))
        while self._snr(levels) < margin:
            # Where each step alone is hidden by what the others lose, all are taken.
            levels = self._best_step(levels, is_open) or self.widest
        return levels

    def _best_step(self, levels: Levels, is_open: set[int]) -> Levels | None:
        """The step with the most dB for its time; forgets the roles that change nothing."""
        best, best_score = None, 0.0
        for number in sorted(is_open):
            # What follows may take as many runs again as there are steps.
            is_affordable = self.num_runs + sum(self.widest) < self.max_runs
            if levels[number] == self.widest[number] or not is_affordable:
                continue
            wider = self._with(levels, number, levels[number] + 1)
            gain = self._snr(wider) - self._snr(levels)
            if gain == 0:
                is_open.discard(number)
            if gain < _LEAST_GAIN_DB:
                continue
            score = gain / self._cost(number, levels[number], wider[number])
            if score > best_score:
                best, best_score = wider, score
        return best

    def _descend(self, levels: Levels, margin: float) -> tuple[Levels, bool]:
        """Without the steps that are not needed, the dearest first; whether all were tried."""
        while True:
            numbers = [number for number, level in enumerate(levels) if level]
            for number in sorted(numbers, key=lambda each: -self._cost(each, 0, levels[each])):
                each = self._with(levels, number, levels[number] - 1)
                if each not in self.snrs and self.num_runs >= self.max_runs:
                    return levels, False
                if self._snr(each) >= margin:
                    levels = each
                    break
            else:
                return levels, True

    def _steps(self, found: Levels) -> tuple[WiderRole, ...]:
        """One a role; first the one without which the most is lost."""
        narrower = {
            number: self._with(found, number, level - 1)
            for number, level in enumerate(found)
            if level
        }
        order = sorted(narrower, key=lambda number: self.snrs.get(narrower[number], math.inf))
        steps = []
        for count, number in enumerate(order):
            so_far = set(order[: count + 1])
            levels = tuple(level if i in so_far else 0 for i, level in enumerate(found))
            is_affordable = levels in self.snrs or self.num_runs < self.max_runs
            formats = self.ladders.formats[self.roles[number]]
            steps.append(
                WiderRole(
                    role=self.roles[number],
                    from_format=formats[0],
                    to_format=formats[found[number]],
                    gradient_snr_db=_finite(self._snr(levels)) if is_affordable else None,
                    step_time_s=self._time(levels),
                    step_time_before_s=self._time(self.start),
                    origin="MODELLED",
                )
            )
        return tuple(steps)

    def _describe(self, levels: Levels) -> str:
        """A recipe by what is wider than at the start."""
        changes = [
            f"{role} {self.ladders.formats[role][level]}"
            for role, level in zip(self.roles, levels, strict=True)
            if level
        ]
        return ", ".join(changes) or "the recipe as it is"

    def _sentence(
        self, found: Levels, steps: tuple[WiderRole, ...], needed: str, *, is_minimal: bool
    ) -> str:
        changes = ", ".join(f"{each.role} {each.from_format} to {each.to_format}" for each in steps)
        verb = "needs a wider format" if len(steps) == 1 else "need wider formats"
        sentence = (
            f"{len(steps)} of {len(self.roles)} roles {verb}: {changes}; that takes it from "
            f"{_db(self._snr(self.start))} to {_db(self._snr(found))} {needed}"
        )
        before, after = self._time(self.start), self._time(found)
        if before and after is not None:
            sentence += (
                f"; the step takes {after / before:.3f} times as long, {1e3 * before:.4g} to "
                f"{1e3 * after:.4g} ms (MODELLED)"
            )
        else:
            sentence += "; what it costs is not modelled"
        if not is_minimal:
            sentence += f"; fewer may do: all {self.max_runs} runs are used"
        return sentence

    def _cost(self, number: int, narrow: int, wide: int) -> float:
        """Of one role's rungs, all others as at the start, which saves most of the modelling.

        Of the step's time; all alike where that is not modelled.
        """
        start = self._time(self.start)
        before, after = (
            self._time(self._with(self.start, number, level)) for level in (narrow, wide)
        )
        if not start or before is None or after is None:
            return 1.0
        return max(_LEAST_COST, (after - before) / start)

    def _with(self, levels: Levels, number: int, level: int) -> Levels:
        return (*levels[:number], level, *levels[number + 1 :])

    def _snr(self, levels: Levels) -> float:
        if levels not in self.snrs:
            self.num_runs += 1
            self.snrs[levels] = self.measure(self._options(levels))
            logger.info(
                "tune: %s: %s (%s)", self._describe(levels), _db(self.snrs[levels]), self.origin
            )
        return self.snrs[levels]

    def _time(self, levels: Levels) -> float | None:
        if levels not in self.times:
            self.times[levels] = self.step_time(self._options(levels))
        return self.times[levels]

    def _options(self, levels: Levels) -> Options:
        return self.ladders.options_at(dict(zip(self.roles, levels, strict=True)))


def _db(snr: float) -> str:
    if math.isfinite(snr):
        return f"{snr:.1f} dB"
    return "no error" if snr > 0 else "no finite gradients"


def _finite(snr: float) -> float | None:
    return snr if math.isfinite(snr) else None
