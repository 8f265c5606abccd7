"""PSNR is the mean over clips of each clip's own decibels."""

import numpy as np
import torch

from divot_lightning.evaluation.image_quality import clip_psnr


def test_psnr_is_averaged_over_clips():
    generator = np.random.default_rng(0)
    real = generator.integers(0, 256, (3, 4, 3, 8, 8)).astype(np.float64)
    made = np.clip(real + generator.normal(size=real.shape) * np.array([1, 5, 40])[:, None, None, None, None], 0, 255)
    expected = np.mean([10 * np.log10(255**2 / np.mean((a - b) ** 2)) for a, b in zip(real, made, strict=True)])
    metric = clip_psnr()
    for at in range(3):
        metric.update(torch.from_numpy(made[at : at + 1]), torch.from_numpy(real[at : at + 1]))
    np.testing.assert_allclose(metric.compute().item(), expected, rtol=1e-6)
