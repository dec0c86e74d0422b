"""A small U-Net over the bird's-eye view."""

from collections.abc import Sequence

from torch import Tensor, nn

from fsdtrain.models.blocks import ConvNormRelu, Downsample, ResidualBlock, upsample_to


class BevEncoder(nn.Module):
    """Residual blocks at one resolution after another, each half the last, then back up.

    Level 0 has the grid's resolution and `channels[0]` channels, which come in and go out.
    """

    def __init__(self, *, channels: Sequence[int], blocks: Sequence[int]) -> None:
        super().__init__()
        if not 1 <= len(channels) == len(blocks):
            raise ValueError(f"channels={channels} and blocks={blocks} must have the same length")
        self.down = nn.ModuleList()
        self.up = nn.ModuleList()
        self.lateral = nn.ModuleList()
        for number, (width, num_blocks) in enumerate(zip(channels, blocks, strict=True)):
            layers: list[nn.Module] = [ResidualBlock(width) for _ in range(num_blocks)]
            if number > 0:
                layers.insert(0, Downsample(channels[number - 1], width))
                self.lateral.append(nn.Conv2d(width, channels[number - 1], 1))
                self.up.append(ConvNormRelu(channels[number - 1], channels[number - 1]))
            self.down.append(nn.Sequential(*layers))

    def forward(self, bev_BCXY: Tensor) -> Tensor:
        """Same shape in and out."""
        levels = []
        x = bev_BCXY
        for stage in self.down:
            x = stage(x)
            levels.append(x)
        for fine, lateral, up in zip(
            levels[-2::-1], self.lateral[::-1], self.up[::-1], strict=True
        ):
            x = up(fine + upsample_to(lateral(x), (fine.shape[-2], fine.shape[-1])))
        return x
