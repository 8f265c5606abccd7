import itertools
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from divot_datamodules.decoding.clip_sampling import ClipConfig, decode_clip
from divot_datamodules.decoding.video_writing import encode_video
from divot_datamodules.toy.oracle import read_clip
from divot_datamodules.toy.world import (
    ATTRIBUTES,
    BACKGROUND,
    COLOURS,
    DIRECTIONS,
    SHAPES,
    SPEEDS,
    VALUES,
    Scene,
    ToyWorld,
    caption,
    parse_caption,
    questions,
)

WORLD = ToyWorld()
SPLITS = ("train", "held_out")


def scenes(split, count, world=WORLD, seed=0):
    rng = np.random.default_rng(seed)
    return [world.sample(split, rng) for _ in range(count)]


def attributes_of(found):
    return {name: getattr(found, name) for name in ATTRIBUTES}


def assert_read(reading, scene, tolerance=0.3):
    assert reading.valid, reading.reason
    assert attributes_of(reading) == attributes_of(scene)
    assert np.allclose(reading.start, (scene.start_row, scene.start_column), atol=tolerance)


def every_combination():
    return itertools.product(*VALUES.values())


def scene_at_middle(colour="red", shape="square", direction="right", speed="slowly"):
    """A clip whose middle is the picture's middle."""
    row, column = (16 - step * SPEEDS[speed] * 32 * 7.5 for step in DIRECTIONS[direction])
    return Scene(colour, shape, direction, speed, row, column)


@pytest.mark.parametrize("split", SPLITS)
def test_the_oracle_reads_sampled_clips(split):
    for scene in scenes(split, 50):
        assert_read(read_clip(WORLD, WORLD.render(scene)), scene)


def test_the_oracle_reads_combinations_of_all_kinds():
    for combination in list(every_combination())[::5]:
        scene = scene_at_middle(*combination)
        assert_read(read_clip(WORLD, WORLD.render(scene)), scene)


@pytest.mark.parametrize(("split", "crf"), [("train", 10), ("held_out", 10), ("train", 28)])
def test_the_oracle_reads_clips_after_h264(split, crf):
    for scene in scenes(split, 12, seed=1):
        media = encode_video(WORLD.render(scene), WORLD.frames_per_second, crf=crf)
        assert_read(read_clip(WORLD, decode_clip(media, ClipConfig()).video), scene, 0.5)


def test_combinations_of_the_splits_are_disjoint_and_all_there():
    train, held_out = (WORLD.combinations(split) for split in SPLITS)
    assert not set(train) & set(held_out)
    assert set(train) | set(held_out) == set(every_combination())
    assert len(train) + len(held_out) == len(set(every_combination())) == 384
    assert 0.08 < len(held_out) / 384 < 0.12


@pytest.mark.parametrize("split", SPLITS)
def test_every_value_is_about_as_frequent_as_its_siblings(split):
    combinations = WORLD.combinations(split)
    for index, name in enumerate(ATTRIBUTES):
        counts = Counter(combination[index] for combination in combinations)
        assert set(counts) == set(VALUES[name])
        assert max(counts.values()) <= 1.7 * min(counts.values()), (name, counts)


def test_every_pair_of_values_is_trained_on():
    train = WORLD.combinations("train")
    for first, second in itertools.combinations(range(4), 2):
        pairs = {(combination[first], combination[second]) for combination in train}
        sides = [VALUES[ATTRIBUTES[index]] for index in (first, second)]
        assert pairs == set(itertools.product(*sides))


@pytest.mark.parametrize("split", SPLITS)
def test_samples_are_of_their_split_and_given_by_the_generator(split):
    drawn = scenes(split, 60)
    assert {tuple(attributes_of(scene).values()) for scene in drawn} <= set(WORLD.combinations(split))
    assert drawn == scenes(split, 60)
    assert drawn != scenes(split, 60, seed=1)


def test_no_part_of_a_shape_leaves_the_picture():
    for scene in scenes("train", 60):
        whole = WORLD.coverage(scene.shape, np.array([16.0, 16.0])).sum()
        axis = np.array(COLOURS[scene.colour]) - BACKGROUND
        cover = np.einsum("fchw,c->f", WORLD.render(scene) - np.array(BACKGROUND)[:, None, None], axis) / (axis @ axis)
        # Sampling points in the borders of shapes make the area vary a little.
        assert cover == pytest.approx(whole, rel=0.06)


def test_the_start_is_sampled_over_all_allowed_positions():
    slow = [scene for scene in scenes("train", 300) if scene.speed == "slowly"]
    rows = [scene.start_row for scene in slow]
    assert min(rows) < 11
    assert max(rows) > 21


def test_a_clip_has_its_format_and_exact_colours():
    scene = scene_at_middle("purple", "circle", "down")
    video = WORLD.render(scene)
    assert (video.dtype, video.shape) == (np.uint8, (16, 3, 32, 32))
    assert tuple(video[0, :, 0, 0]) == BACKGROUND
    row, column = int(scene.start_row), int(scene.start_column)
    assert tuple(video[0, :, row, column]) == COLOURS["purple"]


