"""Compare reconstructed clips with their originals, frame by frame.

Every clip has one value, and the score is the mean over clips.

Shape letters: F frames, H height, W width.
"""

from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from scipy.ndimage import gaussian_filter
from torch import Tensor, nn
from torchmetrics.functional.image import peak_signal_noise_ratio

from divot_lightning.errors import UserError, first_line
from divot_lightning.io.files import file_sha256
from divot_lightning.parts.benchmarks import BenchmarkItem, Prediction
from divot_lightning.parts.metrics import ItemMetric

PIXEL_RANGE = 255.0
SSIM_WINDOW = 11
"""Side in pixels of the Gaussian window of Wang et al. 2004."""
SSIM_SIGMA = 1.5
SSIM_CONSTANTS = ((0.01 * PIXEL_RANGE) ** 2, (0.03 * PIXEL_RANGE) ** 2)
"""C1 and C2 of Wang et al. 2004, with their K1 and K2."""

Network = Literal["alex", "vgg", "squeeze"]
WEIGHTS = {"alex": "alexnet", "vgg": "vgg16", "squeeze": "squeezenet1_1"}
"""torchvision's name of each network, with which the names of its files of weights begin."""


class PSNR(ItemMetric):
    """Peak signal to noise ratio in decibels.

    The mean of the clips' decibels, not the decibels of the mean error, so that one failed clip does not hide how good
    the others are. A clip without any error counts as infinite.
    """

    inputs: ClassVar[Literal["answers", "clips"]] = "clips"
    scores: ClassVar[tuple[str, ...]] = ("psnr",)
    best: ClassVar[float] = float("inf")

    def measure(self, prediction: Prediction, item: BenchmarkItem) -> dict[str, Any]:
        """Compare a clip with its original."""
        clip, original = _pixels(prediction, torch.float64)
        return {"psnr": peak_signal_noise_ratio(clip, original, data_range=PIXEL_RANGE).item()}


class SSIM(ItemMetric):
    """Structural similarity of the frames, averaged over each clip; 1 is equality.

    Every pixel has a window, and the picture is reflected at its border, as in torchmetrics. Implementations with
    windows inside the picture only have slightly other values.
    """

    inputs: ClassVar[Literal["answers", "clips"]] = "clips"
    scores: ClassVar[tuple[str, ...]] = ("ssim",)

    def measure(self, prediction: Prediction, item: BenchmarkItem) -> dict[str, Any]:
        """Compare a clip with its original.

        Raises:
            UserError: The frames are smaller than a window.
        """
        clip, original = _pixels(prediction, torch.float64)
        if min(clip.shape[-2:]) < SSIM_WINDOW:
            height, width = clip.shape[-2:]
            raise UserError(f"SSIM compares windows of {SSIM_WINDOW} pixels, the frames have {height}x{width}")
        return {"ssim": structural_similarity(clip.numpy(), original.numpy()).mean().item()}


def structural_similarity(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Compute the structural similarity around every pixel (Wang et al. 2004, equation 13).

    torchmetrics has the same, by a two-dimensional convolution. In float64 that takes 50 times as long on a CPU; in
    float32, variances of bright flat pictures, small differences of large squares, lose three digits.

    Args:
        a: Pictures in [0, 255], (..., H, W), float64.
        b: Pictures to compare with, of the same shape.

    Returns:
        Similarities in [-1, 1], (..., H, W), float64.
    """
    mean_a, mean_b = _local_mean(a), _local_mean(b)
    variance_a = _local_mean(a * a) - mean_a**2
    variance_b = _local_mean(b * b) - mean_b**2
    covariance = _local_mean(a * b) - mean_a * mean_b
    c1, c2 = SSIM_CONSTANTS
    luminance = (2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1)
    return luminance * (2 * covariance + c2) / (variance_a + variance_b + c2)


def _local_mean(pictures: np.ndarray) -> np.ndarray:
    """Average each pixel's window, (..., H, W); pictures are mirrored at their borders."""
    return gaussian_filter(pictures, SSIM_SIGMA, mode="mirror", radius=SSIM_WINDOW // 2, axes=(-2, -1))


class LPIPS(ItemMetric):
    """Learned perceptual distance of the frames (Zhang et al. 2018), averaged over each clip; 0 is equality.

    The network is torchvision's; its ImageNet weights are read from a file and never downloaded. The weights of
    LPIPS's own layers come with torchmetrics.

    Args:
        weights: torchvision's file of the network's weights, such as `alexnet-owt-7be5be79.pth`.
        network: "alex", "vgg" or "squeeze".
        device: Where it runs.

    Raises:
        UserError: torchvision is not there, or the file is not that of the network.
    """

    inputs: ClassVar[Literal["answers", "clips"]] = "clips"
    scores: ClassVar[tuple[str, ...]] = ("lpips",)
    higher_is_better = False
    best: ClassVar[float] = 0.0

    def __init__(self, weights: str, network: Network = "alex", device: str = "cpu") -> None:
        super().__init__()
        self.source = {"network": network, "sha256": _hash(weights, network)}
        self.network = _lpips(Path(weights), network).to(device)
        self.where = device

    def describe(self) -> dict[str, Any]:
        """Return network and hash of the weights."""
        return {"lpips": self.source}

    @torch.no_grad()
    def measure(self, prediction: Prediction, item: BenchmarkItem) -> dict[str, Any]:
        """Compare a clip with its original."""
        frames = [clip.to(self.where) / PIXEL_RANGE for clip in _pixels(prediction, torch.float32)]
        return {"lpips": self.network(*frames, normalize=True).mean().item()}


def _hash(weights: str, network: str) -> str:
    if not Path(weights).is_file():
        raise UserError(
            f"LPIPS: there is no file {weights}\n"
            f"Give torchvision's weights of the network, {WEIGHTS[network]}-*.pth, in a file on this machine."
        )
    return file_sha256(Path(weights))


def _lpips(weights: Path, network: Network) -> nn.Module:
    """Build torchmetrics' network with the weights of a file."""
    from torchmetrics.functional.image.lpips import _NoTrainLpips

    try:
        built = _NoTrainLpips(net=network, pnet_rand=True)
    except ModuleNotFoundError as error:
        raise UserError(
            f"LPIPS needs the network {network!r} of torchvision, which is not installed\npip install torchvision"
        ) from error
    try:
        stored = torch.load(weights, map_location="cpu", weights_only=True)
        layers = {name.partition(".")[2]: value for name, value in built.net.state_dict().items()}
        for name, value in layers.items():  # `slice1.0.weight` is torchvision's `features.0.weight`
            value.copy_(stored[f"features.{name}"])
    except Exception as error:
        reason = f"{type(error).__name__}: {first_line(error)}"
        raise UserError(
            f"LPIPS: {weights} holds no weights of {WEIGHTS[network]} ({reason:.200})\n"
            f"Give torchvision's file, {WEIGHTS[network]}-*.pth, or choose another lpips_network."
        ) from error
    return built


def _pixels(prediction: Prediction, dtype: torch.dtype) -> list[Tensor]:
    """Return clip and original as floats in [0, 255]."""
    assert prediction.clip is not None
    assert prediction.original is not None
    return [prediction.clip.to(dtype), prediction.original.to(dtype)]
