"""Score stories of the toy world by the exact pixel oracle: each clip by what the sentences say, and clip after clip.

Shape letters: S stories, K scores.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from divot_datamodules.toy.oracle import Reading
from divot_datamodules.toy.stories import follow
from divot_datamodules.toy.world import ATTRIBUTES, ToyWorld
from divot_lightning.evaluation.metrics.toy_oracle import ORACLE_RULE, read_clips
from divot_lightning.parts.benchmarks import BenchmarkItem, Prediction
from divot_lightning.parts.metrics import JoinedMetric, Measured

Facts = Mapping[str, Any]


class ToyStory(JoinedMetric):
    """Scores of stories, means over all of them.

    - `told`: as many clips as were asked for, and sentences that can be read.
    - `as_asked`: the first sentence is that of the instruction, and the others change what it asks about, in order.
    - `clip_1/colour`, ..., `clip_1/all`, `clip_2/colour`, ...: the clip shows what the sentences say up to there.
    - `clips`: every clip does, in all attributes; `story`: and the sentences are as asked.
    - `order`: from clip to clip, exactly the attributes change that the sentences change.
    - `consistency`: of all steps from clip to clip, in how many everything stays that the sentences do not change.
    - `jump_pixels`, only of stories that are one scene: distance between where the shape would be in the frame after a
      clip, from its motion in the clip, and where it is in the first frame of the next clip.
    - `speed_change`, likewise: difference of the speeds of two clips that follow each other, in pixels per frame.

    A clip that is missing or that the oracle cannot read is wrong. It has no position, and is left out of the last two.

    Args:
        num_clips: Clips of the longest story.
    """

    inputs: ClassVar[Literal["answers", "clips"]] = "clips"

    def __init__(self, num_clips: int = 3) -> None:
        super().__init__()
        self.num_clips = num_clips
        attributes = [f"clip_{at + 1}/{name}" for at in range(num_clips) for name in (*ATTRIBUTES, "all")]
        joined = ["clips", "story", "order", "consistency", "jump_pixels", "speed_change"]
        self.names = ["told", "as_asked", *attributes, *joined]

    def measure(self, prediction: Prediction, item: BenchmarkItem) -> dict[str, Any]:
        """Read all clips with the oracle, on the background of the real story."""
        readings = [_read(clip_FCHW, item.facts["background"]) for clip_FCHW in prediction.clips]
        return {"sentences": list(prediction.sentences), "readings": readings}

    def update(self, measured: Sequence[Measured], items: Sequence[BenchmarkItem]) -> None:
        """Add stories."""
        for entry, item in zip(measured, items, strict=True):
            self.add(torch.tensor(list(self._values(entry, item).values()), dtype=torch.float64))

    def _values(self, entry: Measured, item: BenchmarkItem) -> dict[str, float]:
        found = story_values(entry["sentences"], entry["readings"], item.facts)
        return {name: found.get(name, math.nan) for name in self.names}

    def compute(self) -> dict[str, Tensor]:
        """Return the scores, scalars in float64; NaN where no story counts."""
        values_SK = self.joined().view(-1, len(self.names))
        return dict(zip(self.names, values_SK.nanmean(dim=0), strict=True))

    def counts(self) -> dict[str, int]:
        """Return how many stories count in each score."""
        counted_K = (~self.joined().view(-1, len(self.names)).isnan()).sum(dim=0)
        return dict(zip(self.names, counted_K.tolist(), strict=True))

    def item_values(self, measured: Sequence[Measured], items: Sequence[BenchmarkItem]) -> list[dict[str, float]]:
        """Return the values of each story, without those that it does not have."""
        rows = [self._values(entry, item) for entry, item in zip(measured, items, strict=True)]
        return [{name: value for name, value in row.items() if not math.isnan(value)} for row in rows]

    def describe(self) -> dict[str, Any]:
        """Return the rule."""
        return {"oracle": ORACLE_RULE, "sentences": "read by divot_datamodules.toy.stories.follow"}


def _read(clip_FCHW: Tensor | None, background: Sequence[int]) -> dict[str, Any]:
    """Return the oracle's reading of a clip, and its number of frames, 0 without a clip."""
    if clip_FCHW is None:
        return {**asdict(Reading(False, "no clip")), "frames": 0}
    (frames, _, _, size), (red, green, blue) = clip_FCHW.shape, background
    world = ToyWorld(size=size, num_frames=frames, background=(red, green, blue))
    (reading,) = read_clips(clip_FCHW[None], world)
    return {**asdict(reading), "frames": frames}


