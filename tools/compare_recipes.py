"""Trains the same model on the same data with several precision recipes and seeds, side by side.

    python tools/compare_recipes.py --recipes fp32 bf16 cfp8 cfp8_naive --seeds 0 1 2 --jobs 2

Every run is `python -m fsdtrain fit backend=dojo backend/recipe=<recipe> seed=<seed>`, one thread
each, in a folder below --out; a run that is there already is not repeated. Prints one row a recipe:
the mean over the seeds, the spread (smallest to largest), and the distance to the first recipe,
seed by seed. Figures are EMULATED: values of training with the recipe's number formats.
"""

import argparse
import statistics
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from os import environ
from pathlib import Path

from fsdtrain.engine.run_record import read_results

# Name in results.json, heading, factor, unit.
FIGURES = (
    ("vehicle_iou", "vehicle IoU", 100.0, "points"),
    ("path_fde_2s_turn", "path error at 2 s, turns", 1.0, "m"),
)
# Training can fail, which is what a bad recipe does; the command then leaves no results.
FAILED = float("nan")


def main() -> None:
    """Train what is missing, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--recipes", nargs="+", default=["fp32", "bf16", "cfp8", "cfp8_naive"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time")
    parser.add_argument("--out", type=Path, default=Path("runs/recipes"))
    parser.add_argument("overrides", nargs="*", help="further Hydra overrides of every run")
    options = parser.parse_args()
    # The fleet is made once, before the runs that share it.
    runs = [(recipe, seed) for seed in options.seeds for recipe in options.recipes]
    with ThreadPoolExecutor(options.jobs) as pool:
        list(pool.map(lambda run: train(*run, options.out, options.overrides), runs))
    print(table(options.recipes, options.seeds, options.out))


def train(recipe: str, seed: int, out: Path, overrides: Sequence[str]) -> None:
    """One run, unless its results are there; its log lies beside them."""
    run_dir = out / f"{recipe}-{seed}"
    if (run_dir / "results.json").exists():
        return
    run_dir.parent.mkdir(parents=True, exist_ok=True)
    command = [
        sys.executable, "-m", "fsdtrain", "fit", "backend=dojo", f"backend/recipe={recipe}",
        f"seed={seed}", f"run_dir={run_dir}", "num_report_clips=0", *overrides,
    ]  # fmt: skip
    with run_dir.with_suffix(".log").open("w") as log:
        done = subprocess.run(
            command, stdout=log, stderr=log, env={**environ, "OMP_NUM_THREADS": "1"}, check=False
        )
    outcome = "done" if done.returncode == 0 else f"exit status {done.returncode}, see {log.name}"
    print(f"{recipe}, seed {seed}: {outcome}", flush=True)


def read(recipe: str, seed: int, out: Path) -> dict[str, float]:
    """The figures of a run by name; `FAILED` where it left none."""
    run_dir = out / f"{recipe}-{seed}"
    if not (run_dir / "results.json").exists():
        return {name: FAILED for name, *_ in FIGURES}
    values = {figure.name: figure.value for figure in read_results(run_dir).figures}
    return {name: values[name] for name, *_ in FIGURES}


def table(recipes: Sequence[str], seeds: Sequence[int], out: Path) -> str:
    """Markdown, as the README has it."""
    figures = {recipe: [read(recipe, seed, out) for seed in seeds] for recipe in recipes}
    headings = [f"{title} ({unit})" for _, title, _, unit in FIGURES]
    lines = [
        f"| recipe (EMULATED, {len(seeds)} seeds) | {' | | '.join(headings)} | |",
        "|---" * (1 + 2 * len(FIGURES)) + "|",
    ]
    for recipe in recipes:
        cells = [recipe]
        for name, _, factor, _ in FIGURES:
            values = [factor * each[name] for each in figures[recipe]]
            beside = [factor * each[name] for each in figures[recipes[0]]]
            apart = [one - other for one, other in zip(values, beside, strict=True)]
            cells.append(f"{statistics.mean(values):.2f} ({min(values):.2f} to {max(values):.2f})")
            cells.append(f"{statistics.mean(apart):+.2f} ({min(apart):+.2f} to {max(apart):+.2f})")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
