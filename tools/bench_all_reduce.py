"""Measures all-reduces of gloo on this machine and how well the network model predicts them.

    python tools/bench_all_reduce.py [--seconds 230] [--folder tools/results]

Takes less than five minutes and wants a quiet machine. Writes all-reduce-gloo.json and .md:
predicted against measured, with the sizes and world sizes that were held out of the fit.
"""

import argparse
import logging
from pathlib import Path

from fsdtrain.planning.calibrate import CalibrationSettings, calibrate
from fsdtrain.planning.calibration_words import in_markdown

DEFAULTS = CalibrationSettings()


def main() -> None:
    """Parse the arguments, measure, print the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--world-sizes", type=int, nargs="+", default=DEFAULTS.world_sizes)
    parser.add_argument(
        "--held-out-world-sizes", type=int, nargs="*", default=DEFAULTS.held_out_world_sizes
    )
    parser.add_argument("--seconds", type=float, default=DEFAULTS.seconds)
    parser.add_argument("--step-rounds", type=int, default=DEFAULTS.step_rounds)
    parser.add_argument("--folder", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    calibration = calibrate(
        CalibrationSettings(
            world_sizes=tuple(options.world_sizes),
            held_out_world_sizes=tuple(options.held_out_world_sizes),
            seconds=options.seconds,
            step_rounds=options.step_rounds,
        ),
        options.folder,
    )
    print(in_markdown(calibration))


if __name__ == "__main__":
    main()
