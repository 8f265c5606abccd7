"""Lay out samples as the token sequences that the video LLM is trained on, and collate them to batches.

A sample of any task is a list of segments (`divot_lightning.parts.segments`). The segments alone decide what is
learned, so no task is a special case.

A clip takes Q *feature positions*: each reads, or predicts, one of its Q features. The layout is that of the released
Divot code, where the feature positions are the tokens ``<frame_00000>...``::

    <bos> text <vid> (<frame> Q feature positions </frame>) x N </vid> text <eos>

Letters: B samples, L sequence length, Q tokens per clip, M clips of the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from enum import IntEnum
from itertools import accumulate, repeat
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from divot_lightning.errors import UserError
from divot_lightning.parts.segments import SPECIAL_TOKEN_NAMES, Clips, Segment, Text

GenerationMode: TypeAlias = Literal["query_bidirectional", "query_causal", "autoregressive"]
Encode: TypeAlias = Callable[[str], list[int]]

TAIL_LENGTH = 2
"""Number of tokens after the last feature position of a clip: ``</frame> </vid>``."""

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


@dataclass(frozen=True)
class SequenceLayout:
    """How clips are laid out.

    Attributes:
        num_queries: Q, feature positions per clip.
        generation_mode: How clips are generated: by learnable queries that attend to all queries of the clip
            ("query_bidirectional") or to the earlier ones ("query_causal"), or one feature after another
            ("autoregressive").
        max_length: Longest sequence; None for no limit.
    """

    num_queries: int
    generation_mode: GenerationMode = "query_bidirectional"
    max_length: int | None = None


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


def build_sequence(
    segments: Iterable[Segment], encode: Encode, special: SpecialTokens, layout: SequenceLayout, *, prompt: bool = False
) -> TokenSequence:
    """Lay out one sample of any task.

    Targets of the next-word loss are texts with ``learn``, the opening and closing tokens of clips with ``learn``, and
    always the end token: caption = clips, learned text; generation pretraining = text, clips (only the end is learned);
    generation tuning = text, clips with learn.

    With the query modes, a generated clip that text or another clip follows is read back: after its query block
    ``<frame> Q queries </frame>`` comes a read block ``<frame> Q features </frame>`` of the same clip, so that later
    positions attend to the generated features and not only to the queries. The autoregressive mode does not need it,
    because the features are already the inputs there.

    A sample that is longer than ``layout.max_length`` loses the ends of its texts, the last text first, and never a
    part of a clip. If the last text is shortened, the end token is removed too, because the text does not end there.

    Args:
        segments: The sample.
        encode: Maps text to ids, without special tokens.
        special: Ids of the special tokens.
        layout: Feature positions per clip, generation mode, greatest length.
        prompt: Build the beginning of a sequence for inference: without end token and, if the last segment is to be
            generated, up to its last query (autoregressive: up to the ``<frame>`` before its last clip).

    Returns:
        The sequence.

    Raises:
        UserError: The sample does not fit, even without text, or a prompt does not fit.
    """
    segments = list(segments)
    texts = [_text_ids(segment, encode, special) for segment in segments]
    sequence = _lay_out(segments, texts, special, layout, end=not prompt)
    if prompt and segments and isinstance(segments[-1], Clips) and segments[-1].role == "generate":
        generated = layout.num_queries if layout.generation_mode == "autoregressive" else 0
        sequence.cut(len(sequence.ids) - generated - TAIL_LENGTH)
    excess = len(sequence.ids) - (layout.max_length or len(sequence.ids))
    if excess <= 0:
        return sequence
    if prompt or excess > sum(map(len, texts)):
        raise UserError(_too_long(len(sequence.ids), sum(map(len, texts)), sequence.num_clips, layout))
    end_is_cut = bool(texts[-1])
    return _lay_out(segments, _shorten(texts, excess - end_is_cut), special, layout, end=not end_is_cut)


def _text_ids(segment: Segment, encode: Encode, special: SpecialTokens) -> list[int]:
    if not isinstance(segment, Text):
        return []
    return [*encode(segment.text), *([special.end] if segment.ends else [])]


def _lay_out(
    segments: list[Segment], texts: list[list[int]], special: SpecialTokens, layout: SequenceLayout, *, end: bool
) -> TokenSequence:
    sequence = TokenSequence()
    if special.begin is not None:
        sequence.add_tokens([special.begin], learn=False, kind=TokenKind.SPECIAL)
    for index, (segment, ids) in enumerate(zip(segments, texts, strict=True)):
        if isinstance(segment, Text):
            sequence.add_tokens(ids, learn=segment.learn, kind=TokenKind.TEXT)
        else:
            _add_clips(sequence, segment, special, layout, followed=index + 1 < len(segments))
    if end:
        sequence.add_tokens([special.end], learn=True, kind=TokenKind.SPECIAL)
    return sequence


def _add_clips(
    sequence: TokenSequence, segment: Clips, special: SpecialTokens, layout: SequenceLayout, *, followed: bool
) -> None:
    sequence.add_tokens([special.opening[segment.kind]], learn=segment.learn, kind=TokenKind.SPECIAL)
    for index in range(segment.count):
        kinds = [TokenKind.READ]
        if segment.role == "generate" and layout.generation_mode == "autoregressive":
            kinds = [TokenKind.FORCED]
        elif segment.role == "generate":
            read_back = followed or index + 1 < segment.count
            kinds = [TokenKind.QUERY, TokenKind.READ] if read_back else [TokenKind.QUERY]
        for kind in kinds:
            sequence.add_tokens([special.frame_begin], learn=False, kind=TokenKind.SPECIAL)
            sequence.add_features(sequence.num_clips, layout.num_queries, placeholder=special.frame_begin, kind=kind)
            sequence.add_tokens([special.frame_end], learn=False, kind=TokenKind.SPECIAL)
        sequence.num_clips += 1
    sequence.add_tokens([special.closing[segment.kind]], learn=segment.learn, kind=TokenKind.SPECIAL)


def _shorten(texts: list[list[int]], excess: int) -> list[list[int]]:
    """Remove ``excess`` ids from the ends of the texts, the last text first."""
    shortened = []
    for ids in reversed(texts):
        dropped = min(excess, len(ids))
        excess -= dropped
        shortened.append(ids[: len(ids) - dropped])
    return shortened[::-1]


def _too_long(length: int, text_length: int, num_clips: int, layout: SequenceLayout) -> str:
    return (
        f"A sample has {length} tokens, {text_length} of them text, but max_length is {layout.max_length}.\n"
        f"Its {num_clips} clips ({layout.num_queries} tokens each) are never cut, and without text they do not fit.\n"
        "Raise max_length or give the sample fewer clips."
    )


@dataclass
class SequenceBatch:
    """Sequences of a batch in rows, padded on the right. A row holds one sequence, or several that are packed.

    Attributes:
        ids_BL: Token ids, int64; pads hold the pad id.
        labels_BL: Targets of the next-word loss, int64, -100 elsewhere.
        token_kind_BL: ``TokenKind`` values, int64; PAD where padded.
        clips_BL: At feature positions the index of the clip among the M clips of the batch, int64, -1 elsewhere.
        feature_index_BL: At feature positions the index of the feature in the clip, int64, -1 elsewhere.
        samples_BL: Index of the sample in the batch, int64, -1 where padded.
        position_ids_BL: Index of the position in the sample, int64; 0 where padded.
        num_clips: M.
    """

    ids_BL: Tensor
    labels_BL: Tensor
    token_kind_BL: Tensor
    clips_BL: Tensor
    feature_index_BL: Tensor
    samples_BL: Tensor
    position_ids_BL: Tensor
    num_clips: int

    @property
    def packed(self) -> bool:
        """Whether a row holds more than one sample."""
        return bool((self.samples_BL > self.samples_BL[:, :1]).any())

    def to(self, device: torch.device | str) -> SequenceBatch:
        """Copy the tensors to a device."""
        moved: dict[str, Any] = {
            name: value.to(device, non_blocking=True) for name, value in vars(self).items() if isinstance(value, Tensor)
        }
        return replace(self, **moved)


def collate_sequences(
    sequences: list[TokenSequence], pad_id: int, rows: list[list[int]] | None = None
) -> SequenceBatch:
    """Put sequences into rows, pad the rows on the right to the longest one, and number the clips of the batch.

    Args:
        sequences: At least one sequence.
        pad_id: Id at padded positions; it has no effect on results.
        rows: Sequence indices of each row, see ``pack_rows``; None gives each sequence a row of its own.

    Returns:
        The batch, on the CPU; clips are numbered in the order of the sequences, like the features of the batch.
    """
    rows = rows or [[number] for number in range(len(sequences))]
    first_clips = [0, *accumulate(sequence.num_clips for sequence in sequences)]

    def pad(value: int, values_of: Callable[[int, TokenSequence], Iterable[int]]) -> Tensor:
        filled = [[value for number in row for value in values_of(number, sequences[number])] for row in rows]
        tensors = [torch.tensor(row, dtype=torch.int64) for row in filled]
        return pad_sequence(tensors, batch_first=True, padding_value=value)

    return SequenceBatch(
        ids_BL=pad(pad_id, lambda number, sequence: sequence.ids),
        labels_BL=pad(IGNORED, lambda number, sequence: sequence.labels),
        token_kind_BL=pad(int(TokenKind.PAD), lambda number, sequence: sequence.token_kinds),
        clips_BL=pad(-1, lambda number, sequence: _renumbered(sequence.clips, first_clips[number])),
        feature_index_BL=pad(-1, lambda number, sequence: sequence.feature_indices),
        samples_BL=pad(-1, lambda number, sequence: repeat(number, len(sequence.ids))),
        position_ids_BL=pad(0, lambda number, sequence: range(len(sequence.ids))),
        num_clips=first_clips[-1],
    )


def _renumbered(clips: list[int], first: int) -> list[int]:
    return [clip + first if clip >= 0 else -1 for clip in clips]
