"""The convolution blocks all parts of the model are made of."""

from torch import Tensor, nn
from torch.nn import functional as F


class ConvNormRelu(nn.Sequential):
    """Convolution, batch norm, ReLU; the padding keeps a stride-1 size."""

    def __init__(self, in_channels: int, out_channels: int, *, kernel: int = 3, stride: int = 1):
        super().__init__(
            nn.Conv2d(in_channels, out_channels, kernel, stride, kernel // 2, bias=False),
            nn.BatchNorm2d(out_channels),
            nn.ReLU(inplace=True),
        )


class Downsample(nn.Sequential):
    """Halve rows and columns.

    Kernel 4 with padding 1 keeps the picture centred; kernel 3 would shift it by half a pixel at
    every stage, and the lift reads features at exact places.
    """

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__(
            nn.Conv2d(in_channels, out_channels, 4, 2, 1, bias=False),
            nn.BatchNorm2d(out_channels),
            nn.ReLU(inplace=True),
        )


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions around a shortcut (ResNet's basic block, arXiv 1512.03385)."""

    def __init__(self, channels: int):
        super().__init__()
        self.first = ConvNormRelu(channels, channels)
        self.second = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(channels)
        # The block starts as the identity, which lets deep stacks train at a high rate.
        nn.init.zeros_(self.norm.weight)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.norm(self.second(self.first(x))))


def upsample_to(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Bilinear; `size` is static, odd ones work too."""
    return F.interpolate(x, size=size, mode="bilinear", align_corners=False)
