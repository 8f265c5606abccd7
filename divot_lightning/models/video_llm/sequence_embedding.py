"""Input embeddings of token sequences: words, projected features, learnable queries.

Letters: B rows, L row length, M clips of the batch, Q tokens per clip, D LLM width, C feature width, S positions of one
kind.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from divot_lightning.parts.sequences.rows import SequenceBatch
from divot_lightning.parts.sequences.tokens import TokenKind


def embed_sequences(
    batch: SequenceBatch,
    features_MQC: Tensor,
    *,
    words: nn.Module,
    queries: nn.Module,
    project: Callable[[Tensor, torch.dtype], Tensor],
) -> Tensor:
    """Embed sequences.

    Args:
        batch: The sequences.
        features_MQC: Normalised features, float.
        words: The embedding of token ids.
        queries: The embedding of query numbers.
        project: Turns features_SC into embeddings of a dtype.

    Returns:
        embeds_BLD in the dtype of the word embeddings.
    """
    device = features_MQC.device
    to = partial(Tensor.to, device=device, non_blocking=True)
    embeds_BLD: Tensor = words(to(batch.ids_BL))
    flat = embeds_BLD.flatten(0, 1)
    # Each module gets one more row than it needs, so that it runs on every rank and has a gradient (of 0) there.
    read_S = batch.where(TokenKind.READ, TokenKind.FORCED)
    rows_S = (batch.clips_BL.flatten() * features_MQC.shape[1] + batch.feature_index_BL.flatten())[read_S]
    unread = features_MQC.new_zeros(1, features_MQC.shape[-1])
    features_SC = torch.cat([features_MQC.flatten(0, 1)[to(rows_S)], unread])
    projected_SD = project(features_SC, flat.dtype)
    flat = flat.index_copy(0, to(read_S), projected_SD[:-1])
    query_S = batch.where(TokenKind.QUERY)
    query_index_S = to(batch.feature_index_BL.flatten()[query_S])
    queries_SD = queries(torch.cat([query_index_S, query_index_S.new_zeros(1)])).to(flat.dtype)
    flat = flat.index_copy(0, to(query_S), queries_SD[:-1])
    unused = projected_SD[-1].sum() + queries_SD[-1].sum()
    return (flat + 0.0 * unused).unflatten(0, embeds_BLD.shape[:2])
