"""What the scale model has to know of one replica's training step; filled in by who timed it."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Gradient:
    """One gradient, or several that are ready at once."""

    num_bytes: float
    ready_s: float  # from the start of the step


@dataclass(frozen=True, kw_only=True)
class ReplicaTime:
    """One training step on one machine, by itself; MODELLED seconds from its start.

    Args:
        seconds: of the whole step.
        optimizer_start_s: by when all gradients have to be summed.
        fixed_s: the part before that which a smaller batch would not make shorter: latencies,
            starts of ops, weights read from HBM.
        batch_size: samples of the step.
        gradients: of all weights.
        matmul_flops: as torch counts them (2 a multiply-add).
        joules: of all that moves and computes, without idle power.
        bound: what the step is bound by most of the time: "matrix", "HBM".
        link_share: share of the time before the optimiser in which the mesh is busy.
        gradients_outside: whether gradients lie in HBM rather than in the nodes' memory.
        spilled_bytes: that did not fit into the nodes' memory.
        input_bytes: of the batch, that the host brings while the step before runs.
        cut_bytes: activations that are alive between forward and later forward ops, at evenly
            spread times of the forward pass: what goes to the next stage of a pipeline.
    """

    seconds: float
    optimizer_start_s: float
    fixed_s: float
    batch_size: int
    gradients: tuple[Gradient, ...]
    matmul_flops: float
    joules: float
    bound: str
    link_share: float = 0.0
    gradients_outside: bool = False
    spilled_bytes: float = 0.0
    input_bytes: float = 0.0
    cut_bytes: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        assert 0 <= self.fixed_s <= self.optimizer_start_s <= self.seconds
        assert 0 <= self.link_share <= 1
        assert self.batch_size >= 1

    @property
    def optimizer_s(self) -> float:
        return self.seconds - self.optimizer_start_s

    @property
    def gradient_bytes(self) -> float:
        return sum(each.num_bytes for each in self.gradients)

    def cut_at(self, share: float) -> float:
        """Bytes between the stages of a pipeline that is cut after this share of the forward."""
        if not self.cut_bytes:
            return 0.0
        return self.cut_bytes[min(int(share * len(self.cut_bytes)), len(self.cut_bytes) - 1)]
