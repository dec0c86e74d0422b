"""Small models of many kinds, as anybody would write them: tens of milliseconds a step.

Each is a module forward(inputs) -> scalar loss with dropout in it. With `is_checkpointed` its
blocks run under activation checkpointing. They know nothing of number formats.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

Inputs = dict[str, Tensor]
DROPOUT = 0.2
NUM_CLASSES = 7


class Model(nn.Module):
    """Runs its blocks as they are or checkpointed."""

    def __init__(self, *, is_checkpointed: bool) -> None:
        super().__init__()
        self.is_checkpointed = is_checkpointed

    def run(self, block: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
        if self.is_checkpointed:
            return checkpoint(block, *inputs, use_reentrant=False)
        return block(*inputs)


class BasicBlock(nn.Module):
    """ResNet's block of two convolutions."""

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.shortcut = nn.Sequential()
        if stride != 1 or in_channels != channels:
            self.shortcut = nn.Sequential(
                nn.Conv2d(in_channels, channels, 1, stride, bias=False), nn.BatchNorm2d(channels)
            )

    def forward(self, x: Tensor) -> Tensor:
        inner = F.relu(self.bn1(self.conv1(x)), inplace=True)
        return F.relu(self.bn2(self.conv2(inner)) + self.shortcut(x), inplace=True)


class ResNet(Model):
    def __init__(self, *, is_checkpointed: bool = False) -> None:
        super().__init__(is_checkpointed=is_checkpointed)
        self.stem = nn.Sequential(
            nn.Conv2d(3, 8, 5, 2, 2, bias=False), nn.BatchNorm2d(8), nn.ReLU(inplace=True),
            nn.MaxPool2d(3, 2, 1),
        )  # fmt: skip
        self.blocks = nn.ModuleList([BasicBlock(8, 8, 1), BasicBlock(8, 16, 2)])
        self.dropout = nn.Dropout(DROPOUT)
        self.classifier = nn.Linear(16, NUM_CLASSES)

    def forward(self, inputs: Inputs) -> Tensor:
        x = self.stem(inputs["images"])
        for block in self.blocks:
            x = self.run(block, x)
        x = F.adaptive_avg_pool2d(x, 1).flatten(1)
        logits = self.classifier(self.dropout(x))
        return F.cross_entropy(logits, inputs["labels"], label_smoothing=0.1)


class SelfAttention(nn.Module):
    def __init__(self, width: int, heads: int, *, dropout: float, is_causal: bool) -> None:
        super().__init__()
        self.heads, self.dropout, self.is_causal = heads, dropout, is_causal
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        qkv = self.qkv(x).view(batch, length, 3, self.heads, width // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        dropout = self.dropout if self.training else 0.0
        mixed = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, is_causal=self.is_causal)
        return self.out(mixed.transpose(1, 2).reshape(batch, length, width))


class TransformerBlock(nn.Module):
    def __init__(self, width: int, *, attention_dropout: float, is_causal: bool = False) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = SelfAttention(width, 2, dropout=attention_dropout, is_causal=is_causal)
        self.mlp = nn.Sequential(
            nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width),
            nn.Dropout(DROPOUT),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class VisionTransformer(Model):
    def __init__(self, *, attention_dropout: float = 0.0, is_checkpointed: bool = False) -> None:
        super().__init__(is_checkpointed=is_checkpointed)
        self.patches = nn.Conv2d(3, 16, 8, 8)
        self.class_token = nn.Parameter(torch.randn(1, 1, 16))
        self.positions = nn.Parameter(0.1 * torch.randn(1, 17, 16))
        self.blocks = nn.ModuleList(
            TransformerBlock(16, attention_dropout=attention_dropout) for _ in range(2)
        )
        self.norm = nn.LayerNorm(16)
        self.classifier = nn.Linear(16, NUM_CLASSES)

    def forward(self, inputs: Inputs) -> Tensor:
        x = self.patches(inputs["images"]).flatten(2).transpose(1, 2)
        x = torch.cat([self.class_token.expand(len(x), -1, -1), x], 1) + self.positions
        for block in self.blocks:
            x = self.run(block, x)
        return F.cross_entropy(self.classifier(self.norm(x)[:, 0]), inputs["labels"])


