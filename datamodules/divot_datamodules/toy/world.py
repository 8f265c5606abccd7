"""The toy world: clips of one coloured moving shape, their captions and questions.

A clip is defined by four attributes, which its caption names, and a start position, which it does not name.

Shape letters: F frames, H height, W width.
"""

import itertools
import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]
Split = Literal["train", "held_out"]

BACKGROUND = (128, 128, 128)
COLOURS = {
    "red": (230, 40, 40),
    "green": (40, 190, 60),
    "blue": (50, 70, 235),
    "yellow": (240, 220, 40),
    "purple": (190, 50, 200),
    "white": (250, 250, 250),
}
SHAPES = ("circle", "square", "triangle", "cross")
# Row and column steps of one unit of motion; rows grow downwards.
DIRECTIONS = {
    "right": (0.0, 1.0),
    "lower right": (0.5**0.5, 0.5**0.5),
    "down": (1.0, 0.0),
    "lower left": (0.5**0.5, -(0.5**0.5)),
    "left": (0.0, -1.0),
    "upper left": (-(0.5**0.5), -(0.5**0.5)),
    "up": (-1.0, 0.0),
    "upper right": (-(0.5**0.5), 0.5**0.5),
}
# Fractions of the picture's side per frame: 0.25 and 0.6 pixels at 32 x 32.
SPEEDS = {"slowly": 0.25 / 32, "quickly": 0.6 / 32}
ATTRIBUTES = ("colour", "shape", "direction", "speed")
VALUES: dict[str, tuple[str, ...]] = {
    "colour": tuple(COLOURS),
    "shape": SHAPES,
    "direction": tuple(DIRECTIONS),
    "speed": tuple(SPEEDS),
}
# A combination is held out if the weighted sum of its values' indices is a multiple of ten: one in ten combinations,
# and no attribute value is held out much more often than another (checked in the tests).
HELD_OUT_WEIGHTS, HELD_OUT_MODULUS = (1, 2, 9, 6), 10


@dataclass(frozen=True)
class Scene:
    """The content of one clip: the four attributes, and the start of the shape's centre in pixels."""

    colour: str
    shape: str
    direction: str
    speed: str
    start_row: float
    start_column: float


def caption(scene: Scene) -> str:
    """Return the scene's caption, which names the four attributes and nothing else.

    >>> caption(Scene("red", "circle", "upper left", "slowly", 9.0, 9.0))
    'a red circle moves slowly to the upper left'
    """
    return f"a {scene.colour} {scene.shape} moves {scene.speed} {toward(scene.direction)}"


def toward(direction: str) -> str:
    """Return a direction as the end of a sentence: "up", or "to the left"."""
    return direction if direction in ("up", "down") else f"to the {direction}"


_CAPTION = re.compile(
    r"a (?P<colour>\w+) (?P<shape>\w+) moves (?P<speed>\w+) (?:to the )?(?P<direction>(?:upper |lower )?\w+)"
)


def parse_caption(text: str) -> dict[str, str] | None:
    """Read the attributes from a caption; return None if it is not a caption of this world.

    >>> parse_caption("a red circle moves slowly to the upper left")["direction"]
    'upper left'
    >>> parse_caption("a red red moves") is None
    True
    """
    match = _CAPTION.fullmatch(" ".join(text.split()))
    if match is None:
        return None
    found = match.groupdict()
    known = all(found[name] in VALUES[name] for name in ATTRIBUTES)
    return found if known and caption(Scene(**found, start_row=0, start_column=0)) == " ".join(text.split()) else None


def questions(scene: Scene) -> list[dict[str, str]]:
    """Return one question per attribute with its answer."""
    return [
        {"attribute": "colour", "question": "what colour is the shape ?", "answer": scene.colour},
        {"attribute": "shape", "question": "what shape is it ?", "answer": scene.shape},
        {"attribute": "direction", "question": "where does it move ?", "answer": scene.direction},
        {"attribute": "speed", "question": "how does it move ?", "answer": scene.speed},
    ]


