"""The toy protocols: real clips score perfectly, broken ones do not, and every score states its protocol."""

import math

import numpy as np
import pytest
import torch

from divot_datamodules.toy.world import ATTRIBUTES, Scene, ToyWorld, caption
from divot_lightning.evaluation.metrics.toy_oracle import read_clips
from divot_lightning.evaluation.metrics.toy_protocol import fresh_clips, generation_scores, reconstruction_scores

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


def by_name(scores) -> dict:
    return {score.name: score for score in scores}


def test_perfect_reconstruction_scores_perfectly(scenes):
    clips = render(scenes)
    scores = by_name(reconstruction_scores(clips, clips, read_clips(clips), [text(s) for s in scenes], {"split": "x"}))
    assert [scores[f"reconstruction/{name}"].value for name in (*ATTRIBUTES, "all")] == [1.0] * 5
    assert scores["reconstruction/invalid"].value == 0.0
    assert scores["reconstruction/start_error_pixels"].value < 0.2
    assert math.isinf(scores["reconstruction/psnr"].value)
    assert all(score.protocol["split"] == "x" for score in scores.values())


def test_reconstruction_of_the_wrong_clip_is_wrong(scenes):
    clips = render(scenes)
    generated = clips.flip(0)
    scores = by_name(reconstruction_scores(clips, generated, read_clips(generated), [text(s) for s in scenes], {}))
    assert scores["reconstruction/all"].value < 0.5
    assert scores["reconstruction/start_error_pixels"].value > 1.0


def test_fresh_clips_have_the_captions_but_other_positions(scenes):
    generated, others = fresh_clips([text(scene) for scene in scenes], WORLD, seed=5)
    assert [caption(scene) for scene in others] == [caption(scene) for scene in scenes]
    assert all(a.start_row != b.start_row for a, b in zip(scenes, others, strict=True))
    assert generated.shape == render(scenes).shape


def test_fresh_real_clips_are_faithful_diverse_and_near(scenes):
    texts = [text(scene) for scene in scenes]
    real = render(scenes)
    generated, _ = fresh_clips(texts, WORLD, seed=6)
    scores = by_name(generation_scores(real, generated, read_clips(generated), texts, {}))
    assert scores["generation/all"].value == 1.0
    assert 0.5 < scores["generation/spread"].value < 2.0
    middle = render([Scene(s.colour, s.shape, s.direction, s.speed, 16.0, 16.0) for s in scenes])
    collapsed = by_name(generation_scores(real, middle, read_clips(middle), texts, {}))
    assert collapsed["generation/all"].value == 1.0
    assert collapsed["generation/spread"].value < 0.1
    assert collapsed["generation/frechet"].value > scores["generation/frechet"].value


def test_grey_clips_have_no_fidelity_and_no_spread(scenes):
    texts, real = [text(scene) for scene in scenes], render(scenes)
    generated = torch.full_like(real, 128)
    scores = by_name(generation_scores(real, generated, read_clips(generated), texts, {}))
    assert (scores["generation/all"].value, scores["generation/invalid"].value) == (0.0, 1.0)
    assert math.isnan(scores["generation/spread"].value)
    assert scores["generation/spread"].count == 0
