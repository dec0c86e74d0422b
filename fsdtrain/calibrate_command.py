"""The command `plan calibrate`: argument parsing and printing only."""

import argparse
import logging
from pathlib import Path

from rich.console import Console

from fsdtrain.planning.calibrate import CalibrationSettings, calibrate
from fsdtrain.planning.calibration_words import in_markdown


def main(name: str, arguments: list[str]) -> int:
    """Measure, fit, predict; write both files; print the table."""
    defaults = CalibrationSettings()
    parser = argparse.ArgumentParser(
        prog=f"fsdtrain {name}",
        description="Measure all-reduces of gloo on this machine, fit the network model to some "
        "and predict the others. Takes about four minutes on a quiet machine.",
    )
    parser.add_argument("folder", type=Path, help="where all-reduce-gloo.{json,md} are written")
    parser.add_argument(
        "--seconds", type=float, default=defaults.seconds,
        help=f"of measuring all-reduces (default: {defaults.seconds:g}); more are more exact",
    )  # fmt: skip
    given = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    found = calibrate(CalibrationSettings(seconds=given.seconds), given.folder)
    Console(soft_wrap=True, highlight=False, markup=False).print(in_markdown(found))
    return 0
