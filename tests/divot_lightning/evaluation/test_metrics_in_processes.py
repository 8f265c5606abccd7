"""Every metric gives the same in any number of processes, with a count of samples that does not divide."""

import pytest
import torch

from divot_lightning.testing.run_distributed import run_distributed

NUM_SAMPLES = 7
WORDS = ["a red circle", "the blue square left", "a circle", "red", "the red square moves up", "left", "a blue circle"]
ANSWERS = [0, 1, None, 2, 1, 0, 1]


def samples():
    generator = torch.Generator().manual_seed(3)
    real = torch.randint(0, 256, (NUM_SAMPLES, 16, 3, 32, 32), dtype=torch.uint8, generator=generator)
    noise = torch.randint(-40, 41, real.shape, generator=generator)
    return real, (real.short() + noise).clamp(0, 255).byte()


def texts():
    return [(WORDS[at], [WORDS[at - 1], f"{WORDS[at]} up"]) for at in range(NUM_SAMPLES)]


def metrics(clip_folder):
    from divot_lightning.evaluation.answers.accuracy import ChoiceAccuracy, OpenAnswerAccuracy
    from divot_lightning.evaluation.answers.text_match import ExactMatch, ToyCaptionAccuracy
    from divot_lightning.evaluation.metrics.caption_metrics import CaptionBLEU, CaptionROUGE
    from divot_lightning.evaluation.metrics.clip_similarity import ClipSimilarity, ClipTextSimilarity
    from divot_lightning.evaluation.metrics.frechet import FrechetDistance
    from divot_lightning.evaluation.metrics.image_quality import ClipLPIPS, ClipPSNR, ClipSSIM
    from divot_lightning.evaluation.metrics.toy_features import NUM_TOY_FEATURES, toy_clip_features
    from divot_lightning.evaluation.metrics.toy_oracle import ToyOracleAccuracy
    from tests.divot_lightning.evaluation.random_lpips import random_network

    with random_network():
        lpips = ClipLPIPS()
    return {
        "lpips": lpips,
        "psnr": ClipPSNR(),
        "ssim": ClipSSIM(),
        "clipsim": ClipSimilarity(ClipTextSimilarity(clip_folder)),
        "frechet": FrechetDistance(toy_clip_features, NUM_TOY_FEATURES),
        "frechet_unscaled": FrechetDistance(toy_clip_features, NUM_TOY_FEATURES, scaled=False),
        "choice": ChoiceAccuracy(["x", "y"]),
        "open": OpenAnswerAccuracy(),
        "bleu": CaptionBLEU(2),
        "rouge": CaptionROUGE(),
        "match": ExactMatch(),
        "toy_captions": ToyCaptionAccuracy(),
        "oracle": ToyOracleAccuracy(),
    }


def update(metric, name, at, real, generated):
    word, references = texts()[at]
    attributes = {"colour": "red", "shape": "circle", "direction": "up", "speed": "slowly"}
    arguments = {
        "psnr": [(generated, real)],
        "lpips": [(generated, real)],
        "ssim": [(generated, real)],
        "clipsim": [(generated, [word])],
        "choice": [([ANSWERS[at]], [1], ["xy"[at % 2]])],
        "open": [([word], [WORDS[at - 1] if at % 2 else word], [None if at % 3 else at % 2 == 0])],
        "bleu": [([word], [references])],
        "rouge": [([word], [references])],
        "match": [([word], [WORDS[3]])],
        "toy_captions": [([word], ["a red circle moves slowly up"])],
        "oracle": [(generated, [attributes])],
    }
    if name.startswith("frechet"):
        metric.update(real, real=True)
        metric.update(generated, real=False)
    for given in arguments.get(name, []):
        metric.update(*given)


def measured(rank, world_size, clip_folder):
    """Split the samples unevenly: the last process gets one, the first all remaining ones."""
    real, generated = samples()
    owners = [min(at, world_size - 1) if at in (1, 2) else 0 for at in range(NUM_SAMPLES)]
    results = {}
    for name, metric in metrics(clip_folder).items():
        for at, owner in enumerate(owners):
            if owner == rank:
                update(metric, name, at, real[at : at + 1], generated[at : at + 1])
        results[name] = metric.compute()
    return results


def test_values_do_not_depend_on_the_number_of_processes(clip_folder):
    alone = measured(0, 1, str(clip_folder))
    assert alone["frechet"] > 0
    for world_size in (2, 3):
        for values in run_distributed(measured, world_size, world_size, str(clip_folder)):
            for name, value in values.items():
                torch.testing.assert_close(value, alone[name], rtol=1e-6, atol=1e-9, equal_nan=True, msg=name)


@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_moments_keep_their_digits_where_features_are_large(offset):
    from divot_lightning.evaluation.metrics.frechet import FrechetDistance, frechet_distance

    generator = torch.Generator().manual_seed(0)
    real, generated = (torch.randn(50, 3, dtype=torch.float64, generator=generator) + offset for _ in range(2))
    metric = FrechetDistance(None, 3, scaled=False)
    for part in range(5):
        metric.update(real[part::5], real=True)
        metric.update(generated[part::5], real=False)
    expected = frechet_distance(real.mean(0), real.T.cov(), generated.mean(0), generated.T.cov())
    torch.testing.assert_close(metric.compute(), expected, rtol=1e-9, atol=0)
