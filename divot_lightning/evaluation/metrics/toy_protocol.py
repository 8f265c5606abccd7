"""Score toy clips: reconstructions, generated clips, and real clips for comparison.

Shape letters: N clips, F frames, H height, W width.
"""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from divot_datamodules.toy.world import ATTRIBUTES, Reading, Scene, ToyWorld
from divot_lightning.evaluation.metrics.frechet import FrechetDistance
from divot_lightning.evaluation.metrics.image_quality import ClipPSNR
from divot_lightning.evaluation.metrics.toy_features import NUM_TOY_FEATURES, toy_clip_features
from divot_lightning.evaluation.metrics.toy_oracle import Expected, count_correct, start_error, start_spread
from divot_lightning.evaluation.scores import Score

ORACLE_RULE = "exact pixel oracle; a clip that it cannot read counts as wrong"


def oracle_scores(
    name: str, readings: Sequence[Reading], expected: Sequence[Expected], protocol: Mapping[str, Any]
) -> list[Score]:
    """Return the fractions of clips right in each attribute and in `all`, and of invalid ones, as `<name>/<what>`."""
    counts = count_correct(readings, expected)
    total = counts.pop("count")
    described = {**protocol, "oracle": ORACLE_RULE}
    return [
        Score(f"{name}/{what}", value / total if total else math.nan, total, described)
        for what, value in counts.items()
    ]


def reconstruction_scores(
    originals_NFCHW: Tensor,
    generated_NFCHW: Tensor,
    readings: Sequence[Reading],
    texts: Sequence[Mapping[str, Any]],
    protocol: Mapping[str, Any],
) -> list[Score]:
    """Score reconstructions: oracle, distance of the start position, PSNR.

    Args:
        originals_NFCHW: uint8.
        generated_NFCHW: uint8, their reconstructions.
        readings: The oracle's readings of the reconstructions.
        texts: The samples' json, with `attributes` and `start`.
        protocol: What else decides the numbers.
    """
    psnr = ClipPSNR()
    for generated, original in zip(generated_NFCHW.split(32), originals_NFCHW.split(32), strict=True):
        psnr.update(generated, original)
    distance, valid = start_error(readings, [tuple(text["start"]) for text in texts])
    scores = oracle_scores("reconstruction", readings, [text["attributes"] for text in texts], protocol)
    scores.append(Score("reconstruction/start_error_pixels", distance, valid, {**protocol, "clips": "valid ones only"}))
    scores.append(Score("reconstruction/psnr", psnr.compute().item(), len(generated_NFCHW), dict(protocol)))
    return scores


def frechet(real_NFCHW: Tensor, generated_NFCHW: Tensor) -> float:
    """Return the Frechet distance of uint8 clips in the fixed toy features, NaN if a set has fewer than two."""
    if min(len(real_NFCHW), len(generated_NFCHW)) < 2:
        return math.nan
    metric = FrechetDistance(toy_clip_features, NUM_TOY_FEATURES)
    for real, clips in ((True, real_NFCHW), (False, generated_NFCHW)):
        for part in clips.split(64):
            metric.update(part, real=real)
    return metric.compute().item()


def generation_scores(
    real_NFCHW: Tensor,
    generated_NFCHW: Tensor,
    readings: Sequence[Reading],
    texts: Sequence[Mapping[str, Any]],
    protocol: Mapping[str, Any],
) -> list[Score]:
    """Score clips that were generated from captions: fidelity to the prompt, diversity, Frechet distance.

    Args:
        real_NFCHW: uint8, the real clips that the captions belong to.
        generated_NFCHW: uint8, one generated clip per caption.
        readings: The oracle's readings of the generated clips.
        texts: The real samples' json, with `caption`, `attributes` and `start`.
        protocol: What else decides the numbers.

    Returns:
        `generation/<attribute|all|invalid>`; `generation/spread`, the spread of start positions within one caption
        divided by that of the real clips; `generation/frechet`.
    """
    captions = [text["caption"] for text in texts]
    spread, counted = start_spread(readings, captions)
    truths = [Reading(True, start=tuple(text["start"])) for text in texts]
    real_spread, _ = start_spread(truths, captions)
    scores = oracle_scores("generation", readings, [text["attributes"] for text in texts], protocol)
    rule = {**protocol, "spread": "valid clips of captions with two or more; 1 is that of the real clips"}
    scores.append(Score("generation/spread", spread / real_spread if real_spread else math.nan, counted, rule))
    space = {**protocol, "features": "fixed toy features, scaled by their deviation over the real clips"}
    scores.append(Score("generation/frechet", frechet(real_NFCHW, generated_NFCHW), len(generated_NFCHW), space))
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
