"""Compare reconstructed clips with their originals.

Every clip has one value and the metric is the mean over clips, on any number of processes. Clips are uint8, or float
in [0, 255].

Shape letters: B batch, F frames, H height, W width.
"""

from typing import Literal, cast

import torch
from torch import Tensor
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

from divot_lightning.errors import UserError
from divot_lightning.evaluation.metrics.item_mean import ItemMean

PIXEL_RANGE = 255.0
SSIM_WINDOW = 11
"""Side in pixels of the Gaussian window of Wang et al. 2004, sigma 1.5."""


class ClipPSNR(ItemMean):
    """Peak signal to noise ratio in decibels.

    The mean of the clips' decibels, not the decibels of the mean error, so that one failed clip does not hide how good
    the others are. A clip without any error counts as infinite.
    """

    higher_is_better = True

    def update(self, generated_BFCHW: Tensor, original_BFCHW: Tensor) -> None:
        """Compare clips (B, F, 3, H, W) pairwise."""
        decibels_B = peak_signal_noise_ratio(
            generated_BFCHW.double(),
            original_BFCHW.double(),
            data_range=PIXEL_RANGE,
            dim=(1, 2, 3, 4),
            reduction="none",
        )
        self.add(decibels_B)


class ClipSSIM(ItemMean):
    """Structural similarity of the frames, averaged over each clip; 1 is equality.

    Every pixel has a window, and the picture is reflected at its border, as in torchmetrics. Implementations with
    windows inside the picture only have slightly other values.

    Raises:
        UserError: On update, if the frames are smaller than its window.
    """

    higher_is_better = True

    def update(self, generated_BFCHW: Tensor, original_BFCHW: Tensor) -> None:
        """Compare clips (B, F, 3, H, W) pairwise."""
        size = tuple(generated_BFCHW.shape[-2:])
        if min(size) < SSIM_WINDOW:
            raise UserError(f"SSIM compares windows of {SSIM_WINDOW} pixels, the frames have {size[0]}x{size[1]}")
        generated, original = (clips.double().flatten(0, 1) for clips in (generated_BFCHW, original_BFCHW))
        similarity = structural_similarity_index_measure(generated, original, data_range=PIXEL_RANGE, reduction="none")
        self.add(cast(Tensor, similarity).view(generated_BFCHW.shape[:2]).mean(dim=1))


class ClipLPIPS(ItemMean):
    """Learned perceptual distance of the frames (Zhang et al. 2018), averaged over each clip; 0 is equality.

    The network is torchvision's, with its ImageNet weights, and is not part of this package.

    Args:
        network: "alex", "vgg" or "squeeze".

    Raises:
        UserError: torchvision or its weights are not there.
    """

    higher_is_better = False

    def __init__(self, network: Literal["alex", "vgg", "squeeze"] = "alex") -> None:
        super().__init__()
        from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity

        try:
            self.lpips = LearnedPerceptualImagePatchSimilarity(network, reduction="none", normalize=True)
        except ModuleNotFoundError as error:
            raise UserError(
                f"LPIPS needs the network {network!r} of torchvision, which is not installed\npip install torchvision"
            ) from error
        except OSError as error:
            raise UserError(f"LPIPS: torchvision could not load the weights of {network!r}: {error}") from error

    @torch.no_grad()
    def update(self, generated_BFCHW: Tensor, original_BFCHW: Tensor) -> None:
        """Compare clips (B, F, 3, H, W) pairwise."""
        frames = [clips.float().flatten(0, 1) / PIXEL_RANGE for clips in (generated_BFCHW, original_BFCHW)]
        self.lpips.update(*frames)
        # For a single frame torchmetrics keeps a number instead of a list of one.
        distances = torch.cat([scores.reshape(-1) for scores in self.lpips.all_scores])
        self.lpips.reset()
        self.add(distances.view(generated_BFCHW.shape[:2]).mean(dim=1))
