"""Closeness of clips equals its definition, clip by clip."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
from torchmetrics.functional.image import lpips, structural_similarity_index_measure

from divot_lightning.errors import UserError
from divot_lightning.evaluation.metrics.image_quality import LPIPS, PSNR, SSIM
from divot_lightning.io.files import file_sha256
from tests.divot_lightning.evaluation.measuring import clip_pairs, scores_of
from tests.divot_lightning.evaluation.random_lpips import alexnet_weights, random_alexnet_features, random_network


@pytest.fixture
def clips():
    """Three clips, and the same with little, some and much noise."""
    generator = np.random.default_rng(0)
    real = generator.integers(0, 256, (3, 4, 3, 16, 12)).astype(np.float64)
    noise = generator.normal(size=real.shape) * np.array([1, 5, 40])[:, None, None, None, None]
    return torch.from_numpy(real), torch.from_numpy(np.clip(real + noise, 0, 255))


def ssim_of_one_channel(a, b):
    """Wang et al. 2004, by loops: Gaussian window of 11 pixels, sigma 1.5, around every pixel."""
    a, b = (np.pad(picture, 5, mode="reflect") for picture in (a, b))
    offsets = np.arange(11) - 5
    weights = np.exp(-(offsets**2) / (2 * 1.5**2))
    window = np.outer(weights, weights) / weights.sum() ** 2
    values = []
    for row in range(a.shape[0] - 10):
        for column in range(a.shape[1] - 10):
            x, y = a[row : row + 11, column : column + 11], b[row : row + 11, column : column + 11]
            mx, my = (window * x).sum(), (window * y).sum()
            vx, vy = (window * (x - mx) ** 2).sum(), (window * (y - my) ** 2).sum()
            vxy = (window * (x - mx) * (y - my)).sum()
            c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
            values.append((2 * mx * my + c1) * (2 * vxy + c2) / ((mx**2 + my**2 + c1) * (vx + vy + c2)))
    return values


def test_psnr_is_averaged_over_clips(clips):
    real, generated = clips
    expected = np.mean(
        [10 * np.log10(255**2 / ((a - b) ** 2).mean().item()) for a, b in zip(generated, real, strict=True)]
    )
    metric = PSNR()
    scores_of(metric, clip_pairs(generated[:1], real[:1]))
    np.testing.assert_allclose(scores_of(metric, clip_pairs(generated[1:], real[1:]))["psnr"], expected, rtol=1e-6)


def test_ssim_equals_its_formula_by_loops(clips):
    real, generated = clips
    expected = np.mean(
        [
            ssim_of_one_channel(generated[n, f, c].numpy(), real[n, f, c].numpy())
            for n in range(3)
            for f in range(4)
            for c in range(3)
        ]
    )
    np.testing.assert_allclose(scores_of(SSIM(), clip_pairs(generated, real))["ssim"], expected, rtol=1e-6)


def test_ssim_equals_that_of_torchmetrics_in_double_precision(clips):
    bright = torch.full((1, 4, 3, 16, 12), 250.0, dtype=torch.float64)
    for generated, real in [
        *zip(clips[1][:, None], clips[0][:, None], strict=True),
        (bright, bright),
        (bright + 1, bright),
    ]:
        expected = structural_similarity_index_measure(generated[0], real[0], data_range=255.0).item()
        assert scores_of(SSIM(), clip_pairs(generated, real))["ssim"] == pytest.approx(expected, abs=1e-12)


def test_equal_clips_are_perfectly_similar(clips):
    assert scores_of(SSIM(), clip_pairs(clips[0], clips[0])) == {"ssim": pytest.approx(1.0)}


def test_frames_smaller_than_the_window_are_refused_with_their_size():
    with pytest.raises(UserError, match="8x16"):
        scores_of(SSIM(), clip_pairs(torch.zeros(1, 2, 3, 8, 16), torch.zeros(1, 2, 3, 8, 16)))


def lpips_by_hand(a, b):
    """Zhang et al. 2018: weighted squared distances of unit feature vectors, averaged over places, of five layers."""
    linear = torch.load(Path(lpips.__file__).parent / "lpips_models" / "alex.pth", map_location="cpu")
    shift, scale = (torch.tensor(v).view(3, 1, 1) for v in ([-0.030, -0.088, -0.188], [0.458, 0.448, 0.450]))
    a, b = ((2 * picture / 255 - 1 - shift) / scale for picture in (a, b))
    total, layer = 0.0, 0
    for module in random_alexnet_features():
        a, b = module(a), module(b)
        if isinstance(module, torch.nn.ReLU):
            unit_a, unit_b = (x / (x.square().sum(dim=0) + 1e-8).sqrt() for x in (a, b))
            weights = linear[f"lin{layer}.model.1.weight"].view(-1, 1, 1)
            total += ((unit_a - unit_b).square() * weights).sum(dim=0).mean().item()
            layer += 1
    assert layer == 5
    return total


def test_lpips_equals_its_formula_with_the_weights_of_the_file(clips, tmp_path):
    real, generated = (torch.nn.functional.interpolate(part.flatten(0, 1), (32, 48)).float() for part in clips)
    torch.save(alexnet_weights(), tmp_path / "alexnet.pth")
    with random_network(seed=1):  # other weights than those of the file, as torchvision builds them
        metric = LPIPS(str(tmp_path / "alexnet.pth"))
    scores_of(metric, clip_pairs(generated[:4].unflatten(0, (2, 2)), real[:4].unflatten(0, (2, 2))))
    found = scores_of(metric, clip_pairs(generated[4:5][None], real[4:5][None]))
    with torch.no_grad():
        by_frame = [lpips_by_hand(a, b) for a, b in zip(generated[:5], real[:5], strict=True)]
    by_clip = [np.mean(by_frame[:2]), np.mean(by_frame[2:4]), by_frame[4]]
    np.testing.assert_allclose(found["lpips"], np.mean(by_clip), rtol=1e-5)
    assert metric.describe()["lpips"]["sha256"] == file_sha256(tmp_path / "alexnet.pth")


def test_lpips_without_its_network_says_what_to_install(monkeypatch, tmp_path):
    (tmp_path / "vgg.pth").write_bytes(b"")
    if importlib.util.find_spec("torchvision"):
        monkeypatch.setattr("torchmetrics.functional.image.lpips._TORCHVISION_AVAILABLE", False)
    with pytest.raises(UserError, match="'vgg' of torchvision"):
        LPIPS(str(tmp_path / "vgg.pth"), "vgg")


def test_lpips_names_a_file_that_is_not_there_or_has_other_weights(tmp_path):
    with pytest.raises(UserError, match=r"there is no file nowhere\.pth\nGive torchvision's weights .*alexnet-"):
        LPIPS("nowhere.pth")
    torch.save({"classifier.1.weight": torch.zeros(1)}, tmp_path / "other.pth")
    with random_network(), pytest.raises(UserError, match=r"holds no weights of alexnet \(KeyError: 'features"):
        LPIPS(str(tmp_path / "other.pth"))
