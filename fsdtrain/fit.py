"""`fsdtrain fit`: data -> model -> training -> evaluation -> report, top to bottom.

The recipe only: every line's work is done by what it calls.
"""

import logging
from datetime import UTC, datetime
from pathlib import Path

from lightning import seed_everything
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig, OmegaConf

from fsdtrain.backend import load_backend
from fsdtrain.build import build_datamodule, build_network, find_data, hash_data
from fsdtrain.engine.checkpoints import find_last_checkpoint, load_weights, read_step
from fsdtrain.engine.loggers import quiet_logs
from fsdtrain.engine.module import DrivingModule
from fsdtrain.engine.run_record import Results, prepare_run_folder
from fsdtrain.engine.step import TrainingStep
from fsdtrain.engine.trainer import build_trainer
from fsdtrain.errors import UserError
from fsdtrain.evaluate import conclude, record_run
from fsdtrain.settings import Settings, read_settings

logger = logging.getLogger(__name__)


def run(config: DictConfig) -> None:
    """Hydra's entry: settings once, then plain values."""
    fit(read_settings(config), config_yaml=OmegaConf.to_yaml(config, resolve=True))


def fit(settings: Settings, *, config_yaml: str) -> Results:
    """Train, evaluate, report; returns the final figures, which the run folder holds as well."""
    started_at = datetime.now(UTC)
    quiet_logs()
    run_dir = prepare_run_folder(settings.run_dir)
    seed_everything(settings.seed, workers=True, verbose=False)

    backend = load_backend(settings.backend["name"], settings.backend_options)
    ckpt_path, first_step = _resume(settings)
    network = build_network(settings.model, backend.op_table())
    train, val = find_data(settings.data)
    datamodule = build_datamodule(settings, network, train, val)
    step = TrainingStep(network)
    module = DrivingModule(step, settings.training, fuses_optimizer=backend.fuses_optimizer)
    backend.compile_step(step)
    if ckpt_path is not None:
        load_weights(module, ckpt_path)  # Lightning loads them again, but refuses with tracebacks

    record_run(settings, backend, run_dir, started_at, config_yaml, hash_data(train, val))
    num_parameters = sum(parameter.numel() for parameter in network.parameters())
    logger.info("model: %.3f M parameters; run folder: %s", num_parameters / 1e6, run_dir)
    trainer = build_trainer(settings.training, backend, run_dir, first_step=first_step)
    trainer.fit(module, datamodule=datamodule, ckpt_path=ckpt_path, weights_only=True)
    # The figures are those of the last weights: "best" was chosen on the very set they stand for.
    load_weights(module, run_dir / "checkpoints" / "last.ckpt")
    return conclude(
        module, datamodule, backend, run_dir, num_report_clips=settings.num_report_clips
    )


def _resume(settings: Settings) -> tuple[Path | None, int]:
    """The checkpoint to go on from, if any, and the step it stands at."""
    path = find_last_checkpoint(settings.run_dir) if settings.resume else settings.ckpt_path
    if path is None:
        # The other ranks of a run find the manifest that rank 0 has just written.
        is_first = rank_zero_only.rank == 0  # type: ignore[attr-defined]  # Lightning sets it
        if is_first and (settings.run_dir / "manifest.json").exists():
            raise UserError(
                f"{settings.run_dir} holds a run already: add resume=last to go on with it, or "
                "choose another run_dir"
            )
        return None, 0
    # Read now, before the data are made, which takes longer.
    return path, read_step(path)
