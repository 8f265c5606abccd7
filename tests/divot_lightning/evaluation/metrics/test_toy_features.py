"""The fixed feature space sees shape, motion, colour and position, and distance grows with corruption."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from divot_datamodules.toy.world import Scene, ToyWorld
from divot_lightning.evaluation.metrics.frechet import feature_distance
from divot_lightning.evaluation.metrics.toy_features import (
    FEATURE_NAMES,
    OUTLINE_FEATURES,
    toy_clip_features,
)

WORLD = ToyWorld(size=32, supersampling=2)
SCENE = Scene("red", "square", "right", "slowly", 12.0, 12.0)


def render(*scenes: Scene) -> torch.Tensor:
    return torch.from_numpy(np.stack([WORLD.render(scene) for scene in scenes]))


def sample(count: int, seed: int) -> torch.Tensor:
    generator = np.random.default_rng(seed)
    return render(*(WORLD.sample("train", generator) for _ in range(count)))


def distance(real: torch.Tensor, generated: torch.Tensor) -> float:
    return feature_distance(toy_clip_features(real), toy_clip_features(generated), scaled=True).item()


@pytest.fixture(scope="module")
def real() -> torch.Tensor:
    return sample(160, seed=0)


@pytest.fixture(scope="module")
def others() -> torch.Tensor:
    return sample(160, seed=1)


def test_features_have_one_name_each():
    features = toy_clip_features(render(SCENE))
    assert features.shape == (1, len(FEATURE_NAMES))
    assert features.dtype == torch.float64
    assert len(set(FEATURE_NAMES)) == len(FEATURE_NAMES)


def test_position_and_mass_are_the_rendered_ones():
    features = dict(zip(FEATURE_NAMES, toy_clip_features(render(SCENE))[0].tolist(), strict=True))
    last = WORLD.centres(SCENE)[-1]
    assert features["row_0"] * 32 == pytest.approx(12.0 - 0.5, abs=0.1)
    assert features["column_4"] * 32 == pytest.approx(last[1] - 0.5, abs=0.1)
    assert features["red_0"] > 0.2 > features["green_0"]


@pytest.mark.parametrize("shape", ["circle", "triangle", "cross"])
def test_outline_tells_shapes_apart_wherever_they_are(shape):
    def outline(scene: Scene) -> torch.Tensor:
        first = FEATURE_NAMES.index("spread_rows_0")
        return toy_clip_features(render(scene))[0, first : first + len(OUTLINE_FEATURES)]

    moved = replace(SCENE, start_row=18.3, start_column=10.6)
    same = (outline(SCENE) - outline(moved)).norm()
    assert (outline(SCENE) - outline(replace(SCENE, shape=shape))).norm() > 3 * same


def test_empty_and_random_clips_have_finite_features():
    clips = torch.cat([torch.full((1, 16, 3, 32, 32), 128), torch.randint(0, 256, (2, 16, 3, 32, 32))])
    assert toy_clip_features(clips.to(torch.uint8)).isfinite().all()


def test_two_sets_of_real_clips_are_close(real, others):
    assert distance(real, others) < 3.0


def blur(video: torch.Tensor, amount: int) -> torch.Tensor:
    kernel = torch.ones(3, 1, 3, 3) / 9
    frames = video.flatten(0, 1).float() - 128
    for _ in range(amount):
        frames = torch.nn.functional.conv2d(frames, kernel, padding=1, groups=3)
    return (frames + 128).round().to(torch.uint8).view_as(video)


def shuffle_time(video: torch.Tensor, amount: int) -> torch.Tensor:
    order = torch.arange(video.shape[1])
    order[:amount] = order[:amount].flip(0)
    return video[:, order]


def fade(video: torch.Tensor, amount: float) -> torch.Tensor:
    return ((video.float() - 128) * (1 - amount) + 128).round().to(torch.uint8)


def tear(video: torch.Tensor, amount: int) -> torch.Tensor:
    return torch.cat([video[..., :16, :], video[..., 16:, :].roll(amount, dims=-1)], dim=-2)


def gather_in_centre(video: torch.Tensor, amount: float) -> torch.Tensor:
    keep = int(len(video) * amount)
    middle = render(*[replace(SCENE, start_row=16.0, start_column=14.0)] * max(keep, 1))[:keep]
    return torch.cat([middle, video[keep:]])


@pytest.mark.parametrize(
    ("corrupt", "amounts"),
    [
        (blur, (1, 2, 4)),
        (shuffle_time, (4, 7, 10)),
        (fade, (0.2, 0.4, 0.6)),
        (tear, (2, 5, 8)),
        (gather_in_centre, (0.25, 0.5, 1.0)),
    ],
)
def test_distance_grows_with_every_kind_of_corruption(real, others, corrupt, amounts):
    distances = [distance(real, others), *(distance(real, corrupt(others, amount)) for amount in amounts)]
    assert distances == sorted(distances), distances
    assert distances[-1] > 1.3 * distances[0], distances


def test_an_attribute_that_never_varies_is_seen(real):
    generator = np.random.default_rng(2)
    scenes = [WORLD.sample("train", generator) for _ in range(160)]
    floor = distance(real, render(*scenes))
    for attribute in ({"colour": "red"}, {"shape": "cross"}, {"speed": "slowly"}):
        assert distance(real, render(*(replace(scene, **attribute) for scene in scenes))) > 1.3 * floor, attribute
