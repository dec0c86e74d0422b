"""What a run logs to: metrics.csv and TensorBoard; and what of Lightning's own talk is kept.

It does not know what is logged.
"""

import csv
import logging
import warnings
from pathlib import Path

from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only


def build_loggers(run_dir: Path, *, first_step: int) -> list[Logger]:
    """Loggers that write below `run_dir`.

    A run that is resumed in its own folder keeps the rows of metrics.csv before `first_step`;
    what came after the checkpoint is trained, and so logged, again.
    """
    return [
        _csv_logger(run_dir, first_step=first_step),
        TensorBoardLogger(run_dir, name="", version="tensorboard"),
    ]


def _csv_logger(run_dir: Path, *, first_step: int) -> CSVLogger:
    path = run_dir / "metrics.csv"
    kept: list[dict[str, str]] = []
    if path.exists():
        with path.open(newline="") as file:
            kept = [row for row in csv.DictReader(file) if int(row["step"]) < first_step]
    # Every row at once: `report serve` reads the file as it grows.
    logger = CSVLogger(run_dir, name="", version="", flush_logs_every_n_steps=1)
    with warnings.catch_warnings():
        # It warns that it deletes the old file, which is why the rows were read above.
        warnings.filterwarnings("ignore", message="Experiment logs directory")
        experiment = logger.experiment
    if kept:
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, fieldnames=list(kept[0]))
            writer.writeheader()
            writer.writerows(kept)
        experiment.metrics_keys = list(kept[0])
    return logger


def quiet_logs() -> None:
    """Keep Lightning's warnings, drop its tips and its second handler; only rank 0 speaks."""
    for name in ("lightning.pytorch", "lightning.fabric", "lightning_fabric", "pytorch_lightning"):
        logger = logging.getLogger(name)
        logger.setLevel(logging.WARNING)
        logger.handlers.clear()
        logger.propagate = True
    if rank_zero_only.rank != 0:  # type: ignore[attr-defined]  # Lightning sets it on the function
        logging.getLogger("fsdtrain").setLevel(logging.WARNING)
    for message in (
        # Steps are counted, not epochs: a small data set has epochs shorter than any interval.
        "The number of training batches",
        # The loader is our own and cannot be given more workers by a hint.
        "The '.*dataloader' does not have many workers",
        # Lightning's own use of a function that torch has deprecated.
        "`isinstance\\(treespec, LeafSpec\\)` is deprecated",
        # A run that is resumed in its own folder.
        "Checkpoint directory .* exists and is not empty",
        # The priors, made anew for every validation, are read before the first batch.
        "The ``compute`` method of metric",
    ):
        warnings.filterwarnings("ignore", message=message)
