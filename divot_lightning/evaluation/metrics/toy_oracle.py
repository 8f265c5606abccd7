"""Score toy clips by the exact pixel oracle; a clip that it cannot read counts as wrong.

Shape letters: B batch, F frames, H height, W width.
"""

import math
from collections import defaultdict
from collections.abc import Hashable, Mapping, Sequence

import torch
from torch import Tensor
from torchmetrics import Metric

from divot_datamodules.toy.world import ATTRIBUTES, Reading, ToyWorld
from divot_lightning.errors import UserError

Expected = Mapping[str, str]


def read_clips(video_BFCHW: Tensor, world: ToyWorld | None = None) -> list[Reading]:
    """Read clips with the oracle of a toy world.

    Args:
        video_BFCHW: uint8 in [0, 255], the frames and size of the world.
        world: The world that renders such clips; by default one of the clips' size and number of frames.

    Returns:
        One reading per clip.
    """
    world = world or ToyWorld(size=video_BFCHW.shape[-1], num_frames=video_BFCHW.shape[1])
    return [world.read(video.cpu().numpy()) for video in video_BFCHW]


def attributes_right(reading: Reading, target: Expected) -> dict[str, bool]:
    """Return for each attribute whether a clip shows its target; an invalid clip is wrong in all."""
    return {name: reading.valid and getattr(reading, name) == target[name] for name in ATTRIBUTES}


def count_correct(readings: Sequence[Reading], expected: Sequence[Expected]) -> dict[str, int]:
    """Count the clips that show what they should.

    Args:
        readings: The oracle's readings.
        expected: The attributes that each clip should show, in the same order.

    Returns:
        Clips right in each attribute and in `all` of them, `invalid` clips (wrong in everything), and `count`.

    Raises:
        UserError: If the two differ in length.

    >>> right = {"colour": "red", "shape": "circle", "direction": "up", "speed": "slowly"}
    >>> counts = count_correct([Reading(True, **right), Reading(False)], [right, right])
    >>> counts["all"], counts["invalid"], counts["count"]
    (1, 1, 2)
    """
    if len(readings) != len(expected):
        raise UserError(f"{len(readings)} clips were read but {len(expected)} are expected; give one for each")
    counts = {name: 0 for name in (*ATTRIBUTES, "all", "invalid")} | {"count": len(readings)}
    for reading, target in zip(readings, expected, strict=True):
        right = attributes_right(reading, target)
        for name, hit in right.items():
            counts[name] += hit
        counts["all"] += all(right.values())
        counts["invalid"] += not reading.valid
    return counts


class ToyOracleAccuracy(Metric):
    """Fraction of clips in which the oracle reads the target: per attribute, `all`, and the fraction `invalid`."""

    higher_is_better = True
    is_differentiable = False
    full_state_update = False
    counts: Tensor

    def __init__(self, world: ToyWorld | None = None) -> None:
        super().__init__()
        self.world = world
        self.add_state("counts", torch.zeros(len(ATTRIBUTES) + 3, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, video_BFCHW: Tensor, expected: Sequence[Expected]) -> None:
        """Read clips, uint8 (B, F, 3, H, W), and compare them with the attributes that they should show."""
        counts = count_correct(read_clips(video_BFCHW, self.world), expected)
        self.counts += torch.tensor(list(counts.values()), device=self.counts.device)

    def compute(self) -> dict[str, Tensor]:
        """Return fractions in [0, 1], NaN before the first clip."""
        names = (*ATTRIBUTES, "all", "invalid")
        return {name: self.counts[index] / self.counts[-1] for index, name in enumerate(names)}


def start_error(readings: Sequence[Reading], starts: Sequence[tuple[float, float]]) -> tuple[float, int]:
    """Return the mean distance in pixels between read and true start, over valid clips, and how many those are."""
    distances = [
        math.dist(reading.start, start)
        for reading, start in zip(readings, starts, strict=True)
        if reading.valid and reading.start is not None
    ]
    return (math.fsum(distances) / len(distances) if distances else math.nan), len(distances)


def start_spread(readings: Sequence[Reading], groups: Sequence[Hashable]) -> tuple[float, int]:
    """Return how widely the clips of one caption are spread over the picture.

    The caption does not mention the position, so a model that has learnt the world starts its clips as widely spread
    as the real ones; a model that averages starts all of them at the same position. Clips that the oracle cannot read
    have no position and are left out, and so are captions with fewer than two remaining clips. The number of clips
    that count is part of the result; the fraction of invalid clips should be shown beside it.

    Args:
        readings: The oracle's readings.
        groups: The caption of each clip, or another name of its group.

    Returns:
        Standard deviation of the start position within a caption, in pixels per axis (unbiased, pooled over captions
        and both axes), NaN if no caption has two valid clips; and the number of clips that counted.

    >>> def at(row: float) -> Reading: return Reading(True, start=(row, 5.0))
    >>> start_spread([at(1.0), at(3.0), at(9.0), Reading(False)], ["a", "a", "b", "a"])
    (1.0, 2)
    """
    starts: dict[Hashable, list[tuple[float, float]]] = defaultdict(list)
    for reading, group in zip(readings, groups, strict=True):
        if reading.valid and reading.start is not None:
            starts[group].append(reading.start)
    squares, freedom, counted = 0.0, 0, 0
    for positions in starts.values():
        if len(positions) < 2:
            continue
        starts_N2 = torch.tensor(positions, dtype=torch.float64)
        squares += (starts_N2 - starts_N2.mean(dim=0)).square().sum().item()
        freedom += 2 * (len(positions) - 1)
        counted += len(positions)
    return (math.sqrt(squares / freedom) if freedom else math.nan), counted
