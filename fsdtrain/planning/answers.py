"""The answer of a plan: the point of a curve that meets the target, and a sentence about it."""

from fsdtrain.planning.curve import (
    Curve,
    PointOf,
    fewest_devices,
    most_devices,
    quickest,
)
from fsdtrain.planning.record import Question, ScalePoint
from fsdtrain.planning.words import describe_point, devices, duration, money


def find_needed(
    point_of: PointOf, curve: Curve, question: Question, devices_per_node: int
) -> ScalePoint | None:
    """The fewest devices that end in time; where only a budget is asked, the quickest within it.

    None: none does, or nothing is asked.
    """
    target_s, budget = question.target_s, question.budget
    if target_s is not None:
        return fewest_devices(
            point_of, curve, lambda point: point.time_to_train_s <= target_s, devices_per_node
        )
    if budget is not None:
        return most_devices(
            point_of,
            curve,
            lambda point: point.cost is not None and point.cost <= budget,
            devices_per_node,
        )
    return None


def answer(
    curve: Curve,
    needed: ScalePoint | None,
    question: Question,
    *,
    bound: str,
    devices_per_node: int,
) -> str:
    """What was found in words.

    Args:
        curve: with at least one point.
        needed: of `find_needed`.
        question: that was asked.
        bound: of the step of one device.
        devices_per_node: of the fleet.
    """

    def told(point: ScalePoint) -> str:
        return describe_point(point, question, bound=bound, devices_per_node=devices_per_node)

    if needed is not None:
        return told(needed) + _against_budget(needed, question)
    best = quickest(curve)
    if question.target_s is not None:
        return (
            f"No number of devices up to {curve[-1].num_devices:,} trains it in "
            f"{duration(question.target_s)}. The quickest: {told(best.point)}"
            + (" More devices make it slower." if best.turns else "")
        )
    if question.budget is not None:
        return (
            f"Not even {devices(curve[0].num_devices)} can be paid from "
            f"{money(question.budget, question.currency)}: {told(curve[0])}"
        )
    return f"{told(curve[0])} The quickest: {told(best.point)}"


def _against_budget(needed: ScalePoint, question: Question) -> str:
    if question.budget is None or needed.cost is None or needed.cost <= question.budget:
        return ""
    return f" That is above the budget of {money(question.budget, question.currency)}."
