"""Scores of toy clips by the exact pixel oracle; a clip that it cannot read counts as wrong.

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


def count_correct(readings: Sequence[Reading], expected: Sequence[Expected]) -> dict[str, int]:
    """Count the clips that show what they should.

    Args:
        readings: What the oracle read.
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
    for reading, wanted in zip(readings, expected, strict=True):
        right = [reading.valid and getattr(reading, name) == wanted[name] for name in ATTRIBUTES]
        for name, hit in zip(ATTRIBUTES, right, strict=True):
            counts[name] += hit
        counts["all"] += all(right)
        counts["invalid"] += not reading.valid
    return counts


class ToyOracleAccuracy(Metric):
    """Share of clips in which the oracle reads what was asked for: per attribute, `all`, and the share `invalid`."""

    higher_is_better = True
    is_differentiable = False
    full_state_update = False
    counts: Tensor

    def __init__(self, world: ToyWorld | None = None) -> None:
        super().__init__()
        self.world = world
        self.add_state("counts", torch.zeros(len(ATTRIBUTES) + 3, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, video_BFCHW: Tensor, expected: Sequence[Expected]) -> None:
        """Read clips, uint8 (B, F, 3, H, W), and compares them with the attributes they should show."""
        counts = count_correct(read_clips(video_BFCHW, self.world), expected)
        self.counts += torch.tensor(list(counts.values()), device=self.counts.device)

    def compute(self) -> dict[str, Tensor]:
        """Return shares in [0, 1], NaN before the first clip."""
        names = (*ATTRIBUTES, "all", "invalid")
        return {name: self.counts[at] / self.counts[-1] for at, name in enumerate(names)}


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

    The caption says nothing about the position, so a model that has learnt the world starts its clips as widely spread
    as the real ones are; one that averages starts all of them in the same place. Clips that the oracle cannot read have
    no position and are left out, and so are captions with fewer than two clips left; the number of clips that counted
    is part of the result, and the share of invalid clips belongs beside it.

    Args:
        readings: What the oracle read.
        groups: The caption of each clip, or anything else that names its group.

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
        places = torch.tensor(positions, dtype=torch.float64)
        squares += (places - places.mean(dim=0)).square().sum().item()
        freedom += 2 * (len(positions) - 1)
        counted += len(positions)
    return (math.sqrt(squares / freedom) if freedom else math.nan), counted
