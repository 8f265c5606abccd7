"""The attention mask: which positions attend to which, for samples that may share a row.

A position attends to itself and to every earlier position of its own sample. With the generation mode
``query_bidirectional`` a query also attends to all queries of its clip (Divot section 3.2, arXiv:2412.04432). A *block*
is the queries of one clip: they have the same non-negative block number, and all other positions have -1.

Letters: B rows, L query positions, S key positions, D LLM width.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor

from divot_lightning.errors import UserError
from divot_lightning.parts.sequences.layout import GenerationMode
from divot_lightning.parts.sequences.rows import SequenceBatch
from divot_lightning.parts.sequences.tokens import TokenKind

TransformersMask: TypeAlias = Tensor | dict[str, Tensor] | None


def query_blocks(token_kind_BL: Tensor, clips_BL: Tensor, generation_mode: GenerationMode) -> Tensor:
    """Return the block number of each position.

    Args:
        token_kind_BL: ``TokenKind`` values, int64.
        clips_BL: Index of the clip at each of its feature positions, int64.
        generation_mode: Only ``query_bidirectional`` has blocks.

    Returns:
        blocks_BL, int64: the index of the clip at its queries, -1 elsewhere.
    """
    if generation_mode != "query_bidirectional":
        return torch.full_like(clips_BL, -1)
    return torch.where(token_kind_BL == TokenKind.QUERY, clips_BL, -1)


class TokenPositions(NamedTuple):
    """What ``may_attend`` has to know about positions: three int64 tensors that broadcast with each other.

    Attributes:
        order: Index in the row.
        sample: Index of the sample that the position belongs to, -1 for padding.
        block: From ``query_blocks``.
    """

    order: Tensor
    sample: Tensor
    block: Tensor


def may_attend(query: TokenPositions, key: TokenPositions) -> Tensor:
    """Return whether query positions attend to key positions. This is the only place where the rule is written.

    A padded position attends to itself only, so that every softmax has at least one term.

    Args:
        query: Positions that attend.
        key: Positions that are attended to.

    Returns:
        Whether they attend, bool, of the shape that both broadcast to.

    >>> order, sample, block = torch.arange(5), torch.tensor([0, 0, 0, 1, -1]), torch.tensor([-1, 7, 7, -1, -1])
    >>> query = TokenPositions(order[:, None], sample[:, None], block[:, None])
    >>> may_attend(query, TokenPositions(order, sample, block)).int().tolist()
    [[1, 0, 0, 0, 0], [1, 1, 1, 0, 0], [1, 1, 1, 0, 0], [0, 0, 0, 1, 0], [0, 0, 0, 0, 1]]
    """
    same_sample = (query.sample == key.sample) & (key.sample >= 0)
    same_block = (query.block == key.block) & (query.block >= 0)
    return ((key.order <= query.order) & same_sample) | same_block | (query.order == key.order)


def mixed_attention_mask(samples_BL: Tensor, blocks_BL: Tensor) -> Tensor:
    """Return the full mask of rows.

    Args:
        samples_BL: Index of the sample at each position, int64; -1 where padded.
        blocks_BL: From ``query_blocks``.

    Returns:
        mask_BLL, bool: mask[b, q, k] is True where q attends to k.
    """
    order_L = torch.arange(samples_BL.shape[1], device=samples_BL.device)
    return may_attend(
        TokenPositions(order_L[None, :, None], samples_BL[:, :, None], blocks_BL[:, :, None]),
        TokenPositions(order_L[None, None, :], samples_BL[:, None, :], blocks_BL[:, None, :]),
    )


def batch_mask(
    config: Any, batch: SequenceBatch, generation_mode: GenerationMode, embeds_BLD: Tensor
) -> TransformersMask:
    """Return the mask of a batch in the form that a language model takes.

    Rows with one sample each, without queries that attend to later ones, need no mask: padding is on the right, so
    causal attention, which is faster, never attends to it.

    Args:
        config: The model's transformers configuration.
        batch: The sequences.
        generation_mode: Of the video LLM.
        embeds_BLD: Input embeddings; dtype and device of the mask are theirs.

    Returns:
        See ``transformers_mask``; None for causal attention.
    """
    blocks_BL = query_blocks(batch.token_kind_BL, batch.clips_BL, generation_mode)
    if not batch.packed and not (blocks_BL >= 0).any():
        return None
    device = embeds_BLD.device
    mask_BLL = mixed_attention_mask(batch.samples_BL.to(device), blocks_BL.to(device))
    order_L = torch.arange(mask_BLL.shape[1], device=device)[None]
    return transformers_mask(config, mask_BLL, order_L, order_L, embeds_BLD.dtype)


def additive_mask(mask_BLS: Tensor, dtype: torch.dtype) -> Tensor:
    """Turn a bool mask into a float mask that is added to attention scores.

    Args:
        mask_BLS: True where attended, bool.
        dtype: The model's dtype.

    Returns:
        (B, 1, L, S) in dtype: 0 where attended, else the lowest finite number (minus infinity would give NaN in rows
        without any key).
    """
    zero = torch.zeros((), dtype=dtype, device=mask_BLS.device)
    return torch.where(mask_BLS, zero, torch.finfo(dtype).min)[:, None]


def transformers_mask(
    config: Any, mask_BLS: Tensor, query_positions_BL: Tensor, key_positions_BS: Tensor, dtype: torch.dtype
) -> TransformersMask:
    """Convert a mask to the form that an unmodified transformers model takes.

    transformers uses a 4D mask as it is, so the model's sliding window has to be part of it. Scaled dot product
    attention takes bool masks (independent of autocast), eager attention adds a float mask. A model with layers of
    different types (``layer_types``) takes a dictionary with one mask per type.

    Args:
        config: The model's transformers configuration.
        mask_BLS: True where a position attends to a key, bool.
        query_positions_BL: Positions of the L rows, int64.
        key_positions_BS: Positions of the S columns, int64.
        dtype: The model's dtype.

    Returns:
        A (B, 1, L, S) tensor, or a dictionary of such tensors by layer type.
    """
    form = _mask_form(config, dtype)
    window = sliding_window(config)
    if window is None:
        return form(mask_BLS)
    near_BLS = query_positions_BL[:, :, None] - key_positions_BS[:, None, :] < window
    if _layer_types(config) <= {"sliding_attention"}:
        return form(mask_BLS & near_BLS)
    return {"full_attention": form(mask_BLS), "sliding_attention": form(mask_BLS & near_BLS)}


def sliding_window(config: Any) -> int | None:
    """Return how many positions the windowed layers of a model attend to; None if no layer is windowed.

    Args:
        config: The model's transformers configuration.

    Returns:
        The size of the window, including the position itself.
    """
    window = getattr(config, "sliding_window", None)
    if not getattr(config, "use_sliding_window", True) or _layer_types(config) == {"full_attention"}:
        return None
    return window


def _layer_types(config: Any) -> set[str]:
    types = set(getattr(config, "layer_types", None) or ())
    if types - {"full_attention", "sliding_attention"}:
        raise UserError(
            f"The language model {config.model_type!r} has layers of the types {sorted(types)}.\n"
            "Masks need full_attention or sliding_attention: a layer that carries a state along the row (linear\n"
            "attention, convolution) mixes padding and samples that share a row, in every generation mode."
        )
    return types


def _mask_form(config: Any, dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
    implementation = config._attn_implementation
    if implementation == "sdpa":
        return lambda mask_BLS: mask_BLS[:, None]
    if implementation == "eager":
        return lambda mask_BLS: additive_mask(mask_BLS, dtype)
    raise UserError(
        f"attention={implementation!r} takes no mask of queries that attend to each other; allowed: 'sdpa', 'eager'."
    )
