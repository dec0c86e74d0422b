"""The step from image features to bird's-eye view, as the network sees it.

Which lift a model has is a choice of its config, `model.lift=...`; a class of your own is named
there by its `_target_`.
"""

from abc import ABC, abstractmethod

from torch import Tensor, nn


class Lift(nn.Module, ABC):
    """Calibration is an input, so that rigs and augmentation may vary from clip to clip.

    The constructor is given `grid` (BevGrid) and `ops` (OpTable) beside the config's options.
    """

    @abstractmethod
    def forward(
        self,
        feats_BTNChw: Tensor,
        intrinsics_BN33: Tensor,
        camera_to_ego_BN44: Tensor,
        image_size: tuple[int, int],
    ) -> Tensor:
        """Features of T frames of N cameras -> [B, T, C, X, Y], frame by frame.

        Args:
            feats_BTNChw: feature maps that cover the whole image, any stride.
            intrinsics_BN33: pinhole, in pixels of an image of `image_size`.
            camera_to_ego_BN44: rigid.
            image_size: (H, W) in pixels.
        """
