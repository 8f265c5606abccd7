"""Scores of the toy benchmarks: real clips score perfectly, broken ones do not."""

import math

import numpy as np
import pytest
import torch

from divot_datamodules.toy.world import ATTRIBUTES, Scene, ToyWorld, caption
from divot_lightning.evaluation.benchmarks.toy import Toy, ToyReconstruction, fresh_clips
from divot_lightning.parts.benchmarks import BenchmarkItem, Prediction

WORLD = ToyWorld(size=32, supersampling=2)


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    rng = np.random.default_rng(0)
    stock = [WORLD.sample("held_out", rng) for _ in range(60)]
    chosen = sorted({caption(scene) for scene in stock})[:8]
    return [scene for scene in stock if caption(scene) in chosen]


def render(scenes: list[Scene]) -> torch.Tensor:
    return torch.from_numpy(np.stack([WORLD.render(scene) for scene in scenes]))


def text(scene: Scene) -> dict:
    attributes = {name: getattr(scene, name) for name in ATTRIBUTES}
    return {"caption": caption(scene), "attributes": attributes, "start": [scene.start_row, scene.start_column]}


def scores_of(benchmark, real, generated, scenes) -> dict[str, float]:
    items = [BenchmarkItem(str(at), None, "", facts=text(scene)) for at, scene in enumerate(scenes)]
    metrics = benchmark.make_metrics(items)
    pairs = zip(generated, real, items, strict=True)
    measured = [
        {name: value for m in metrics for name, value in m.measure(Prediction(clip=a, original=b), item).items()}
        for a, b, item in pairs
    ]
    return {name: value for name, (value, _) in benchmark.score(metrics, measured, items).items()}


def test_perfect_reconstruction_scores_perfectly(scenes):
    clips = render(scenes)
    scores = scores_of(ToyReconstruction(), clips, clips, scenes)
    assert [scores[name] for name in (*ATTRIBUTES, "all")] == [1.0] * 5
    assert scores["invalid"] == 0.0
    assert scores["start_error_pixels"] < 0.2
    assert math.isinf(scores["psnr"])


def test_reconstruction_of_the_wrong_clip_is_wrong(scenes):
    clips = render(scenes)
    scores = scores_of(ToyReconstruction(), clips, clips.flip(0), scenes)
    assert scores["all"] < 0.5
    assert scores["start_error_pixels"] > 1.0


def test_fresh_clips_have_the_captions_but_other_positions(scenes):
    generated, others = fresh_clips([text(scene) for scene in scenes], WORLD, seed=5)
    assert [caption(scene) for scene in others] == [caption(scene) for scene in scenes]
    assert all(a.start_row != b.start_row for a, b in zip(scenes, others, strict=True))
    assert generated.shape == render(scenes).shape


def test_fresh_real_clips_are_faithful_diverse_and_near(scenes):
    real = render(scenes)
    generated, _ = fresh_clips([text(scene) for scene in scenes], WORLD, seed=6)
    scores = scores_of(Toy(), real, generated, scenes)
    assert scores["all"] == 1.0
    assert 0.5 < scores["spread"] < 2.0
    middle = render([Scene(s.colour, s.shape, s.direction, s.speed, 16.0, 16.0) for s in scenes])
    collapsed = scores_of(Toy(), real, middle, scenes)
    assert collapsed["all"] == 1.0
    assert collapsed["spread"] < 0.1
    assert collapsed["frechet"] > scores["frechet"]


def test_grey_clips_have_no_fidelity_and_no_spread(scenes):
    real = render(scenes)
    scores = scores_of(Toy(), real, torch.full_like(real, 128), scenes)
    assert (scores["all"], scores["invalid"]) == (0.0, 1.0)
    assert math.isnan(scores["spread"])
