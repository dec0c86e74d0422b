"""Real data-parallel training steps of a small model, with the exchange of gradients and without.

Both are torch's DistributedDataParallel with the same buckets; without means that its hook does all
but to sum, so that the two differ by the exchange alone. It does not know what is predicted.
"""

import copy
import random
import time
from collections.abc import Callable, Sequence

import msgspec
import torch
import torch.distributed as dist
from torch import nn
from torch.futures import Future
from torch.nn.parallel import DistributedDataParallel

WIDTH = 1024
NUM_LAYERS = 6  # 25 MB of gradients
BATCH = 32
BUCKET_MB = 8
WARM_UP = 3  # DistributedDataParallel orders its buckets anew after the first step


class StepSample(msgspec.Struct, frozen=True, kw_only=True):
    """Two steps of one process, one of each kind.

    Args:
        round: of all world sizes.
        world_size: of the group.
        with_s: of the step that exchanges gradients, without an optimiser.
        without_s: of the step that does not.
        ready_s: when the gradients of the latter were there, in the order in which they came.
        gradient_bytes: of each, in that order.
        bucket_bytes: that torch made, in the order in which they are summed.
    """

    round: int
    world_size: int
    with_s: float
    without_s: float
    ready_s: tuple[float, ...]
    gradient_bytes: tuple[int, ...]
    bucket_bytes: tuple[int, ...]


class _Step:
    """One wrapped model, and the times at which its gradients come."""

    def __init__(self, model: nn.Module, group: dist.ProcessGroup | None, exchanges: bool) -> None:
        self.came: list[tuple[float, int]] = []
        self.buckets: list[int] = []
        self.wrapped = DistributedDataParallel(
            model, process_group=group, bucket_cap_mb=BUCKET_MB, gradient_as_bucket_view=True
        )
        if not exchanges:
            self.wrapped.register_comm_hook(None, _divide_only(group, self.buckets))
            for parameter in model.parameters():
                parameter.register_post_accumulate_grad_hook(self._note)  # type: ignore[no-untyped-call]  # torch has no types here

    def run(self, batch: torch.Tensor) -> float:
        """Seconds of forward and backward."""
        self.wrapped.zero_grad(set_to_none=False)
        self.came.clear()
        self.buckets.clear()
        self.start = time.perf_counter()
        self.wrapped(batch).square().mean().backward()
        return time.perf_counter() - self.start

    def _note(self, parameter: torch.Tensor) -> None:
        num_bytes = parameter.numel() * parameter.element_size()
        self.came.append((time.perf_counter() - self.start, num_bytes))


def _divide_only(
    group: dist.ProcessGroup | None, buckets: list[int]
) -> Callable[..., Future[torch.Tensor]]:
    """A hook that does what the exchange does, but for the sum; it notes the buckets' bytes."""

    def divide(
        _: object,
        bucket: dist.GradBucket,  # type: ignore[name-defined]  # torch looks at this annotation
    ) -> Future[torch.Tensor]:
        buffer = bucket.buffer()
        buckets.append(buffer.numel() * buffer.element_size())
        done: Future[torch.Tensor] = Future()
        done.set_result(buffer.div_(dist.get_world_size(group)))
        return done

    return divide


def measure_steps(
    rank: int,
    world_sizes: Sequence[int],
    num_rounds: int,
    groups: dict[int, dist.ProcessGroup | None],
) -> tuple[StepSample, ...]:
    """Time both kinds of step in turn among the first processes; all have to call this."""
    if not num_rounds:
        return ()
    torch.manual_seed(0)
    layers = [layer for _ in range(NUM_LAYERS) for layer in (nn.Linear(WIDTH, WIDTH), nn.ReLU())]
    model = nn.Sequential(*layers)
    batch = torch.randn(BATCH, WIDTH)
    steps: dict[int, tuple[_Step, _Step]] = {}
    for world_size in world_sizes:
        if rank < world_size:
            group = groups[world_size]
            steps[world_size] = (
                _Step(copy.deepcopy(model), group, exchanges=True),
                _Step(copy.deepcopy(model), group, exchanges=False),
            )
    samples: list[StepSample] = []
    for number in range(-WARM_UP, num_rounds):
        order = random.Random(number)
        for world_size in order.sample(list(world_sizes), len(world_sizes)):
            first = order.random() < 0.5
            seconds = _run_both(steps.get(world_size), batch, first)
            if seconds is not None and number >= 0:
                samples.append(_sample(number, world_size, seconds, steps[world_size][1]))
    return tuple(samples)


def _run_both(
    pair: tuple[_Step, _Step] | None, batch: torch.Tensor, with_first: bool
) -> tuple[float, float] | None:
    """Seconds with and without the exchange; None: this process takes no part, but waits."""
    seconds = [0.0, 0.0]
    for at in (0, 1) if with_first else (1, 0):
        dist.barrier()
        if pair is not None:
            seconds[at] = pair[at].run(batch)
    return None if pair is None else (seconds[0], seconds[1])


def _sample(
    number: int, world_size: int, seconds: tuple[float, float], without: _Step
) -> StepSample:
    return StepSample(
        round=number,
        world_size=world_size,
        with_s=seconds[0],
        without_s=seconds[1],
        ready_s=tuple(when for when, _ in without.came),
        gradient_bytes=tuple(num_bytes for _, num_bytes in without.came),
        bucket_bytes=tuple(without.buckets),
    )
