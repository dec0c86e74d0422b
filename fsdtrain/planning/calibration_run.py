"""Starts the processes of a calibration, waits for them no longer than it has to, and ends them.

Processes are spawned, never forked; they find each other through a file, and talk over the loopback
or the interface that gloo chooses. It does not know what they measure.
"""

import tempfile
import time
from pathlib import Path

import msgspec
import torch.distributed as dist
from torch.multiprocessing.spawn import (
    ProcessContext,
    ProcessExitedException,
    spawn,
)

from fsdtrain.errors import UserError
from fsdtrain.planning.calibration_worker import COULD_NOT_JOIN, RankResult, Work, run_worker

START_S = 60.0  # to import torch and to join, and as much again for every process
POLL_S = 0.5


def run_processes(work: Work) -> tuple[RankResult, ...]:
    """What each process measured, by rank.

    Raises:
        UserError: gloo is not there, the processes could not join, one was killed, or they took far
            longer than asked for.
    """
    if not (dist.is_available() and dist.is_gloo_available()):
        raise UserError(
            "calibration needs torch.distributed with gloo, which this torch was built without: "
            "install a torch that has it"
        )
    num_processes = max(work.world_sizes)
    limit_s = START_S * (1 + num_processes) + 4 * work.seconds + 5 * work.step_rounds
    with tempfile.TemporaryDirectory(prefix="fsdtrain-calibrate-") as folder:
        context = spawn(  # type: ignore[no-untyped-call]  # torch has no types here
            run_worker, args=(work, folder), nprocs=num_processes, join=False, daemon=True
        )
        assert context is not None
        try:
            _wait(context, Path(folder), limit_s)
        finally:
            for process in context.processes:
                if process.is_alive():
                    process.kill()
                process.join()
        return tuple(
            msgspec.json.decode((Path(folder) / f"rank-{rank}.json").read_bytes(), type=RankResult)
            for rank in range(num_processes)
        )


def _wait(context: ProcessContext, folder: Path, limit_s: float) -> None:
    end = time.monotonic() + limit_s
    try:
        while not context.join(timeout=POLL_S):
            if time.monotonic() > end:
                raise UserError(
                    f"calibration: its processes were not done after {limit_s:.0f} s and were "
                    "ended: measure for fewer seconds, or with fewer or smaller world sizes"
                )
    except ProcessExitedException as error:
        raise UserError(_why_it_ended(error, folder)) from error


def _why_it_ended(error: ProcessExitedException, folder: Path) -> str:
    if error.exit_code == COULD_NOT_JOIN:
        reasons = [path.read_text(encoding="utf-8") for path in sorted(folder.glob("rank-*.txt"))]
        return (
            f"calibration: processes could not reach each other over gloo ({reasons[0]}): local "
            "connections must be allowed; GLOO_SOCKET_IFNAME, if set, must name an interface"
        )
    return (
        f"calibration: process {error.error_index} was ended ({error}): with too little memory, "
        "give smaller sizes or world sizes"
    )
