"""hydra-bev: N cameras over T frames -> one bird's-eye view -> as many heads as are wanted.

The path of a batch is `HydraBev.forward`, top to bottom. Static shapes and no branch on a
tensor's values: one graph under torch.compile, whatever the calibration.
"""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from fsdtrain.data.batch import ClipBatch, EncodedVideo, RgbFrames, YuvFrames
from fsdtrain.data.geometry import BevGrid
from fsdtrain.models.backbone import Backbone
from fsdtrain.models.bev_encoder import BevEncoder
from fsdtrain.models.lift import Lift
from fsdtrain.models.memory import BevMemory
from fsdtrain.ops.table import OpTable
from fsdtrain.ops.yuv_to_input import YuvLayout

# ImageNet's, in grey levels of 0..255; any fixed choice would do, the backbone is not pretrained.
PIXEL_MEAN = (123.7, 116.3, 103.5)
PIXEL_STD = (58.4, 57.1, 57.4)


class HydraBev(nn.Module):
    """Backbone, lift, memory, encoder, heads.

    Args:
        grid: the bird's-eye view all heads share.
        image_size: (H, W) of the frames, multiples of twice the backbone's stride.
        heads: by the name their outputs, losses and metrics carry; each maps the bird's-eye view
            and the batch to named outputs (fsdtrain/heads/head.py).
        make_lift: called with in_channels and out_channels.
        ops: the backend's implementations.
        stem_stride: 2 or 4.
        stage_channels: widths of the backbone's stages, each half the size of the one before.
        stage_blocks: residual blocks of each stage.
        recompute_backbone: keep less of the backbone for the backward pass; see `Backbone`.
        lift_channels: of the image features that are lifted.
        has_memory: False leaves every frame to itself.
        memory_kernel: of the convolutions over the memory's state.
        encoder_channels: of the bird's-eye view at each resolution; the first is what heads get.
        encoder_blocks: residual blocks at each resolution.
        encode_all_frames: True gives heads all T frames to learn from, False the last only.
    """

    def __init__(
        self,
        *,
        grid: BevGrid,
        image_size: tuple[int, int],
        heads: Mapping[str, nn.Module],
        make_lift: Callable[..., Lift],
        ops: OpTable,
        stem_stride: int,
        stage_channels: Sequence[int],
        stage_blocks: Sequence[int],
        lift_channels: int,
        has_memory: bool,
        memory_kernel: int,
        encoder_channels: Sequence[int],
        encoder_blocks: Sequence[int],
        encode_all_frames: bool,
        recompute_backbone: bool = False,
    ) -> None:
        super().__init__()
        self.image_size = (image_size[0], image_size[1])
        self.encode_all_frames = encode_all_frames
        self.grid = grid
        self._yuv_to_input = ops.yuv_to_input
        self.pixel_mean: Tensor
        self.pixel_std: Tensor
        for name, values in (("pixel_mean", PIXEL_MEAN), ("pixel_std", PIXEL_STD)):
            self.register_buffer(name, torch.tensor(values).view(3, 1, 1), persistent=False)
        self.backbone = Backbone(
            stem_stride=stem_stride,
            stage_channels=stage_channels,
            stage_blocks=stage_blocks,
            out_channels=lift_channels,
            recomputes=recompute_backbone,
        )
        _check_image_size(self.image_size, 2 * self.backbone.stride)
        channels = encoder_channels[0]
        self.lift = make_lift(in_channels=lift_channels, out_channels=channels)
        self.memory = (
            BevMemory(grid=grid, channels=channels, kernel=memory_kernel, warp_bev=ops.warp_bev)
            if has_memory
            else None
        )
        self.encoder = BevEncoder(channels=encoder_channels, blocks=encoder_blocks)
        self.heads = nn.ModuleDict(heads)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # not in stubs

    def forward(self, batch: ClipBatch) -> dict[str, dict[str, Tensor]]:
        """The outputs of every head, by its name."""
        B, T, N = *batch.reset_BT.shape, batch.intrinsics_BN33.shape[1]
        feats_BTNChw = self.backbone(self._images(batch.frames)).unflatten(0, (B, T, N))

        bev_BTCXY = self.lift(
            feats_BTNChw, batch.intrinsics_BN33, batch.camera_to_ego_BN44, self.image_size
        )
        if self.memory is not None:
            bev_BTCXY = self.memory(bev_BTCXY, batch.previous_to_current_BT44, batch.reset_BT)
        if not self.encode_all_frames:
            bev_BTCXY = bev_BTCXY[:, -1:]
        num_encoded = bev_BTCXY.shape[1]
        bev_BTCXY = self.encoder(bev_BTCXY.flatten(0, 1)).unflatten(0, (B, num_encoded))
        return {name: head(bev_BTCXY, batch) for name, head in self.heads.items()}

    def _images(self, frames: Tensor | YuvFrames | RgbFrames | EncodedVideo) -> Tensor:
        """Normalised RGB [B * T * N, 3, H, W], channels_last."""
        assert not isinstance(frames, EncodedVideo), "decode_video comes first"
        if isinstance(frames, YuvFrames):
            return self._images_of_video(frames, "i420")
        if isinstance(frames, RgbFrames):
            return self._images_of_video(frames, "planar444")
        images = frames.flatten(0, 2)
        images = images.to(self.pixel_mean.dtype, memory_format=torch.channels_last)
        return (images - self.pixel_mean) / self.pixel_std

    def _images_of_video(self, frames: YuvFrames | RgbFrames, layout: YuvLayout) -> Tensor:
        B, T, N = frames.planes_BTNRW.shape[:3]

        def of_every_picture(value_BN: Tensor) -> Tensor:
            return value_BN[:, None].expand(B, T, *value_BN.shape[1:]).flatten(0, 2)

        return self._yuv_to_input(
            frames.planes_BTNRW.flatten(0, 2),
            of_every_picture(frames.window_BN4),
            of_every_picture(frames.chroma_site_BN2),
            of_every_picture(frames.to_rgb_BN34),
            of_every_picture(frames.colour_BN34),
            of_every_picture(frames.is_mirrored_B[:, None].expand(B, N)),
            layout,
            self.image_size,
            PIXEL_MEAN,
            PIXEL_STD,
            self._image_dtype(),
        )

    def _image_dtype(self) -> torch.dtype:
        # Autocast would round them for the first convolution: then nothing else need be written.
        device_type = self.pixel_mean.device.type
        if torch.is_autocast_enabled(device_type):
            return torch.get_autocast_dtype(device_type)
        return self.pixel_mean.dtype


def _check_image_size(image_size: tuple[int, int], divisor: int) -> None:
    if any(size % divisor for size in image_size):
        raise ValueError(
            f"image_size={image_size} must be multiples of {divisor}, twice the backbone's stride"
        )