class ConvNextBlock(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(channels, channels, 7, padding=3, groups=channels)
        self.norm = nn.LayerNorm(channels)
        self.widen = nn.Linear(channels, 4 * channels)
        self.narrow = nn.Linear(4 * channels, channels)
        self.scale = nn.Parameter(torch.full((channels,), 0.1))

    def forward(self, x: Tensor) -> Tensor:
        inner = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        inner = self.scale * self.narrow(F.gelu(self.widen(inner), approximate="tanh"))
        inner = F.dropout(inner, DROPOUT, self.training)
        return x + inner.permute(0, 3, 1, 2)


class ConvNext(Model):
    def __init__(self, *, is_checkpointed: bool = False) -> None:
        super().__init__(is_checkpointed=is_checkpointed)
        self.stem = nn.Conv2d(3, 8, 4, 4)
        self.norm1, self.norm2 = nn.LayerNorm(8), nn.LayerNorm(16)
        self.blocks = nn.ModuleList([ConvNextBlock(8), ConvNextBlock(16)])
        self.downsample = nn.Conv2d(8, 16, 2, 2)
        self.classifier = nn.Linear(16, NUM_CLASSES)

    def forward(self, inputs: Inputs) -> Tensor:
        x = self.norm1(self.stem(inputs["images"]).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        x = self.run(self.blocks[0], x)
        x = self.run(self.blocks[1], self.downsample(x))
        logits = self.classifier(self.norm2(x.mean((2, 3))))
        wanted = F.one_hot(inputs["labels"], NUM_CLASSES).float()
        return F.binary_cross_entropy_with_logits(logits, wanted)


class Lstm(Model):
    def __init__(self, *, is_checkpointed: bool = False) -> None:
        super().__init__(is_checkpointed=is_checkpointed)
        self.lstm = nn.LSTM(6, 8, num_layers=2, dropout=DROPOUT, batch_first=True)
        self.head = nn.Linear(8, 2)

    def forward(self, inputs: Inputs) -> Tensor:
        states = self.run(lambda x: self.lstm(x)[0], inputs["series"])
        return F.smooth_l1_loss(self.head(states[:, -1]), inputs["targets"], beta=0.5)


class Gpt(Model):
    """The embedding is the classifier, too."""

    def __init__(self, *, is_checkpointed: bool = False) -> None:
        super().__init__(is_checkpointed=is_checkpointed)
        self.tokens, self.positions = nn.Embedding(19, 16), nn.Embedding(12, 16)
        self.dropout = nn.Dropout(DROPOUT)
        self.blocks = nn.ModuleList(
            TransformerBlock(16, attention_dropout=DROPOUT, is_causal=True) for _ in range(2)
        )
        self.norm = nn.LayerNorm(16)
        self.classifier = nn.Linear(16, 19, bias=False)
        self.classifier.weight = self.tokens.weight

    def forward(self, inputs: Inputs) -> Tensor:
        tokens = inputs["tokens"]
        places = torch.arange(tokens.shape[1] - 1, device=tokens.device)
        x = self.dropout(self.tokens(tokens[:, :-1]) + self.positions(places))
        for block in self.blocks:
            x = self.run(block, x)
        logits = self.classifier(self.norm(x))
        return F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten(), ignore_index=0)


class LiftSplatUnet(Model):
    """Pixels are lifted to points, points fall into cells, cells go through a U-Net and a warp."""

    CELLS = 8  # a side

    def __init__(self, *, uses_scatter_add: bool = False, is_checkpointed: bool = False) -> None:
        super().__init__(is_checkpointed=is_checkpointed)
        self.uses_scatter_add = uses_scatter_add
        self.lift = nn.Conv2d(3, 4 + 6, 4, 4)  # depth bins, features
        self.down = nn.Sequential(
            nn.Conv2d(6, 8, 3, 2, 1), nn.GroupNorm(2, 8), nn.SiLU(), nn.Dropout2d(DROPOUT)
        )
        self.up = nn.Sequential(nn.Conv2d(8 + 6, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.turn = nn.Linear(8, 1)
        self.head = nn.Conv2d(8, 2, 1)

    def forward(self, inputs: Inputs) -> Tensor:
        cells = self.splat(self.lift(inputs["images"]), inputs["focal_lengths"])
        x = self.run(self.unet, cells)
        x = self.warp(x)
        cover, height = self.head(x).unbind(1)
        wanted = inputs["cells"]
        is_known = wanted > 0
        error = torch.where(is_known, (height - wanted).abs(), 0.0).sum() / is_known.sum()
        return F.binary_cross_entropy_with_logits(cover, is_known.float()) + 0.1 * error

    def splat(self, lifted: Tensor, focal_lengths: Tensor) -> Tensor:
        """Features of pixels, weighted by their depth -> [B, 6, CELLS, CELLS]."""
        batch, _, rows, columns = lifted.shape
        weights, features = lifted[:, :4].softmax(1), lifted[:, 4:]
        depth = torch.arange(1.0, 5.0) * 1.6
        sideways = (torch.arange(columns) - 0.5 * columns) / focal_lengths[:, None]
        x = (depth[:, None] * sideways[:, None] + 0.5 * self.CELLS).floor()
        x = x.clamp(0, self.CELLS - 1).long()  # [B, 4, columns]
        z = depth.long()[:, None].expand(4, columns)
        cell = z * self.CELLS + x + torch.arange(batch)[:, None, None] * self.CELLS**2
        points = torch.einsum("bdhw,bchw->bdwc", weights, features)
        points, cell = points.reshape(-1, 6), cell.reshape(-1)
        empty = points.new_zeros(batch * self.CELLS**2, 6)
        if self.uses_scatter_add:
            full = empty.scatter_add(0, cell[:, None].expand(-1, 6), points)
        else:
            full = empty.index_add(0, cell, points)
        return full.view(batch, self.CELLS, self.CELLS, 6).permute(0, 3, 1, 2)

    def unet(self, cells: Tensor) -> Tensor:
        x = F.interpolate(self.down(cells), scale_factor=2, mode="bilinear", align_corners=False)
        return self.up(torch.cat([x, cells], 1))

    def warp(self, x: Tensor) -> Tensor:
        """Turned by an angle that the network itself predicts."""
        angle = 0.2 * self.turn(x.mean((2, 3))).squeeze(1).tanh()
        zero = torch.zeros_like(angle)
        theta = torch.stack([angle.cos(), -angle.sin(), zero, angle.sin(), angle.cos(), zero], 1)
        grid = F.affine_grid(theta.view(-1, 2, 3), list(x.shape), align_corners=False)
        return F.grid_sample(x, grid, padding_mode="zeros", align_corners=False)
