"""From samples to a batch of token sequences: for the data workers, for inference and for evaluation alike.

Letters: Q tokens per clip, C feature width.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol, runtime_checkable

from divot_lightning.parts.segments import Segment
from divot_lightning.parts.sequences.chat_template import fill_chat_template
from divot_lightning.parts.sequences.layout import SequenceLayout, build_sequence
from divot_lightning.parts.sequences.limits import SampleLimits
from divot_lightning.parts.sequences.row_packing import pack_rows
from divot_lightning.parts.sequences.rows import SequenceBatch, collate_sequences
from divot_lightning.parts.sequences.text_tokenizer import load_text_tokenizer, text_encoder
from divot_lightning.parts.sequences.tokens import SpecialTokens, TokenKind, TokenSequence


def lay_out(
    samples: Sequence[list[Segment]],
    special: SpecialTokens,
    text_tokenizer: Any,
    layout: SequenceLayout,
    *,
    prompt: bool = False,
) -> SequenceBatch:
    """Tokenise samples and lay them out as a batch.

    Args:
        samples: B samples; an empty list gives one row without targets.
        special: Ids of the special tokens.
        text_tokenizer: A transformers tokenizer.
        layout: See `SequenceLayout`.
        prompt: Build prompts for inference, of any length, each in a row of its own; see `build_sequence`.

    Returns:
        The sequences, on the CPU.
    """
    if prompt:
        layout = SequenceLayout(layout.num_queries, layout.generation_mode)
    encode = text_encoder(text_tokenizer)
    filled = [fill_chat_template(sample, text_tokenizer, prompt=prompt) for sample in samples]
    return join([build_sequence(sample, encode, special, layout, prompt=prompt) for sample in filled], special, layout)


def join(sequences: Sequence[TokenSequence], special: SpecialTokens, layout: SequenceLayout) -> SequenceBatch:
    """Put sequences into rows, several into one where the layout asks for packing.

    Args:
        sequences: B sequences, or none.
        special: Ids of the special tokens.
        layout: Its `max_length` limits packed rows.

    Returns:
        The sequences, on the CPU.
    """
    if not sequences:
        empty = TokenSequence()
        empty.add_tokens([special.end], learn=False, kind=TokenKind.SPECIAL)
        return collate_sequences([empty], pad_id=special.end)
    rows = None
    if layout.packing_width is not None:
        rows = pack_rows([len(sequence.ids) for sequence in sequences], layout.max_length, layout.packing_width)
    return collate_sequences(list(sequences), pad_id=special.end, rows=rows)


@dataclass(frozen=True)
class SequenceCollator:
    """What a data module needs to lay out the samples of a stage. It can be pickled: a process reads its own tokenizer.

    Attributes:
        text_tokenizer: Folder of the text tokenizer.
        layout: How samples are laid out.
        feature_shape: (Q, C) that the features of a clip must have.
        prompt: Whether samples are prompts for a trained model, each ending with a clip to generate, instead of what a
            model learns; see `build_sequence`.
    """

    text_tokenizer: str
    layout: SequenceLayout
    feature_shape: tuple[int, int]
    prompt: bool = False

    @property
    def limits(self) -> SampleLimits:
        """The limits of a sample, by which the data skip samples that do not fit; reads the text tokenizer."""
        _, special = _loaded(self.text_tokenizer)
        return SampleLimits(self.feature_shape, self.layout, begins=special.begin is not None)

    def sequence(self, segments: list[Segment]) -> TokenSequence:
        """Tokenise and lay out one sample, in a data worker.

        Raises:
            UserError: It does not fit; `limits` finds such samples before.
        """
        text_tokenizer, special = _loaded(self.text_tokenizer)
        filled = fill_chat_template(segments, text_tokenizer, prompt=self.prompt)
        return build_sequence(filled, text_encoder(text_tokenizer), special, self.layout, prompt=self.prompt)

    def batch(self, sequences: Sequence[TokenSequence]) -> SequenceBatch:
        """Join the sequences of a batch."""
        _, special = _loaded(self.text_tokenizer)
        return join(sequences, special, self.layout)

    def lay_out(self, samples: Sequence[list[Segment]]) -> SequenceBatch:
        """Tokenise and lay out the samples of a training batch: for loaders without workers of their own."""
        text_tokenizer, special = _loaded(self.text_tokenizer)
        return lay_out(samples, special, text_tokenizer, self.layout, prompt=self.prompt)


@lru_cache(maxsize=4)
def _loaded(folder: str) -> tuple[Any, SpecialTokens]:
    # Texts are encoded one by one, so threads gain nothing; the data workers are forked, which threads do not survive.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    text_tokenizer, _ = load_text_tokenizer(folder)
    return text_tokenizer, SpecialTokens.from_tokenizer(text_tokenizer)


@runtime_checkable
class LaysOutSamples(Protocol):
    """A stage whose batches hold token sequences."""

    def sequence_collator(self) -> SequenceCollator:
        """Return what the data need for them; it is known before the stage is built."""
        ...
