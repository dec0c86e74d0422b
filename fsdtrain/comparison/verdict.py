"""From what was found to one sentence and an exit code."""

from fsdtrain.comparison.record import (
    Check,
    NumericsComparison,
    PerformanceComparison,
    TrainingComparison,
    Verdict,
)


def conclude(
    *,
    numerics: NumericsComparison | None,
    training: TrainingComparison | None,
    performance: PerformanceComparison | None,
) -> Verdict:
    """The verdict over all that was asked.

    Costs may differ, and are not judged. What is judged and leaves every question open is no
    verdict: exit code 2, as for what cannot be compared.
    """
    judged = tuple(
        Check(name=name, outcome=found.outcome, sentence=found.sentence)
        for name, found in (("numerics", numerics), ("training", training))
        if found is not None
    )
    costs = (
        ()
        if performance is None
        else (Check(name="performance", outcome="open", sentence=performance.sentence),)
    )
    checks = (*judged, *costs)
    different = [check for check in judged if check.outcome == "different"]
    if different:
        found = "; ".join(f"{_clause(check)}" for check in different)
        return Verdict(exit_code=1, sentence=f"Different: {found}.", checks=checks)
    same = [check for check in judged if check.outcome == "same"]
    still_open = [check for check in judged if check.outcome == "open"]
    if same:
        found = "; ".join(f"{_clause(check)}" for check in (*same, *still_open))
        return Verdict(exit_code=0, sentence=f"The same: {found}.", checks=checks)
    if still_open:
        found = "; ".join(f"{_clause(check)}" for check in still_open)
        return Verdict(exit_code=2, sentence=f"No verdict: {found}.", checks=checks)
    sentence = "Nothing was asked of the numbers."
    if costs:
        sentence = "Costs side by side; nothing was asked of the numbers."
    return Verdict(exit_code=0, sentence=sentence, checks=checks)


def _clause(check: Check) -> str:
    return f"{check.name}: {check.sentence.removesuffix('.')}"
