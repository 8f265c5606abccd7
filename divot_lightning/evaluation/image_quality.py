"""Pixel closeness of reconstructions.

Shape letters: B batch, F frames, H height, W width.
"""

from torchmetrics.image import PeakSignalNoiseRatio


def clip_psnr() -> PeakSignalNoiseRatio:
    """Returns the PSNR metric of uint8 clips: decibels per clip, averaged over clips.

    Clips (B, F, 3, H, W) are passed as float in [0, 255]. The mean of the clips' decibels, not the decibels of the mean
    error, so that one failed clip does not hide how good the others are.
    """
    return PeakSignalNoiseRatio(data_range=255.0, dim=(1, 2, 3, 4), reduction="elementwise_mean")