@pytest.mark.parametrize("shape", SHAPES)
def test_the_centre_of_a_shape_is_its_centroid(shape):
    cover = WORLD.coverage(shape, np.array([15.3, 17.8]))
    grid = np.arange(32) + 0.5
    centroid = (cover.sum(1) @ grid / cover.sum(), cover.sum(0) @ grid / cover.sum())
    assert centroid == pytest.approx((15.3, 17.8), abs=0.13)  # half a step of the sampling points


def test_shapes_have_their_areas():
    # Plane geometry: a disc, a square, an equilateral triangle by its circumradius, two bars less their crossing.
    expected = {"circle": np.pi * 49, "square": 12.4**2, "triangle": 3 * 3**0.5 / 4 * 81, "cross": 2 * 5.2 * 16 - 27.04}
    centres = 16 + np.random.default_rng(0).uniform(-1, 1, (60, 2))
    for shape, area in expected.items():
        assert np.mean([WORLD.coverage(shape, centre).sum() for centre in centres]) == pytest.approx(area, rel=0.01)


def test_captions_and_attributes_turn_into_each_other():
    seen = set()
    for combination in every_combination():
        text = caption(Scene(*combination, 9.0, 9.0))
        assert parse_caption(text) == dict(zip(ATTRIBUTES, combination, strict=True))
        seen.add(text)
    assert len(seen) == 384


def test_captions_say_nothing_of_the_position():
    assert caption(scene_at_middle()) == caption(replace(scene_at_middle(), start_row=3.0, start_column=9.0))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a red circle",
        "a red circle moves slowly to the up",
        "a red circle moves slowly left",
        "a pink circle moves slowly to the left",
        "a red star moves slowly to the left",
        "a red circle moves calmly to the left",
        "a red circle moves slowly to the middle left",
        "a red circle moves slowly to the left and up",
        "the red circle moves slowly to the left",
        "a circle red moves slowly to the left",
    ],
)
def test_other_texts_are_no_captions(text):
    assert parse_caption(text) is None


def test_spaces_around_words_do_not_matter():
    assert parse_caption("  a red circle  moves slowly to the left ")["direction"] == "left"


def test_there_is_one_question_for_each_attribute_with_its_answer():
    for combination in every_combination():
        turns = questions(Scene(*combination, 9.0, 9.0))
        assert {turn["attribute"]: turn["answer"] for turn in turns} == dict(zip(ATTRIBUTES, combination, strict=True))
    assert len({turn["question"] for turn in turns}) == 4


@pytest.mark.parametrize(
    ("mirrored", "axis"),
    [
        ({"right": "left", "upper right": "upper left", "lower right": "lower left"}, 3),
        ({"up": "down", "upper left": "lower left", "upper right": "lower right"}, 2),
    ],
)
def test_a_mirrored_clip_is_read_as_the_mirrored_direction(mirrored, axis):
    mirrored = {**mirrored, **{there: here for here, there in mirrored.items()}}
    for direction in DIRECTIONS:
        for shape in ("circle", "square", "cross"):
            video = WORLD.render(scene_at_middle("blue", shape, direction, "quickly"))
            reading = read_clip(WORLD, np.flip(video, axis))
            assert (reading.shape, reading.direction) == (shape, mirrored.get(direction, direction))


def test_a_rotated_clip_is_read_as_the_rotated_direction():
    around = list(DIRECTIONS)  # clockwise in eighths of a turn
    for direction in DIRECTIONS:
        video = WORLD.render(scene_at_middle("green", "cross", direction))
        for quarters in range(4):
            reading = read_clip(WORLD, np.rot90(video, -quarters, axes=(2, 3)))
            assert reading.direction == around[(around.index(direction) + 2 * quarters) % 8]


def test_a_clip_played_backwards_is_read_as_the_opposite_direction():
    around = list(DIRECTIONS)
    for direction in DIRECTIONS:
        reading = read_clip(WORLD, WORLD.render(scene_at_middle(direction=direction, speed="quickly"))[::-1])
        assert (reading.direction, reading.speed) == (around[(around.index(direction) + 4) % 8], "quickly")


def test_a_world_of_another_size_reads_the_same_scenes():
    large = ToyWorld(size=64)
    for scene in scenes("train", 12):
        doubled = replace(scene, start_row=2 * scene.start_row, start_column=2 * scene.start_column)
        video = large.render(doubled)
        assert video.shape == (16, 3, 64, 64)
        assert_read(read_clip(large, video), doubled, 0.6)
        small = video.reshape(16, 3, 32, 2, 32, 2).mean(axis=(3, 5))
        assert np.abs(small - WORLD.render(scene)).mean() < 1.0


