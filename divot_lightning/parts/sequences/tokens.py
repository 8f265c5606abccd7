"""The tokens of one sample: their kinds, the ids of special tokens, and the sequence that holds them.

Letters: L sequence length, Q tokens per clip.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

from divot_lightning.errors import UserError
from divot_lightning.parts.segments import SPECIAL_TOKEN_NAMES

IGNORED = -100
"""Label of a position that is not a target of the next-word loss (PyTorch's cross entropy skips this value)."""


class TokenKind(IntEnum):
    """The kind of a position in a sequence.

    The input at READ is a projected feature. The input at QUERY is a learnable query, and the hidden state there
    predicts a feature. The input at FORCED (autoregressive only, "teacher forcing") is a projected feature that the
    hidden state one position earlier predicts.
    """

    PAD = 0
    TEXT = 1
    SPECIAL = 2
    READ = 3
    QUERY = 4
    FORCED = 5


@dataclass(frozen=True)
class SpecialTokens:
    """Ids of the special tokens.

    Attributes:
        opening: Ids of ``<vid>`` and ``<img>``, by kind of clip.
        closing: Ids of ``</vid>`` and ``</img>``, by kind of clip.
        frame_begin: Id of ``<frame>``; also the placeholder id at feature positions, whose embeddings are replaced.
        frame_end: Id of ``</frame>``.
        end: Id that ends a sequence.
        begin: Id that begins a sequence; None if the text tokenizer has none.
    """

    opening: dict[str, int]
    closing: dict[str, int]
    frame_begin: int
    frame_end: int
    end: int
    begin: int | None = None

    @classmethod
    def from_tokenizer(cls, text_tokenizer: Any) -> SpecialTokens:
        """Read the ids from a transformers tokenizer that has ``SPECIAL_TOKEN_NAMES``.

        Args:
            text_tokenizer: The tokenizer; it must have an end token.

        Returns:
            The ids.

        Raises:
            UserError: The text tokenizer has no end token.
        """
        if text_tokenizer.eos_token_id is None:
            raise UserError("The text tokenizer has no end token (eos_token is None); set eos_token in its folder.")
        ids = {name: text_tokenizer.convert_tokens_to_ids(name) for name in SPECIAL_TOKEN_NAMES}
        return cls(
            opening={"video": ids["<vid>"], "image": ids["<img>"]},
            closing={"video": ids["</vid>"], "image": ids["</img>"]},
            frame_begin=ids["<frame>"],
            frame_end=ids["</frame>"],
            end=text_tokenizer.eos_token_id,
            begin=text_tokenizer.bos_token_id,
        )

    @property
    def clip_markers(self) -> list[int]:
        """Return the ids that mark clips; a text answer never contains them."""
        return sorted({*self.opening.values(), *self.closing.values(), self.frame_begin, self.frame_end})


@dataclass
class TokenSequence:
    """One token sequence; all lists have length L.

    Attributes:
        ids: Token ids; the placeholder ``<frame>`` at feature positions.
        labels: The id itself where it is a target of the next-word loss, else -100. As in transformers the loss
            compares label i with the prediction at i - 1.
        token_kinds: ``TokenKind`` values.
        clips: At feature positions the index of the clip in the sample, else -1.
        feature_indices: At feature positions the index 0..Q-1 of the feature in the clip, else -1.
        num_clips: Number of clips of the sample.
    """

    ids: list[int] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    token_kinds: list[int] = field(default_factory=list)
    clips: list[int] = field(default_factory=list)
    feature_indices: list[int] = field(default_factory=list)
    num_clips: int = 0

    def add_tokens(self, ids: list[int], *, learn: bool, kind: TokenKind) -> None:
        """Append text or special tokens."""
        self.ids += ids
        self.labels += ids if learn else [IGNORED] * len(ids)
        self.token_kinds += [int(kind)] * len(ids)
        self.clips += [-1] * len(ids)
        self.feature_indices += [-1] * len(ids)

    def add_features(self, clip: int, num_queries: int, *, placeholder: int, kind: TokenKind) -> None:
        """Append the Q feature positions of a clip."""
        self.ids += [placeholder] * num_queries
        self.labels += [IGNORED] * num_queries
        self.token_kinds += [int(kind)] * num_queries
        self.clips += [clip] * num_queries
        self.feature_indices += range(num_queries)

    def cut(self, length: int) -> None:
        """Remove all positions from ``length`` on."""
        for values in (self.ids, self.labels, self.token_kinds, self.clips, self.feature_indices):
            del values[length:]
