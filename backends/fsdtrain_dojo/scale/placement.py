"""Where the replicas of a model live on a machine that holds many, and what a step then takes.

Every replica trains a batch like the captured one (data parallel, weak scaling); within its home,
lowering spreads every op over the nodes (tensor parallel); where one slice does not hold the model,
the home has several, a stage of a pipeline each. The time of a replica comes from whoever lowers
and schedules it; this file adds what joining replicas costs. All figures are MODELLED.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache

from fsdtrain.backend import BackendError
from fsdtrain_dojo.machine.schema import Machine
from fsdtrain_dojo.machine.totals import totals
from fsdtrain_dojo.scale.all_reduce import AllReduce, all_reduce
from fsdtrain_dojo.scale.grid import SliceGrid, lay_slices
from fsdtrain_dojo.scale.join import Block, Join, join_homes, network_port
from fsdtrain_dojo.scale.overlap import Overlap, overlap
from fsdtrain_dojo.scale.pipeline import PipelineTime, time_pipeline
from fsdtrain_dojo.scale.replica import ReplicaTime
from fsdtrain_dojo.scale.slices import slice_machine
from fsdtrain_dojo.scale.ways import Way, find_ways, network_way


@dataclass(frozen=True, kw_only=True)
class Placement:
    """Where replicas live.

    Args:
        level: of the slices: "die", "tile", "tray".
        block: slices of a replica, one for each stage of its pipeline.
        num_replicas: data parallel.
        num_meshes: that the replicas are spread over (or that each spans several of).
        nodes_per_stage: tensor parallel.
        num_microbatches: of a batch.
    """

    level: str
    block: Block
    num_replicas: int
    num_meshes: int
    nodes_per_stage: int
    num_microbatches: int

    @property
    def num_stages(self) -> int:
        return self.block.num_slices


@dataclass(frozen=True, kw_only=True)
class PlacedTime:
    """One step of all replicas.

    Args:
        placement: where they live.
        replica: the step of one, on a slice that had the memory of all its stages.
        pipeline: of one, in its stages.
        summing: the all-reduce of gradients beside it.
        input_s: by how much the host's links are slower than all that.
        step_s: of the whole.
        samples_per_s: of all replicas.
        efficiency: of as many replicas that need not wait for each other.
        matmul_share: of the whole machine's peak of matrix products (MFU).
        joules: of the machine in a step, idle power included.
        limit_watts: of the machine.
        limited_by: what costs most, in words.
    """

    placement: Placement
    replica: ReplicaTime
    pipeline: PipelineTime
    summing: Overlap
    input_s: float
    step_s: float
    samples_per_s: float
    efficiency: float
    matmul_share: float
    joules: float
    limit_watts: float
    limited_by: str

    @property
    def watts(self) -> float:
        return self.joules / self.step_s


ProgramTimeOn = Callable[[Machine], ReplicaTime]


def stage_machine(machine: Machine, level_name: str, num_stages: int) -> Machine:
    """A slice with the memory of `num_stages` slices.

    The whole program takes as long on it as on all stages in turn: each stage runs its part at the
    rates of one slice, out of its own memory.

    Raises:
        BackendError: see `slice_machine`.
    """
    one = slice_machine(machine, level_name)
    if num_stages == 1:
        return one
    memory = one.node.memory
    return replace(
        one,
        node=replace(
            one.node, memory=replace(memory, capacity_bytes=memory.capacity_bytes * num_stages)
        ),
        interfaces=tuple(
            replace(
                each,
                memory=each.memory
                and replace(each.memory, capacity_bytes=each.memory.capacity_bytes * num_stages),
            )
            for each in one.interfaces
        ),
    )


def choose_block(grid: SliceGrid, num_stages: int) -> Block | None:
    """The slices of a replica that leave the fewest others without work; None: there are too few.

    Among equals, the one that is closest to a square.
    """
    in_mesh = grid.rows * grid.columns
    if num_stages > in_mesh:
        meshes, rest = divmod(num_stages, in_mesh)
        if rest or meshes > grid.num_meshes:
            return None
        return Block(rows=grid.rows, columns=grid.columns, meshes=meshes)
    blocks = [
        Block(rows=rows, columns=num_stages // rows)
        for rows in range(1, grid.rows + 1)
        if num_stages % rows == 0 and num_stages // rows <= grid.columns
    ]

    def worth(block: Block) -> tuple[int, int]:
        homes = (grid.rows // block.rows) * (grid.columns // block.columns)
        return homes, -abs(block.rows - block.columns)

    return max(blocks, key=worth, default=None)


class Site:
    """A level of a machine as the home of replicas, and what joining them there costs."""

    def __init__(self, machine: Machine, level_name: str, num_stages: int, block: Block) -> None:
        self.machine, self.level = machine, level_name
        self.num_stages, self.block = num_stages, block
        self.grid = lay_slices(machine, level_name)
        self.join: Join = join_homes(machine, level_name, block)
        self.port = network_port(machine, self.grid.num_meshes)

    def stage_way(self, num_bytes: float) -> Way:
        """The quickest way of a message between the two stages that are worst joined."""
        ways = []
        if self.block.meshes > 1:
            assert self.port is not None
            ways.append(network_way(self.port, num_bytes))
        if self.block.columns > 1:
            ends = [((0, at), (0, at + 1)) for at in range(self.grid.columns - 1)]
            ways += [find_ways(self.grid, self.port, *each, num_bytes)[0] for each in ends]
        if self.block.rows > 1:
            ends = [((at, 0), (at + 1, 0)) for at in range(self.grid.rows - 1)]
            ways += [find_ways(self.grid, self.port, *each, num_bytes)[0] for each in ends]
        return max(ways, key=lambda way: way.seconds)

    def time(self, replica: ReplicaTime, peak_flops_per_s: float) -> PlacedTime:
        """A step of all replicas, each of which takes this time by itself."""
        pipeline = time_pipeline(
            replica, self.num_stages, lambda each: self.stage_way(each).seconds
        )

        @cache
        def summed(num_bytes: float) -> AllReduce:
            return all_reduce(self.join, num_bytes, lies_outside=replica.gradients_outside)

        summing = overlap(
            pipeline.gradients, pipeline.forward_backward_s, replica.link_share, summed
        )
        count = self.join.num_replicas
        step_s = pipeline.seconds + summing.exposed_s
        input_s = max(0.0, self._feed_s(count * replica.input_bytes) - step_s)
        step_s += input_s
        flops = count * replica.matmul_flops
        joules = count * (replica.joules + self._stage_joules(replica)) + summing.joules
        return PlacedTime(
            placement=Placement(
                level=self.level,
                block=self.block,
                num_replicas=count,
                num_meshes=self.grid.num_meshes,
                nodes_per_stage=self.join.num_nodes // self.num_stages,
                num_microbatches=pipeline.num_microbatches,
            ),
            replica=replica,
            pipeline=pipeline,
            summing=summing,
            input_s=input_s,
            step_s=step_s,
            samples_per_s=count * replica.batch_size / step_s,
            efficiency=pipeline.seconds / step_s,
            matmul_share=flops / (step_s * peak_flops_per_s),
            joules=joules + self.machine.power.idle_watts * step_s,
            limit_watts=self.machine.power.limit_watts,
            limited_by=_limit(replica, pipeline, summing, input_s),
        )

    def _feed_s(self, num_bytes: float) -> float:
        """Seconds in which the host's links bring the batches of all replicas."""
        rate = totals(self.machine).host_bytes_per_s
        return num_bytes / rate if rate else 0.0

    def _stage_joules(self, replica: ReplicaTime) -> float:
        """Of all messages between the stages of a replica, both ways."""
        cuts = [replica.cut_at(each / self.num_stages) for each in range(1, self.num_stages)]
        return sum(2 * self.stage_way(each).joules for each in cuts)


