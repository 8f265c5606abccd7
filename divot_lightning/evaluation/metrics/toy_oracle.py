"""Score toy clips by the exact pixel oracle; a clip that it cannot read counts as wrong.

Shape letters: B batch, N clips, F frames, H height, W width.
"""

import hashlib
import math
from abc import abstractmethod
from collections import defaultdict
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import asdict
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from divot_datamodules.toy.oracle import Reading, read_clip
from divot_datamodules.toy.world import ATTRIBUTES, ToyWorld
from divot_lightning.parts.benchmarks import BenchmarkItem, Prediction
from divot_lightning.parts.metrics import JoinedMetric, Measured

ORACLE_RULE = "exact pixel oracle; a clip that it cannot read counts as wrong"


def read_clips(video_BFCHW: Tensor, world: ToyWorld | None = None) -> list[Reading]:
    """Read clips with the oracle of a toy world.

    Args:
        video_BFCHW: uint8 in [0, 255], the frames and size of the world.
        world: The world that renders such clips; by default one of the clips' size and number of frames.

    Returns:
        One reading per clip.
    """
    world = world or ToyWorld(size=video_BFCHW.shape[-1], num_frames=video_BFCHW.shape[1])
    return [read_clip(world, video.cpu().numpy()) for video in video_BFCHW]


class OracleMetric(JoinedMetric):
    """Base of metrics of what the oracle reads in clips."""

    inputs: ClassVar[Literal["answers", "clips"]] = "clips"

    def measure(self, prediction: Prediction, item: BenchmarkItem) -> dict[str, Any]:
        """Read a clip with the oracle."""
        assert prediction.clip is not None
        return {"reading": asdict(read_clips(prediction.clip[None])[0])}

    @abstractmethod
    def row(self, reading: Mapping[str, Any], facts: Mapping[str, Any]) -> list[float]:
        """Return the numbers of one clip that the scores are computed from."""

    def update(self, measured: Sequence[Measured], items: Sequence[BenchmarkItem]) -> None:
        """Add readings."""
        rows = [self.row(entry["reading"], item.facts) for entry, item in zip(measured, items, strict=True)]
        self.add(torch.tensor(rows, dtype=torch.float64))


class ToyOracle(OracleMetric):
    """Fractions of clips in which the oracle reads each attribute, `all` of them, and that are `invalid`; `spread`.

    `spread` is how widely clips of one caption are spread over the picture (see `start_spread`), divided by the spread
    of the real clips; 1 is that of the real clips.

    Args:
        start_error: Whether to measure `start_error_pixels` too, the mean distance of the start from that of the
            original, over valid clips; of use for reconstructions only, since captions leave the start open.
    """

    def __init__(self, start_error: bool = False) -> None:
        super().__init__()
        self.start_error = start_error

    def row(self, reading: Mapping[str, Any], facts: Mapping[str, Any]) -> list[float]:
        """Return whether each attribute is right, the start, the true start and a digest of the caption."""
        start = reading["start"] if reading["valid"] and reading["start"] is not None else (math.nan, math.nan)
        # 52 bits of a digest fit a float64 exactly.
        digest = int.from_bytes(hashlib.sha256(facts["caption"].encode()).digest()[:8]) >> 12
        return [*_rights(reading, facts).values(), *start, *facts["start"], float(digest)]

    def _columns(self) -> list[Tensor]:
        sizes = [len(ATTRIBUTES), 2, 2, 1]
        return list(self.joined().view(-1, sum(sizes)).split(sizes, dim=1))

    def compute(self) -> dict[str, Tensor]:
        """Return the scores, scalars in float64; NaN where no clip counts."""
        rights_N4, starts_N2, truths_N2, captions_N1 = self._columns()
        named = dict(zip(ATTRIBUTES, rights_N4.mean(dim=0), strict=True))
        named |= {"all": rights_N4.prod(dim=1).mean(), "invalid": starts_N2[:, 0].isnan().double().mean()}
        groups = captions_N1[:, 0].tolist()
        spread, real = (start_spread(starts.tolist(), groups)[0] for starts in (starts_N2, truths_N2))
        named["spread"] = torch.tensor(spread / real if real else math.nan, dtype=torch.float64)
        if self.start_error:
            named["start_error_pixels"] = (starts_N2 - truths_N2).norm(dim=1).nanmean()
        return named

    def counts(self) -> dict[str, int]:
        """Return how many clips count in the scores of positions."""
        _, starts_N2, _, captions_N1 = self._columns()
        counts = {"spread": start_spread(starts_N2.tolist(), captions_N1[:, 0].tolist())[1]}
        return counts | ({"start_error_pixels": int((~starts_N2[:, 0].isnan()).sum())} if self.start_error else {})

    def item_values(self, measured: Sequence[Measured], items: Sequence[BenchmarkItem]) -> list[dict[str, float]]:
        """Return for each clip whether each attribute is right, and all of them."""
        rows = [_rights(entry["reading"], item.facts) for entry, item in zip(measured, items, strict=True)]
        return [{**row, "all": float(all(row.values()))} for row in rows]

    def describe(self) -> dict[str, Any]:
        """Return the rule."""
        return {"oracle": ORACLE_RULE}


def _rights(reading: Mapping[str, Any], facts: Mapping[str, Any]) -> dict[str, float]:
    """Return 1 for each attribute that a clip shows as it should; an invalid clip is wrong in all."""
    return {name: float(reading["valid"] and reading[name] == facts["attributes"][name]) for name in ATTRIBUTES}


def start_spread(starts: Sequence[Sequence[float]], groups: Sequence[Hashable]) -> tuple[float, int]:
    """Return how widely the clips of one caption are spread over the picture.

    The caption does not mention the position, so a model that has learnt the world starts its clips as widely spread
    as the real ones; a model that averages starts all of them at the same position. Clips that the oracle cannot read
    have no position and are left out, and so are captions with fewer than two remaining clips. The number of clips
    that count is part of the result; the fraction of invalid clips should be shown beside it.

    Args:
        starts: Row and column of each clip's start, in pixels; NaN for clips that cannot be read.
        groups: The caption of each clip, or another name of its group.

    Returns:
        Standard deviation of the start position within a caption, in pixels per axis (unbiased, pooled over captions
        and both axes), NaN if no caption has two valid clips; and the number of clips that counted.

    >>> start_spread([(1.0, 5.0), (3.0, 5.0), (9.0, 5.0), (math.nan, math.nan)], ["a", "a", "b", "a"])
    (1.0, 2)
    """
    by_group: dict[Hashable, list[Sequence[float]]] = defaultdict(list)
    for start, group in zip(starts, groups, strict=True):
        if not math.isnan(start[0]):
            by_group[group].append(start)
    squares, freedom, counted = 0.0, 0, 0
    for positions in by_group.values():
        if len(positions) < 2:
            continue
        starts_N2 = torch.tensor(positions, dtype=torch.float64)
        squares += (starts_N2 - starts_N2.mean(dim=0)).square().sum().item()
        freedom += 2 * (len(positions) - 1)
        counted += len(positions)
    return (math.sqrt(squares / freedom) if freedom else math.nan), counted
