"""A calibration in Markdown: predicted against measured, and what was held out of the fit.

It does not know how anything is measured.
"""

from collections.abc import Iterator

from fsdtrain.planning.calibration_record import Calibration, ErrorSummary, Point, StepPoint

HEADINGS = {
    "": "the fit saw these",
    "size": "held-out sizes",
    "world size": "held-out world sizes",
    "size and world size": "held-out sizes at held-out world sizes",
}


def in_markdown(calibration: Calibration) -> str:
    """The whole page."""
    return "\n".join([*_head(calibration), *_errors(calibration), *_points(calibration),
                      *_steps(calibration.steps)]) + "\n"  # fmt: skip


def verdict(calibration: Calibration, *, most: float = 0.10) -> str:
    """One sentence: how well what was held out is predicted."""
    points = [each for each in calibration.points if each.held_out]
    if not points:
        return "Nothing was held out of the fit, so that nothing was predicted."
    errors = sorted(abs(each.error) for each in points)
    within = sum(error <= most for error in errors)
    return (
        f"{within} of {len(points)} points that the fit had not seen are predicted within "
        f"{most:.0%}; median error {errors[len(errors) // 2]:.1%}, worst {errors[-1]:.1%}."
    )


def _head(calibration: Calibration) -> Iterator[str]:
    ring = calibration.ring
    yield "# All-reduce over gloo: predicted against measured"
    yield ""
    yield (
        f"{calibration.device}, torch {calibration.torch}, {calibration.started_at}; "
        f"{calibration.num_rounds} rounds over all cases. Times are MEASURED "
        f"({calibration.statistic}); predictions are MODELLED."
    )
    yield ""
    yield f"**{verdict(calibration)}**"
    yield ""
    for note in calibration.notes:
        yield f"Note: {note}"
        yield ""
    yield (
        f"Model: (messages^w + bytes^w)^(1/w), w = {ring.overlap:.2f}; messages = 4 (p - 1) "
        f"{ring.alpha_s * 1e6:.1f} us x^({ring.contention:.2f} - {ring.relief:.2f} ln x); bytes = "
        f"2 (p - 1) / p n / {ring.bytes_per_s / 1e9:.2f} GB/s max({ring.chain:.2f}, "
        f"x); p processes on {ring.num_cores} cores, x = p / {ring.num_cores}, n bytes."
    )
    yield ""


def _errors(calibration: Calibration) -> Iterator[str]:
    yield "| | points | median error | 90 % are within | worst |"
    yield "|---|--:|--:|--:|--:|"
    for held_out, errors in calibration.errors.items():
        yield f"| {HEADINGS[held_out]} | {_summary(errors)} |"
    yield ""


def _summary(errors: ErrorSummary) -> str:
    figures = (errors.median, errors.percentile_90, errors.worst)
    return " | ".join([str(errors.num_points), *(f"{each:.1%}" for each in figures)])


def _points(calibration: Calibration) -> Iterator[str]:
    yield (
        "| processes | bytes | measured | spread of samples | predicted | error | held out | cores "
        "in use |"
    )
    yield "|--:|--:|--:|--:|--:|--:|---|--:|"
    for each in calibration.points:
        yield _point(each)
    yield ""


def _point(each: Point) -> str:
    return (
        f"| {each.world_size} | {each.num_bytes:,} | {each.time_s * 1e3:.3f} ms | "
        f"{each.spread:.0%} | {each.predicted_s * 1e3:.3f} ms | {each.error:+.1%} | "
        f"{each.held_out} | {each.core_share:.0%} |"
    )


def _steps(steps: tuple[StepPoint, ...]) -> Iterator[str]:
    if not steps:
        return
    yield "## Data-parallel steps: exposed exchange by bucket replay"
    yield ""
    yield (
        "Forward and backward of a small model; without: the same buckets, but no sums. Exposed "
        "times are predicted for processes whose exchange uses the cores that they compute with; "
        "elsewhere: if it had hardware of its own."
    )
    yield ""
    yield (
        "| processes | buckets | step without (measured) | step with (measured) | exchange "
        "(predicted) | exposed (measured) | exposed (predicted) | elsewhere | error of the step | "
        "held out |"
    )
    yield "|--:|---|--:|--:|--:|--:|--:|--:|--:|---|"
    for each in steps:
        buckets = ", ".join(f"{size / 2**20:.1f}" for size in each.bucket_bytes)
        times = (
            each.without_s, each.with_s, each.exchange_s, each.with_s - each.without_s,
            each.exposed_s, each.exposed_elsewhere_s,
        )  # fmt: skip
        cells = " | ".join(f"{time * 1e3:.1f} ms" for time in times)
        yield (
            f"| {each.world_size} | {buckets} MiB | {cells} | {each.step_error:+.1%} | "
            f"{'world size' if each.held_out else ''} |"
        )
