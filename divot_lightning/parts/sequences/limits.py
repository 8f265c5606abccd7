"""Limits on a single sample, so that the data can skip samples that do not fit before a training step gets them.

Letters: Q tokens per clip, C feature width.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from divot_lightning.parts.segments import Segment, Text
from divot_lightning.parts.sequences.layout import SequenceLayout, build_sequence
from divot_lightning.parts.sequences.tokens import SpecialTokens

_ANY_ID = 0
"""Stands for every special token where only lengths matter."""


@dataclass(frozen=True)
class SampleLimits:
    """The limits that a stage puts on a sample; none by default.

    Attributes:
        feature_shape: (Q, C) that the features of a clip must have; None for any shape.
        layout: Layout of sequences, with their greatest length; None if the stage builds no sequences.
        begins: Whether the text tokenizer has a token that begins sequences.
    """

    feature_shape: tuple[int, int] | None = None
    layout: SequenceLayout | None = None
    begins: bool = False

    def excess(self, segments: Iterable[Segment]) -> int:
        """Return by how many tokens a sample without its text is too long; 0 if it fits.

        Texts can be shortened and clips cannot (see `build_sequence`), so no text has to be tokenized for this.
        """
        if self.layout is None or not self.layout.max_length:
            return 0
        return max(0, length_without_text(segments, self.layout, begins=self.begins) - self.layout.max_length)


def length_without_text(segments: Iterable[Segment], layout: SequenceLayout, *, begins: bool) -> int:
    """Return the number of tokens of a sample's sequence without its text: clips and special tokens.

    Args:
        segments: The sample.
        layout: Number of queries and generation mode; its `max_length` is ignored.
        begins: Whether a token begins the sequence.
    """
    bare = [replace(part, text="", ends=False, special=False) if isinstance(part, Text) else part for part in segments]
    ids = dict.fromkeys(("video", "image"), _ANY_ID)
    special = SpecialTokens(ids, ids, _ANY_ID, _ANY_ID, _ANY_ID, _ANY_ID if begins else None)
    return len(build_sequence(bare, lambda text: [], special, replace(layout, max_length=None)).ids)
