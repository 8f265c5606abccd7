"""Put token sequences into the rows of a batch.

Letters: B samples or rows, L row length, M clips of the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from itertools import accumulate, repeat
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from divot_lightning.parts.sequences.tokens import IGNORED, TokenKind, TokenSequence


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
    def num_text_targets(self) -> int:
        """Number of tokens that the next-word loss predicts."""
        return len(self.text_targets())

    @property
    def num_generated_clips(self) -> int:
        """Number of clips that the generation head predicts."""
        return len(self.clips_BL.flatten()[self.where(TokenKind.QUERY, TokenKind.FORCED)].unique())

    @property
    def num_tokens(self) -> int:
        """Number of tokens, padding not counted."""
        return int((self.token_kind_BL != TokenKind.PAD).sum())

    def text_targets(self) -> Tensor:
        """Return the positions that the next-word loss predicts: rising indices into the flattened rows, int64."""
        # Nothing predicts the first position of a sample: the position before it belongs to another sample.
        return ((self.labels_BL != IGNORED) & (self.position_ids_BL > 0)).flatten().nonzero()[:, 0]

    def where(self, *kinds: TokenKind) -> Tensor:
        """Return the positions of some kinds: rising indices into the flattened rows, int64."""
        return torch.isin(self.token_kind_BL.flatten(), torch.tensor(kinds)).nonzero()[:, 0]

    @property
    def packed(self) -> bool:
        """Whether a row holds more than one sample."""
        return bool((self.samples_BL > self.samples_BL[:, :1]).any())

    @property
    def num_common(self) -> int:
        """Number of positions at which all rows begin alike, with one sample a row: the same words and clips' features.

        Each row has at least one position behind them.
        """
        alike_L = torch.ones(self.ids_BL.shape[1], dtype=torch.bool)
        for values_BL in (self.ids_BL, self.token_kind_BL, self.feature_index_BL):
            alike_L &= (values_BL == values_BL[:1]).all(dim=0)
        shortest = int((self.token_kind_BL != TokenKind.PAD).sum(dim=1).min())
        return min(int(alike_L.int().cumprod(dim=0).sum()), shortest - 1)

    def part(self, rows: slice, columns: slice) -> SequenceBatch:
        """Return some rows and columns; clips keep their numbers."""
        cut: dict[str, Any] = {
            name: value[rows, columns] for name, value in vars(self).items() if isinstance(value, Tensor)
        }
        return replace(self, **cut)

    def with_last_row(self, times: int) -> SequenceBatch:
        """Repeat the last row, so that processes with fewer samples run the model on as many rows as the others."""
        rows = [*range(len(self.ids_BL)), *repeat(len(self.ids_BL) - 1, times)]
        longer: dict[str, Any] = {name: value[rows] for name, value in vars(self).items() if isinstance(value, Tensor)}
        return replace(self, **longer)

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