def test_scenes_of_a_large_world_fill_it():
    large = ToyWorld(size=64)
    for scene in scenes("held_out", 10, large):
        assert_read(read_clip(large, large.render(scene)), scene, 0.6)


@pytest.mark.parametrize("amount", [3, 12])
def test_slight_noise_does_not_change_the_reading(amount):
    rng = np.random.default_rng(0)
    for scene in scenes("train", 12, seed=2):
        noisy = WORLD.render(scene) + rng.normal(0, amount, (16, 3, 32, 32))
        assert_read(read_clip(WORLD, np.clip(noisy, 0, 255).astype(np.uint8)), scene, 0.6)


def refused(video, reason):
    reading = read_clip(WORLD, video)
    assert not reading.valid
    assert set(attributes_of(reading).values()) == {None}
    assert reading.start is None
    assert reason in reading.reason


@pytest.fixture
def clip():
    return WORLD.render(scene_at_middle())


@pytest.mark.parametrize("value", [0, 128, 255])
def test_a_blank_clip_is_refused(value):
    reading = read_clip(WORLD, np.full((16, 3, 32, 32), value, dtype=np.uint8))
    assert not reading.valid
    assert reading.reason


@pytest.mark.parametrize("colour", COLOURS)
def test_a_faded_colour_is_refused(colour):
    video = WORLD.render(scene_at_middle(colour)).astype(float)
    faded = 128 + 0.4 * (video - 128)
    assert not read_clip(WORLD, faded.astype(np.uint8)).valid


def test_a_colour_between_two_is_refused():
    mixed = (WORLD.render(scene_at_middle("red")).astype(int) + WORLD.render(scene_at_middle("green"))) // 2
    refused(mixed.astype(np.uint8), "colour")


def test_an_object_that_teleports_is_refused(clip):
    moved = clip.copy()
    moved[8:] = np.roll(clip[8:], 6, axis=2)
    refused(moved, "straight line")


def test_an_object_that_turns_around_is_refused():
    there = WORLD.render(Scene("red", "circle", "right", "quickly", 16.0, 10.0))
    refused(np.concatenate([there[::2], there[::-2]]), "straight line")


def test_an_object_that_stands_still_is_refused(clip):
    refused(np.repeat(clip[:1], 16, axis=0), "speed")


def test_an_object_that_is_far_too_fast_is_refused():
    frames = [WORLD.render(Scene("red", "cross", "right", "slowly", 16.0, 9.0 + 1.3 * at))[0] for at in range(16)]
    refused(np.stack(frames), "speed")


def test_two_halves_of_an_object_are_refused(clip):
    halves = clip.copy()
    halves[:, :, :, :16] = np.roll(clip, -6, axis=3)[:, :, :, :16]
    halves[:, :, :, 16:] = np.roll(clip, 6, axis=3)[:, :, :, 16:]
    reading = read_clip(WORLD, halves)
    assert not reading.valid


def test_two_objects_are_refused():
    first, second = (WORLD.render(Scene("red", "circle", "right", "slowly", row, 12.0)) for row in (8.0, 24.0))
    both = np.where(first != np.array(BACKGROUND)[:, None, None], first, second).astype(np.uint8)
    refused(both, "area")


@pytest.mark.parametrize("frame", [0, 7, 15])
def test_an_object_that_is_missing_in_one_frame_is_refused(clip, frame):
    broken = clip.copy()
    broken[frame] = 128
    refused(broken, "area")


def test_an_object_of_half_the_size_is_refused():
    small = ToyWorld(size=16)
    inner = small.render(Scene("red", "square", "right", "quickly", 8.0, 6.0))
    video = np.full((16, 3, 32, 32), 128, dtype=np.uint8)
    video[:, :, 8:24, 8:24] = inner
    refused(video, "area")


def test_a_bar_is_no_shape_of_this_world():
    video = np.full((16, 3, 32, 32), 128, dtype=np.uint8)
    for at in range(16):
        video[at, :, 14:18, at // 2 : at // 2 + 24] = np.array(COLOURS["red"])[:, None, None]
    refused(video, "shape overlap")


@pytest.mark.parametrize("spread", [20, 60, 200])
def test_noise_is_refused(spread):
    for seed in range(5):
        noise = 128 + np.random.default_rng(seed).normal(0, spread, (16, 3, 32, 32))
        assert not read_clip(WORLD, np.clip(noise, 0, 255).astype(np.uint8)).valid


def test_still_noise_that_drifts_is_refused():
    picture = np.random.default_rng(0).integers(0, 256, (3, 32, 32), dtype=np.uint8)
    assert not read_clip(WORLD, np.stack([np.roll(picture, at // 2, axis=2) for at in range(16)])).valid


def test_an_object_that_changes_colour_is_refused():
    first, second = (WORLD.render(scene_at_middle(colour)) for colour in ("red", "blue"))
    assert not read_clip(WORLD, np.concatenate([first[:8], second[8:]])).valid
