"""Lightning's precision for fused optimisers, whose gradients may be clipped as any others.

Lightning refuses that: a fused step can take the scale off the gradients itself, and then it would
be too late to clip. Taking it off before is allowed as well, and here it is.
"""

from lightning.pytorch.plugins.precision import MixedPrecision, Precision
from lightning.pytorch.utilities import GradClipAlgorithmType
from torch.optim import Optimizer


def make_precision(name: str, *, device: str = "cuda") -> Precision:
    """Of Lightning's names: 32-true, bf16-mixed or 16-mixed."""
    if name == "32-true":
        return Precision()
    assert name in ("bf16-mixed", "16-mixed"), name
    return ClippingMixedPrecision(name, device)  # type: ignore[arg-type]  # a Literal


class ClippingMixedPrecision(MixedPrecision):
    """Mixed precision that clips the gradients of a fused optimiser."""

    def clip_gradients(
        self,
        optimizer: Optimizer,
        clip_val: int | float = 0.0,
        gradient_clip_algorithm: GradClipAlgorithmType = GradClipAlgorithmType.NORM,
    ) -> None:
        is_fused = getattr(optimizer, "_step_supports_amp_scaling", False)
        if clip_val > 0 and is_fused and self.scaler is not None:
            self.scaler.unscale_(optimizer)
        Precision.clip_gradients(self, optimizer, clip_val, gradient_clip_algorithm)