def _inside(shape: str, row: NDArray[np.float64], column: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Return which points lie inside a shape around the origin; unit: 1/32 of the picture's side."""
    if shape == "circle":
        return row**2 + column**2 <= 7.0**2
    if shape == "square":
        return np.maximum(abs(row), abs(column)) <= 6.2
    if shape == "triangle":  # equilateral, tip up, circumradius 9: the three edges lie 4.5 from the centre
        return (row <= 4.5) & (-row / 2 + abs(column) * 0.75**0.5 <= 4.5)
    assert shape == "cross", shape
    short, long = np.minimum(abs(row), abs(column)), np.maximum(abs(row), abs(column))
    return (short <= 2.6) & (long <= 8.0)


@lru_cache
def _combinations(split: Split) -> list[tuple[str, str, str, str]]:
    chosen = []
    for indices in itertools.product(*(range(len(values)) for values in VALUES.values())):
        code = sum(weight * index for weight, index in zip(HELD_OUT_WEIGHTS, indices, strict=True))
        if (code % HELD_OUT_MODULUS == 0) == (split == "held_out"):
            colour, shape, direction, speed = (VALUES[name][index] for name, index in zip(VALUES, indices, strict=True))
            chosen.append((colour, shape, direction, speed))
    return chosen


@dataclass(frozen=True)
class ToyWorld:
    """Renders scenes to clips.

    Attributes:
        size: Height and width in pixels; shapes and speeds scale with it.
        num_frames: Frames per clip.
        frames_per_second: Presentation rate; 16 frames at 8 per second are Divot's 2-second clip.
        supersampling: Points per pixel and axis at which a shape's edge is sampled.
        background: Its colour, RGB in [0, 255].
    """

    size: int = 32
    num_frames: int = 16
    frames_per_second: int = 8
    supersampling: int = 4
    background: tuple[int, int, int] = BACKGROUND

    def combinations(self, split: Split) -> list[tuple[str, str, str, str]]:
        """Return the (colour, shape, direction, speed) combinations of a split.

        One in ten combinations is held out, spread so that each single value stays frequent in training.
        """
        return _combinations(split)

    def sample(self, split: Split, rng: np.random.Generator) -> Scene:
        """Sample a scene: a combination of the split, and a start from which the shape stays in the picture."""
        combinations = self.combinations(split)
        colour, shape, direction, speed = combinations[int(rng.integers(len(combinations)))]
        start = [float(rng.uniform(low, high)) for low, high in self.start_range(direction, speed)]
        return Scene(colour, shape, direction, speed, *start)

    def start_range(self, direction: str, speed: str) -> list[tuple[float, float]]:
        """Return between which rows, and which columns, a motion can start so that the shape stays in the picture."""
        margin = 9 / 32 * self.size
        travel = SPEEDS[speed] * self.size * (self.num_frames - 1)
        return [
            (margin - min(0.0, step * travel), self.size - margin - max(0.0, step * travel))
            for step in DIRECTIONS[direction]
        ]

    def centres(self, scene: Scene) -> NDArray[np.float64]:
        """Return the shape's centre in every frame, (F, 2) rows and columns in pixels."""
        step = np.array(DIRECTIONS[scene.direction]) * SPEEDS[scene.speed] * self.size
        return np.array([scene.start_row, scene.start_column]) + np.arange(self.num_frames)[:, None] * step

    def coverage(self, shape: str, centre: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the fraction of each pixel that the shape covers, (H, W) in [0, 1]."""
        fine = (np.arange(self.size * self.supersampling) + 0.5) / self.supersampling
        scale = 32 / self.size
        row, column = np.meshgrid((fine - centre[0]) * scale, (fine - centre[1]) * scale, indexing="ij")
        blocks = (self.size, self.supersampling, self.size, self.supersampling)
        return _inside(shape, row, column).reshape(blocks).mean(axis=(1, 3))

    def render(self, scene: Scene) -> Pixels:
        """Render a clip, anti-aliased: uint8 (F, 3, H, W) in [0, 255]."""
        cover = np.stack([self.coverage(scene.shape, centre) for centre in self.centres(scene)])[:, None]
        colour = np.array(COLOURS[scene.colour], dtype=np.float64)[None, :, None, None]
        background = np.array(self.background, dtype=np.float64)[None, :, None, None]
        return np.asarray(np.rint(background + cover * (colour - background)), dtype=np.uint8)
