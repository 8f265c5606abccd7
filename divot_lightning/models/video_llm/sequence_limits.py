"""What a stage can take of one sample, so that its data leave out what does not fit before a step meets it.

Letters: Q slots per clip, C feature width.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

from divot_lightning.models.video_llm.sequences import SequenceLayout, SpecialTokens, build_sequence
from divot_lightning.parts.segments import Segment, Text

_ANY_ID = 0
"""Stands for every special token where only lengths matter."""


@dataclass(frozen=True)
class SampleLimits:
    """What a stage can take of one sample; by default anything.

    Attributes:
        feature_shape: (Q, C) that the features of a clip must have; None for any shape.
        layout: How sequences are laid out, with the longest one; None where no sequences are built.
        begins: Whether the text tokenizer has a token that opens sequences.
    """

    feature_shape: tuple[int, int] | None = None
    layout: SequenceLayout | None = None
    begins: bool = False

    def excess(self, segments: Iterable[Segment]) -> int:
        """Return by how many tokens a sample is too long even without any text, 0 if it fits.

        Texts are shortened, clips never are (see `build_sequence`), so no text has to be tokenized to know this.
        """
        if self.layout is None or not self.layout.max_length:
            return 0
        return max(0, length_without_text(segments, self.layout, begins=self.begins) - self.layout.max_length)


@runtime_checkable
class LimitsSamples(Protocol):
    """A stage that tells its data what it can take of a sample."""

    def sample_limits(self) -> SampleLimits:
        """Return the limits as far as they are known: `begins` only once the stage is built."""
        ...


def length_without_text(segments: Iterable[Segment], layout: SequenceLayout, *, begins: bool) -> int:
    """Return the tokens that a sample's sequence has at least: its clips and special tokens.

    Args:
        segments: The sample.
        layout: Slots per clip and generation_mode; its `max_length` is not looked at.
        begins: Whether a token opens the sequence.
    """
    bare = [replace(segment, text="", ends=False) if isinstance(segment, Text) else segment for segment in segments]
    ids = dict.fromkeys(("video", "image"), _ANY_ID)
    special = SpecialTokens(ids, ids, _ANY_ID, _ANY_ID, _ANY_ID, _ANY_ID if begins else None)
    return len(build_sequence(bare, lambda text: [], special, replace(layout, max_length=None)).ids)
