"""Score toy clips: reconstructions, generated clips, and real clips for comparison.

Shape letters: N clips, F frames, H height, W width.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from torch import Tensor

from divot_datamodules.toy.world import ATTRIBUTES, Reading, Scene, ToyWorld
from divot_lightning.evaluation.metrics.frechet_video import ToyFrechet
from divot_lightning.evaluation.metrics.image_quality import PSNR
from divot_lightning.evaluation.metrics.toy_oracle import ToyOracle
from divot_lightning.evaluation.scores import Score
from divot_lightning.parts.benchmarks import BenchmarkItem, Prediction
from divot_lightning.parts.metrics import BenchmarkMetric


def reconstruction_scores(
    originals_NFCHW: Tensor,
    generated_NFCHW: Tensor,
    readings: Sequence[Reading],
    texts: Sequence[Mapping[str, Any]],
    protocol: Mapping[str, Any],
) -> list[Score]:
    """Score reconstructions: oracle, distance of the start position, PSNR; the arguments of `generation_scores`."""
    clips = originals_NFCHW, generated_NFCHW
    scores = _scores("reconstruction", [ToyOracle(start_error=True), PSNR()], *clips, readings, texts, protocol)
    return [score for score in scores if score.name != "reconstruction/spread"]


def generation_scores(
    real_NFCHW: Tensor,
    generated_NFCHW: Tensor,
    readings: Sequence[Reading],
    texts: Sequence[Mapping[str, Any]],
    protocol: Mapping[str, Any],
) -> list[Score]:
    """Score clips that were generated from captions by the metrics of the benchmark `toy`.

    Args:
        real_NFCHW: uint8, the real clips that the captions belong to.
        generated_NFCHW: uint8, one generated clip per caption.
        readings: The oracle's readings of the generated clips.
        texts: The real samples' json, with `caption`, `attributes` and `start`.
        protocol: What else decides the numbers.

    Returns:
        `generation/<attribute|all|invalid|spread|frechet>`.
    """
    metrics = [ToyOracle(), ToyFrechet()]
    return _scores("generation", metrics, real_NFCHW, generated_NFCHW, readings, texts, protocol)


def _scores(
    name: str,
    metrics: Sequence[BenchmarkMetric],
    real_NFCHW: Tensor,
    generated_NFCHW: Tensor,
    readings: Sequence[Reading],
    texts: Sequence[Mapping[str, Any]],
    protocol: Mapping[str, Any],
) -> list[Score]:
    items = [BenchmarkItem(str(number), None, "", facts=text) for number, text in enumerate(texts)]
    predictions = [Prediction(clip=a, original=b) for a, b in zip(generated_NFCHW, real_NFCHW, strict=True)]
    scores = []
    for metric in metrics:
        if isinstance(metric, ToyOracle):
            measured = [{"reading": asdict(reading)} for reading in readings]
        else:
            measured = [metric.measure(prediction, item) for prediction, item in zip(predictions, items, strict=True)]
        metric.update(measured, items)
        counts, described = metric.counts(), {**protocol, **metric.describe()}
        scores += [
            Score(f"{name}/{what}", value.item(), counts.get(what, len(items)), described)
            for what, value in metric.compute().items()
        ]
    return scores


def fresh_clips(texts: Sequence[Mapping[str, Any]], world: ToyWorld, seed: int) -> tuple[Tensor, list[Scene]]:
    """Render other real clips of the same captions, as a perfect generator would.

    Args:
        texts: Samples of held-out or of training combinations, with `attributes`.
        world: Renders them.
        seed: Of the start positions.

    Returns:
        uint8 (N, F, 3, H, W), and the scenes.
    """
    targets = [tuple(text["attributes"][name] for name in ATTRIBUTES) for text in texts]
    splits = {name: ("held_out" if name in set(world.combinations("held_out")) else "train") for name in set(targets)}
    rng, stock = np.random.default_rng(seed), defaultdict[tuple[str, ...], list[Scene]](list)
    scenes = []
    for names in targets:
        while not stock[names]:
            scene = world.sample("held_out" if splits[names] == "held_out" else "train", rng)
            stock[tuple(getattr(scene, name) for name in ATTRIBUTES)].append(scene)
        scenes.append(stock[names].pop())
    return torch.from_numpy(np.stack([world.render(scene) for scene in scenes])), scenes
