"""The toy world: clips of one coloured moving shape, their captions and questions, and an exact pixel oracle.

A clip is defined by four attributes, which its caption names, and a start position, which it does not name. The oracle
reads the attributes from pixels alone; a clip that it cannot read is invalid and counts as wrong everywhere.

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


@dataclass(frozen=True)
class Reading:
    """The attributes that the oracle reads from pixels.

    Attributes:
        valid: Whether a shape of the world could be read in every frame.
        reason: Why the clip is invalid; "" if it is valid.
        colour: Name of the colour, None if invalid; likewise `shape`, `direction` and `speed`.
        start: Row and column of the shape's centre in the first frame, in pixels, from the fitted motion.
        velocity: Rows and columns per frame of the fitted motion, in pixels.
    """

    valid: bool
    reason: str = ""
    colour: str | None = None
    shape: str | None = None
    direction: str | None = None
    speed: str | None = None
    start: tuple[float, float] | None = None
    velocity: tuple[float, float] | None = None


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
    """Renders scenes to clips, and reads clips with the oracle.

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

    def read(self, video: Pixels) -> Reading:
        """Read a clip with the exact pixel oracle.

        The cover of a pixel is its position between the background's colour (0) and the clip's colour (1). A straight
        line is fitted to the centres of the cover; it is the motion. The shape is the template with the largest
        overlap.

        Args:
            video: uint8 (F, 3, H, W).

        Returns:
            The reading; invalid if there is no shape, if its colour is off, if it is missing, too small or too large
            in a frame, if it does not move on a line, if no template overlaps well or if its speed is impossible.
        """
        pixels = video.astype(np.float64)
        background = np.array(self.background, dtype=np.float64)
        offset = pixels - background[None, :, None, None]
        colour, reason = _read_colour(offset, background)
        if colour is None:
            return Reading(False, reason)
        axis = np.array(COLOURS[colour], dtype=np.float64) - background
        cover = np.clip(np.einsum("fchw,c->fhw", offset, axis) / (axis @ axis), 0.0, 1.0)
        cover[cover < 0.25] = 0.0  # compression and decoder noise in the background
        area = cover.sum(axis=(1, 2)) * (32 / self.size) ** 2
        if area.min() < 60 or area.max() > 260:  # the shapes cover 105 to 154 units of 1/32 x 1/32
            return Reading(False, f"area {area.min():.0f} to {area.max():.0f}")
        return self._read_motion(colour, cover)

    def _read_motion(self, colour: str, cover: NDArray[np.float64]) -> Reading:
        grid = np.arange(self.size) + 0.5
        mass = cover.sum(axis=(1, 2))
        rows = np.einsum("fhw,h->f", cover, grid) / mass
        columns = np.einsum("fhw,w->f", cover, grid) / mass
        time = np.arange(len(cover))
        lines = [np.polyfit(time, values, 1) for values in (rows, columns)]
        error = max(np.abs(np.polyval(line, time) - v).max() for line, v in zip(lines, (rows, columns), strict=True))
        if error > 1.5 * self.size / 32:
            return Reading(False, f"off a straight line by {error:.1f} pixels")
        velocity, start = np.array([line[0] for line in lines]), (float(lines[0][1]), float(lines[1][1]))
        pace = float(np.hypot(*velocity)) / self.size
        if not 0.3 * SPEEDS["slowly"] <= pace <= 2 * SPEEDS["quickly"]:
            return Reading(False, f"speed {pace * 32:.2f}/32 of the side per frame")
        shape, overlap = self._read_shape(cover, np.stack([rows, columns], axis=1))
        if overlap < 0.6:
            return Reading(False, f"best shape overlap {overlap:.2f}")
        direction = max(DIRECTIONS, key=lambda name: float(velocity @ np.array(DIRECTIONS[name])))
        speed = min(SPEEDS, key=lambda name: abs(SPEEDS[name] - pace))
        return Reading(True, "", colour, shape, direction, speed, start, (float(velocity[0]), float(velocity[1])))

    def _read_shape(self, cover: NDArray[np.float64], centroids: NDArray[np.float64]) -> tuple[str, float]:
        """Return the shape with the largest mean overlap (sum of minima over sum of maxima), and that overlap."""
        overlaps = {}
        for shape in SHAPES:
            # The centroid of every shape is its centre, so that templates are placed without a search.
            templates = np.stack([self.coverage(shape, centroid) for centroid in centroids])
            shared, joint = np.minimum(cover, templates), np.maximum(cover, templates)
            overlaps[shape] = float((shared.sum(axis=(1, 2)) / joint.sum(axis=(1, 2))).mean())
        best = max(overlaps, key=lambda shape: overlaps[shape])
        return best, overlaps[best]


def _read_colour(offset: NDArray[np.float64], background: NDArray[np.float64]) -> tuple[str | None, str]:
    """Return the colour of the pixels that differ from the background, or the reason why there is none.

    Args:
        offset: Pixels minus the background, (F, 3, H, W).
        background: Its colour.
    """
    strength = np.sqrt((offset**2).sum(axis=1))
    strong = strength > 0.5 * strength.max()
    if strength.max() < 60:
        return None, "nothing but background"
    mean = np.median(offset.transpose(0, 2, 3, 1)[strong], axis=0)
    distances = {name: float(np.linalg.norm(np.array(value) - background - mean)) for name, value in COLOURS.items()}
    best = min(distances, key=lambda name: distances[name])
    if distances[best] > 60:
        return None, f"colour {distances[best]:.0f} away from the nearest, {best}"
    return best, ""
