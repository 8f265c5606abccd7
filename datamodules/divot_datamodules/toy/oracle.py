"""The exact pixel oracle of the toy world: which shape a clip shows, in which colour, and how it moves.

It reads these attributes from pixels alone; a clip that it cannot read is invalid and counts as wrong everywhere.

Shape letters: F frames, H height, W width.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from divot_datamodules.toy.world import COLOURS, DIRECTIONS, SHAPES, SPEEDS, Pixels, ToyWorld


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


def read_clip(world: ToyWorld, video: Pixels) -> Reading:
    """Read a clip with the exact pixel oracle.

    The cover of a pixel is its position between the background's colour (0) and the clip's colour (1). A straight
    line is fitted to the centres of the cover; it is the motion. The shape is the template with the largest
    overlap.

    Args:
        world: The world that renders such clips.
        video: uint8 (F, 3, H, W).

    Returns:
        The reading; invalid if there is no shape, if its colour is off, if it is missing, too small or too large
        in a frame, if it does not move on a line, if no template overlaps well or if its speed is impossible.
    """
    pixels = video.astype(np.float64)
    background = np.array(world.background, dtype=np.float64)
    offset = pixels - background[None, :, None, None]
    colour, reason = _read_colour(offset, background)
    if colour is None:
        return Reading(False, reason)
    axis = np.array(COLOURS[colour], dtype=np.float64) - background
    cover = np.clip(np.einsum("fchw,c->fhw", offset, axis) / (axis @ axis), 0.0, 1.0)
    cover[cover < 0.25] = 0.0  # compression and decoder noise in the background
    area = cover.sum(axis=(1, 2)) * (32 / world.size) ** 2
    if area.min() < 60 or area.max() > 260:  # the shapes cover 105 to 154 units of 1/32 x 1/32
        return Reading(False, f"area {area.min():.0f} to {area.max():.0f}")
    return _read_motion(world, colour, cover)


def _read_motion(world: ToyWorld, colour: str, cover: NDArray[np.float64]) -> Reading:
    grid = np.arange(world.size) + 0.5
    mass = cover.sum(axis=(1, 2))
    rows = np.einsum("fhw,h->f", cover, grid) / mass
    columns = np.einsum("fhw,w->f", cover, grid) / mass
    time = np.arange(len(cover))
    lines = [np.polyfit(time, values, 1) for values in (rows, columns)]
    error = max(np.abs(np.polyval(line, time) - v).max() for line, v in zip(lines, (rows, columns), strict=True))
    if error > 1.5 * world.size / 32:
        return Reading(False, f"off a straight line by {error:.1f} pixels")
    velocity, start = np.array([line[0] for line in lines]), (float(lines[0][1]), float(lines[1][1]))
    pace = float(np.hypot(*velocity)) / world.size
    if not 0.3 * SPEEDS["slowly"] <= pace <= 2 * SPEEDS["quickly"]:
        return Reading(False, f"speed {pace * 32:.2f}/32 of the side per frame")
    shape, overlap = _read_shape(world, cover, np.stack([rows, columns], axis=1))
    if overlap < 0.6:
        return Reading(False, f"best shape overlap {overlap:.2f}")
    direction = max(DIRECTIONS, key=lambda name: float(velocity @ np.array(DIRECTIONS[name])))
    speed = min(SPEEDS, key=lambda name: abs(SPEEDS[name] - pace))
    return Reading(True, "", colour, shape, direction, speed, start, (float(velocity[0]), float(velocity[1])))


def _read_shape(world: ToyWorld, cover: NDArray[np.float64], centroids: NDArray[np.float64]) -> tuple[str, float]:
    """Return the shape with the largest mean overlap (sum of minima over sum of maxima), and that overlap."""
    overlaps = {}
    for shape in SHAPES:
        # The centroid of every shape is its centre, so that templates are placed without a search.
        templates = np.stack([world.coverage(shape, centroid) for centroid in centroids])
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
