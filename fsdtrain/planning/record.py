"""plan.json: what a fleet of machines would need for a training, and the arithmetic of it.

It does not know how anything is found, nor how it looks. Seconds, bytes, joules, watts; shares are
of 1; what could not be told is None. All figures are MODELLED but where a row says otherwise.
"""

from pathlib import Path
from typing import Final, Literal

import msgspec

from fsdtrain.engine.run_record import read_record
from fsdtrain.step_profile import Origin

RECORD_VERSION: Final = 1

# compute: the matrix or vector units; memory: the device's own memory; network: exposed exchange of
# gradients; input: storage or decoding; stragglers; failures: lost work, restarts and checkpoints.
Limit = Literal["compute", "memory", "network", "input", "stragglers", "failures"]


class Sourced(msgspec.Struct, frozen=True, kw_only=True):
    """A figure that the plan rests on."""

    name: str
    value: float
    unit: str
    origin: Origin | Literal["GIVEN", "PUBLISHED", "ASSUMED"]
    source: str


class Question(msgspec.Struct, frozen=True, kw_only=True):
    """What was asked.

    Args:
        num_samples: of the data set.
        num_epochs: over it.
        batch_per_device: samples a replica and step; kept as devices are added (weak scaling).
            A device may hold several replicas.
        target_s: time to train that is asked for; None: not asked.
        budget: money that is asked for, in `currency`; None: not asked.
        currency: of all costs.
        sample_bytes: of a sample in storage; None: not told.
        images_per_sample: that the network sees; None: not told.
        pixels_per_sample: to decode; None: not told.
        max_global_batch: the most samples of a step that are thought to train well; None: no limit
            was stated.
    """

    num_samples: int
    num_epochs: float
    batch_per_device: int
    target_s: float | None
    budget: float | None
    currency: str
    sample_bytes: float | None = None
    images_per_sample: float | None = None
    pixels_per_sample: float | None = None
    max_global_batch: int | None = None


class ScalePoint(msgspec.Struct, frozen=True, kw_only=True):
    """One number of devices.

    Args:
        num_devices: that train.
        step_s: whole, with all below.
        compute_s: of the step by itself on one device.
        exposed_s: exchange of gradients that is not hidden behind the backward pass.
        input_s: that the step waits for its data.
        straggler_share: added to compute and exchange by the slowest device.
        failure_share: of the time, lost to checkpoints, restarts and repeated work (Young/Daly).
        checkpoint_interval_s: the best one.
        samples_per_s: useful ones.
        time_to_train_s: of the question.
        efficiency: samples a second and device, as a share of one device by itself.
        limit: what costs the most of the lost efficiency, or what bounds the step where little is.
        power_w: of all devices with their share of the rest, cooling included.
        energy_j: of the whole training.
        ingest_bytes_per_s: from storage.
        cost: None: no price was given.
        samples_per_step: of all devices together: the global batch.
    """

    num_devices: int
    step_s: float
    compute_s: float
    exposed_s: float
    input_s: float
    straggler_share: float
    failure_share: float
    checkpoint_interval_s: float | None
    samples_per_s: float
    time_to_train_s: float
    efficiency: float
    limit: Limit
    power_w: float | None
    energy_j: float | None
    ingest_bytes_per_s: float
    cost: float | None
    samples_per_step: float | None = None


class Sensitivity(msgspec.Struct, frozen=True, kw_only=True):
    """How far one figure moves the time to train, with all others as they are.

    Args:
        name: of the figure, "device_mtbf_hours".
        value: in `unit`.
        low: with `high` the range within which the truth is thought to lie.
        num_devices: that train.
        time_at_low_s: time to train with the figure at `low`.
        time_at_high_s: see `time_at_low_s`.
    """

    name: str
    value: float
    unit: str
    low: float
    high: float
    num_devices: int
    time_at_low_s: float
    time_at_high_s: float
    origin: Origin | Literal["GIVEN", "PUBLISHED", "ASSUMED"]
    source: str


class MachinePlan(msgspec.Struct, frozen=True, kw_only=True):
    """One kind of machine, or a mixed fleet.

    Args:
        name: "h100", "d1_tile", "half Dojo, half NVIDIA".
        device: in words.
        step_time_s: of one device by itself.
        step_bound: what bounds most of the step's time there.
        curve: from 1 device on.
        needed: the point with the fewest devices that meets the target; None: none does, or there
            is no target.
        sentence: the answer in words.
        figures: that it rests on, the network's and failures' included.
        notes: what a reader must know.
        sensitivities: the figures that move the time to train the most, the largest first.
    """

    name: str
    device: str
    step_time_s: float
    step_bound: str
    step_origin: Origin
    curve: tuple[ScalePoint, ...]
    needed: ScalePoint | None
    sentence: str
    figures: tuple[Sourced, ...]
    notes: tuple[str, ...] = ()
    sensitivities: tuple[Sensitivity, ...] = ()


class ArithmeticLine(msgspec.Struct, frozen=True, kw_only=True):
    """One line of a sum: "100 exaFLOP/s / 362 TFLOP/s = 276,243"."""

    text: str
    value: float
    unit: str
    source: str


class PressQuestion(msgspec.Struct, frozen=True, kw_only=True):
    """A question from the press, answered with its arithmetic shown.

    Args:
        name: "100 exaflops".
        question: in words.
        lines: the arithmetic.
        answer: in words.
        published: what was said in public, with its source; "" if nothing was.
    """

    name: str
    question: str
    lines: tuple[ArithmeticLine, ...]
    answer: str
    published: str = ""


class PlanRecord(msgspec.Struct, frozen=True, kw_only=True):
    """plan.json."""

    schema: Literal["fsdtrain-plan"] = "fsdtrain-plan"
    version: Literal[1] = RECORD_VERSION
    question: Question
    model: str  # in words: "hydra-bev tiny, 0.196 M parameters"
    machines: tuple[MachinePlan, ...]
    press: tuple[PressQuestion, ...] = ()
    notes: tuple[str, ...] = ()


def read_plan(folder: Path) -> PlanRecord:
    """The plan in a folder.

    Raises:
        UserError: it is missing, or of another schema or version.
    """
    return read_record(folder / "plan.json", PlanRecord, remedy="plan again")