def _limit(replica: ReplicaTime, pipeline: PipelineTime, summing: Overlap, input_s: float) -> str:
    summing_by = max(
        (summing.mesh_s, "the mesh"),
        (summing.network_s, "the network"),
        (summing.memory_s, "HBM"),
    )[1]
    return max(
        (pipeline.work_s, f"the replica's own work ({replica.bound})"),
        (pipeline.bubble_s, "the pipeline's bubble"),
        (pipeline.transfer_s, "messages between stages"),
        (summing.exposed_s, f"the all-reduce of gradients ({summing_by})"),
        (input_s, "the host's links, which bring the batches"),
    )[1]


def divide_batch(placed: PlacedTime, machine: Machine, peak_flops_per_s: float) -> PlacedTime:
    """The same global batch as one replica's, divided over all (strong scaling).

    At best: what a smaller batch does not make shorter is `ReplicaTime.fixed_s`; that smaller
    pieces fill the nodes less is left out.

    Raises:
        BackendError: it does not divide.
    """
    replica, count = placed.replica, placed.placement.num_replicas
    if replica.batch_size % count:
        most = max(each for each in range(1, count + 1) if replica.batch_size % each == 0)
        raise BackendError(
            f"a batch of {replica.batch_size} does not divide over {count} replicas: give a "
            f"multiple of {count} (data.batch_size={-(-replica.batch_size // count) * count}), or "
            f"use {most} of the replicas"
        )
    before = replica.fixed_s + (replica.optimizer_start_s - replica.fixed_s) / count
    shrink = before / replica.optimizer_start_s if replica.optimizer_start_s else 1.0
    smaller = replace(
        replica,
        seconds=before + replica.optimizer_s,
        optimizer_start_s=before,
        batch_size=replica.batch_size // count,
        gradients=tuple(replace(each, ready_s=each.ready_s * shrink) for each in replica.gradients),
        matmul_flops=replica.matmul_flops / count,
        joules=replica.joules / count,
        spilled_bytes=replica.spilled_bytes / count,
        input_bytes=replica.input_bytes / count,
        cut_bytes=tuple(each / count for each in replica.cut_bytes),
    )
    place = placed.placement
    site = Site(machine, place.level, place.num_stages, place.block)
    return site.time(smaller, peak_flops_per_s)


def peak_of(machine: Machine, format_name: str) -> float:
    """Of matrix products in this format, of the whole machine.

    Raises:
        BackendError: the machine has no such format.
    """
    peaks = totals(machine).matmul_flops_per_s
    if format_name not in peaks:
        raise BackendError(
            f"machine {machine.name} has no rate for {format_name}; its formats are "
            f"{', '.join(peaks)}: choose a recipe with these (backend/recipe)"
        )
    return peaks[format_name]
