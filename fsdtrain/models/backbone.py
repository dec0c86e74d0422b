"""Image features: residual stages and a two-level pyramid, shared by all cameras and frames."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from fsdtrain.models.blocks import ConvNormRelu, Downsample, ResidualBlock, upsample_to


class Backbone(nn.Module):
    """A stem, stages that each halve the picture (the first does not), and a pyramid.

    The pyramid merges the last stage into the one before it, whose stride is the output's:
    stem_stride * 2 ** (number of stages - 2).

    With `recomputes`, a training step keeps only what passes between the blocks of the stages, and
    computes the rest again in the backward pass: less memory, more time, the same numbers.
    """

    def __init__(
        self,
        *,
        stem_stride: int,
        stage_channels: Sequence[int],
        stage_blocks: Sequence[int],
        out_channels: int,
        recomputes: bool = False,
    ) -> None:
        super().__init__()
        if stem_stride not in (2, 4) or not 2 <= len(stage_channels) == len(stage_blocks):
            raise ValueError(
                f"stem_stride={stem_stride} must be 2 or 4, and stage_channels={stage_channels} "
                f"and stage_blocks={stage_blocks} must have the same length, at least 2"
            )
        self.recomputes = recomputes
        first = stage_channels[0]
        # Even kernels without overlap or with a symmetric one keep the picture centred.
        padding = (stem_stride - 2) // 2
        self.stem = nn.Sequential(
            nn.Conv2d(3, first, stem_stride + 2 * padding, stem_stride, padding, bias=False),
            nn.BatchNorm2d(first),
            nn.ReLU(inplace=True),
        )
        self.stages = nn.ModuleList()
        previous = first
        for number, (channels, num_blocks) in enumerate(
            zip(stage_channels, stage_blocks, strict=True)
        ):
            blocks: list[nn.Module] = [ResidualBlock(channels) for _ in range(num_blocks)]
            if number > 0:
                blocks.insert(0, Downsample(previous, channels))
            self.stages.append(nn.Sequential(*blocks))
            previous = channels
        self.coarse = nn.Conv2d(stage_channels[-1], out_channels, 1)
        self.fine = nn.Conv2d(stage_channels[-2], out_channels, 1)
        self.merge = ConvNormRelu(out_channels, out_channels)
        self.stride = stem_stride * 2 ** (len(stage_channels) - 2)

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """[B, 3, H, W] -> [B, out_channels, H / stride, W / stride]."""
        x = self.stem(images_BCHW)
        levels = []
        for stage in self.stages:
            if self.recomputes and torch.is_grad_enabled():
                for block in stage.children():
                    x = _recomputed(block, x)
            else:
                x = stage(x)
            levels.append(x)
        fine = self.fine(levels[-2])
        coarse = upsample_to(self.coarse(levels[-1]), (fine.shape[-2], fine.shape[-1]))
        merged: Tensor = self.merge(fine + coarse)
        return merged


def _recomputed(block: nn.Module, x: Tensor) -> Tensor:
    def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        return nullcontext(), _untracked(block)

    if torch.compiler.is_compiling():  # one graph, in which statistics are updated once
        found: Tensor = checkpoint(block, x, use_reentrant=False)
    else:
        found = checkpoint(block, x, use_reentrant=False, context_fn=contexts)
    return found


@contextmanager
def _untracked(block: nn.Module) -> Iterator[None]:
    """The second time, batch norms must not count the same pictures again."""
    norms = [module for module in block.modules() if isinstance(module, nn.BatchNorm2d)]
    before = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        norm.momentum, norm.num_batches_tracked = 0.0, None
    try:
        yield
    finally:
        for norm, (momentum, count) in zip(norms, before, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, count
