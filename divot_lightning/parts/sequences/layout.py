"""Lay out samples as token sequences.

A sample of any task is a list of segments (`divot_lightning.parts.segments`). The segments alone decide what is
learned, so no task is a special case.

A clip takes Q *feature positions*: each reads, or predicts, one of its Q features. The layout is that of the released
Divot code, where the feature positions are the tokens ``<frame_00000>...``::

    <bos> text <vid> (<frame> Q feature positions </frame>) x N </vid> text <eos>

Letters: L sequence length, Q tokens per clip.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal, TypeAlias

from divot_lightning.errors import UserError
from divot_lightning.parts.segments import Clips, Segment, Text
from divot_lightning.parts.sequences.tokens import SpecialTokens, TokenKind, TokenSequence

GenerationMode: TypeAlias = Literal["query_bidirectional", "query_causal", "autoregressive"]
Encode: TypeAlias = Callable[..., list[int]]

TAIL_LENGTH = 2
"""Number of tokens after the last feature position of a clip: ``</frame> </vid>``."""


@dataclass(frozen=True)
class SequenceLayout:
    """How clips are laid out.

    Attributes:
        num_queries: Q, feature positions per clip.
        generation_mode: How clips are generated: by learnable queries that attend to all queries of the clip
            ("query_bidirectional") or to the earlier ones ("query_causal"), or one feature after another
            ("autoregressive").
        max_length: Longest sequence; None for no limit.
        packing_width: D, width of the language model, by which `pack_rows` decides which samples of a training batch
            share a row; None gives each sample a row of its own.
    """

    num_queries: int
    generation_mode: GenerationMode = "query_bidirectional"
    max_length: int | None = None
    packing_width: int | None = None


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
        encode: Maps text to ids, without special tokens; with `special=True` it knows them, see `text_encoder`.
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
    ids = encode(segment.text, special=True) if segment.special else encode(segment.text)
    return [*ids, *([special.end] if segment.ends else [])]


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
