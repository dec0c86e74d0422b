"""`fsdtrain plan`: what would N of these machines do? Time, power and cost of a training.

The recipe only: the captured step modelled on one device of every fleet, then the fleets.
"""

import logging
import math
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime

from lightning import seed_everything
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from torch.utils import _pytree

from fsdtrain.backend import load_backend
from fsdtrain.build import build_datamodule, build_network, find_data, hash_data, move_step
from fsdtrain.data.assignment import Share
from fsdtrain.data.batch import ClipBatch
from fsdtrain.data.shard import find_shards, read_clip, read_index
from fsdtrain.engine.loggers import quiet_logs
from fsdtrain.engine.optimizer import build_optimizer
from fsdtrain.engine.profile_record import read_profile
from fsdtrain.engine.run_record import prepare_run_folder, write_json
from fsdtrain.engine.step import TrainingStep
from fsdtrain.errors import UserError
from fsdtrain.evaluate import record_run
from fsdtrain.planning.device_step import Workload
from fsdtrain.planning.fleet import Fleet
from fsdtrain.planning.fleet_file import read_fleet
from fsdtrain.planning.machines import PlannedMachine, check_question, plan_machines
from fsdtrain.planning.mixed import plan_mixed
from fsdtrain.planning.press import answer_press_questions
from fsdtrain.planning.record import PlanRecord, Question
from fsdtrain.report.pages import write_plan_page
from fsdtrain.report.plan_text import plan_text
from fsdtrain.settings import PlanSettings, read_plan_settings

logger = logging.getLogger(__name__)

SECONDS_A_DAY = 86_400.0


def run(config: DictConfig) -> None:
    """Hydra's entry: settings once, then plain values."""
    plan(read_plan_settings(config), config_yaml=OmegaConf.to_yaml(config, resolve=True))


def plan(settings: PlanSettings, *, config_yaml: str) -> PlanRecord:
    """Model the step on every machine, plan the fleets, print and write it all."""
    started_at = datetime.now(UTC)
    quiet_logs()
    run_dir = prepare_run_folder(settings.run_dir)
    fleets = {
        name: read_fleet(name, (settings.figures or {}).get(name)) for name in settings.fleets
    }
    _check_names(settings, fleets)
    seed_everything(settings.seed, workers=True, verbose=False)

    backend = load_backend(settings.backend["name"], settings.backend_options)
    network = build_network(settings.model, backend.op_table())
    train, val = find_data(settings.data)
    record_run(settings, backend, run_dir, started_at, config_yaml, hash_data(train))
    datamodule = build_datamodule(settings, network, train, val)
    share = Share(batch_size=settings.data.batch_size)
    batch = next(iter(datamodule.loader("train", share)))
    workload = _workload(settings, TrainingStep(network), batch, train)
    question = _question(settings, workload, batch)
    check_question(question)

    machines = {name: _machine(settings, fleet, batch) for name, fleet in fleets.items()}
    plans = plan_machines(
        list(machines.values()), workload, question, most_devices=settings.max_devices
    )
    if settings.mixed is not None:
        plans += plan_mixed(
            f"half {settings.mixed[0]}, half {settings.mixed[1]}",
            [machines[name] for name in settings.mixed],
            workload,
            question,
            most_devices=settings.max_devices,
        )
    record = PlanRecord(
        question=question,
        model=workload.model,
        machines=plans,
        press=answer_press_questions() if settings.press else (),
    )
    write_json(run_dir / "plan.json", record)
    Console().print(plan_text(record))
    logger.info("all figures: %s", run_dir / "plan.json")
    if settings.page:
        logger.info("page: %s", write_plan_page(run_dir))
    return record


def _check_names(settings: PlanSettings, fleets: Mapping[str, Fleet]) -> None:
    for field, names in (
        ("profiles", settings.profiles or ()), ("figures", settings.figures or ()),
        ("mixed", settings.mixed or ()),
    ):  # fmt: skip
        for name in names:
            if name not in fleets:
                raise UserError(
                    f"{field}: {name} is not among fleets={list(fleets)}: name one of these"
                )


def _machine(settings: PlanSettings, fleet: Fleet, batch: ClipBatch) -> PlannedMachine:
    """The step on one device: as it was profiled, or as the backend models its machine."""
    given = (settings.profiles or {}).get(fleet.name)
    if given is not None:
        record = read_profile(given)
        return PlannedMachine(fleet=fleet, profile=record.profile, batch_size=record.num_clips)
    if fleet.machine is None:
        raise UserError(
            f"fleet {fleet.name} names no machine that a backend could model: give the folder of a "
            f"profile, profiles={{{fleet.name}: <folder>}}"
        )
    logger.info("modelling the step on one %s", fleet.machine)
    options = {**settings.backend_options, "machine": fleet.machine}
    backend = load_backend(settings.backend["name"], options)
    step = TrainingStep(build_network(settings.model, backend.op_table()))
    move_step(step, backend)
    backend.compile_step(step)
    on_device = _pytree.tree_map(backend.to_device, batch)
    optimizer = build_optimizer(step, settings.training, is_fused=backend.fuses_optimizer)
    profile = backend.profile_step(step, on_device, optimizer)
    return PlannedMachine(
        fleet=fleet, profile=replace(profile, timeline=()), batch_size=settings.data.batch_size
    )


def _workload(settings: PlanSettings, step: TrainingStep, batch: ClipBatch, train: str) -> Workload:
    # Named as in the step, whose profile tells layers by these names.
    shapes = {
        name: tuple(weight.shape)
        for name, weight in step.named_parameters()
        if weight.requires_grad
    }
    num_parameters = sum(math.prod(shape) for shape in shapes.values())
    num_cameras = batch.intrinsics_BN33.shape[1]
    rows, columns = settings.model.image_size
    return Workload(
        model=f"hydra-bev, {num_parameters / 1e6:.3g} M parameters, {num_cameras} cameras of "
        f"{rows}x{columns}, {settings.model.num_frames} frames",
        parameter_shapes=shapes,
        sample_bytes=_bytes_of_a_clip(train),
        pixels_per_sample=_pixels_of_a_window(settings, train),
    )


def _pixels_of_a_window(settings: PlanSettings, train: str) -> float:
    """To decode: a stream is decoded from its first frame to the last of the window."""
    shard = find_shards(train)[0]
    clip = read_clip(shard, read_index(shard).clips[0], cameras=settings.data.cameras)
    seen = (settings.model.num_frames - 1) * settings.data.frame_stride + 1
    num_frames = (seen + clip.meta.num_frames) / 2  # windows begin anywhere in the clip
    return num_frames * sum(each.height * each.width for each in clip.rig.cameras.values())


def _bytes_of_a_clip(train: str) -> float:
    """Of the training shards; a window reads its whole clip."""
    indices = [read_index(shard) for shard in find_shards(train)]
    return sum(index.size_bytes for index in indices) / sum(index.num_clips for index in indices)


def _question(settings: PlanSettings, workload: Workload, batch: ClipBatch) -> Question:
    days = settings.target_days
    num_cameras = batch.intrinsics_BN33.shape[1]
    return Question(
        num_samples=settings.num_samples,
        num_epochs=settings.num_epochs,
        batch_per_device=settings.data.batch_size,
        target_s=None if days is None else days * SECONDS_A_DAY,
        budget=settings.budget,
        currency=settings.currency,
        sample_bytes=workload.sample_bytes,
        images_per_sample=float(num_cameras * settings.model.num_frames),
        pixels_per_sample=workload.pixels_per_sample,
        max_global_batch=settings.max_global_batch,
    )
