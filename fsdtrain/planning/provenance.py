"""Where the figures of a plan are from, in the words of plan.json."""

from typing import Literal

from fsdtrain.planning.fleet import ASSUMPTIONS, Figure, Fleet, unit_of
from fsdtrain.planning.record import Sourced
from fsdtrain.step_profile import Assumption, Origin

SourcedOrigin = Origin | Literal["GIVEN", "PUBLISHED", "ASSUMED"]


def figure_origin(figure: Figure) -> SourcedOrigin:
    """Of a figure of a fleet."""
    return _origin(figure.confidence)


def assumption_origin(assumption: Assumption) -> SourcedOrigin:
    """Of a figure that a backend's machine model rests on."""
    return _origin(assumption.confidence)


def _origin(confidence: str) -> SourcedOrigin:
    if confidence == "measured":
        return "MEASURED"
    if confidence == "given":
        return "GIVEN"
    return "ASSUMED" if confidence in ASSUMPTIONS else "PUBLISHED"


def fleet_figures(fleet: Fleet) -> tuple[Sourced, ...]:
    """All figures of a fleet as plan.json shows them."""
    return tuple(
        Sourced(
            name=name,
            value=figure.value,
            unit=unit_of(name)[0],
            origin=figure_origin(figure),
            source=f"{figure.source} ({figure.confidence})",
        )
        for name, figure in fleet.figures().items()
    )