def story_values(sentences: Sequence[str], readings: Sequence[Mapping[str, Any]], facts: Facts) -> dict[str, float]:
    """Return the scores of one story; see `ToyStory`.

    Args:
        sentences: The sentences.
        readings: The oracle's readings of the clips after them, as JSON values.
        facts: Of the real story: `scenes`, `changes`, and `continuous`.
    """
    count, states = len(facts["scenes"]), follow(sentences)
    written = [state for _, state in states]
    told = len(states) == len(sentences) == count and all(reading["frames"] for reading in readings)
    as_asked = told and _as_asked(states, facts)
    rights = [{name: _is_right(readings, written, at, name) for name in ATTRIBUTES} for at in range(count)]
    values = {f"clip_{at + 1}/{name}": float(right) for at, row in enumerate(rights) for name, right in row.items()}
    values |= {f"clip_{at + 1}/all": float(all(row.values())) for at, row in enumerate(rights)}
    every = all(all(row.values()) for row in rights)
    values |= {"told": told, "as_asked": as_asked, "clips": every, "story": every and as_asked}
    cuts = [_cut(readings[at - 1 : at + 1], written[at - 1 : at + 1]) for at in range(1, count)]
    if cuts:
        values["order"] = float(all(changed for changed, _ in cuts))
        values["consistency"] = sum(kept for _, kept in cuts) / len(cuts)
    return values | (_continuity(readings[:count]) if facts["continuous"] else {})


def _is_right(readings: Sequence[Mapping[str, Any]], written: Sequence[Facts], at: int, name: str) -> bool:
    if at >= min(len(readings), len(written)):
        return False
    return bool(readings[at]["valid"] and readings[at][name] == written[at][name])


def _as_asked(states: Sequence[tuple[str, Facts]], facts: Facts) -> bool:
    """Return whether sentences begin as asked and change what was asked for; a direction in a scene may stay."""
    first = {name: facts["scenes"][0][name] for name in ATTRIBUTES}
    pairs = itertools.pairwise(states)
    changed = all(facts["continuous"] or before[1] != after[1] for before, after in pairs)
    return changed and states[0][1] == first and [change for change, _ in states[1:]] == list(facts["changes"])


def _cut(readings: Sequence[Mapping[str, Any]], written: Sequence[Facts]) -> tuple[bool, bool]:
    """Return whether exactly what the text changes is changed from one clip to the next, and whether the rest stays."""
    if len(readings) < 2 or len(written) < 2 or not all(reading["valid"] for reading in readings):
        return False, False
    changed = {name: written[0][name] != written[1][name] for name in ATTRIBUTES}
    differs = {name: readings[0][name] != readings[1][name] for name in ATTRIBUTES}
    return changed == differs, not any(differs[name] for name in ATTRIBUTES if not changed[name])


def _continuity(readings: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Return the mean jump, in pixels, and the mean difference of speeds at the cuts between readable clips."""
    pairs = [(a, b) for a, b in itertools.pairwise(readings) if a["valid"] and b["valid"]]
    if not pairs:
        return {}
    jumps = [math.dist(_after(a), b["start"]) for a, b in pairs]
    speeds = [abs(math.hypot(*a["velocity"]) - math.hypot(*b["velocity"])) for a, b in pairs]
    return {"jump_pixels": sum(jumps) / len(pairs), "speed_change": sum(speeds) / len(pairs)}


def _after(reading: Mapping[str, Any]) -> list[float]:
    """Return where the shape would be in the frame after a clip."""
    return [start + reading["frames"] * step for start, step in zip(reading["start"], reading["velocity"], strict=True)]
