"""The attention mask: which positions attend to which, for samples that may share a row.

A position attends to itself and to every earlier position of its own sample. With the generation mode
``query_bidirectional`` a query also attends to all queries of its clip (Divot section 3.2, arXiv:2412.04432). A *block*
is the queries of one clip: they have the same non-negative block number, and all other positions have -1.

`may_attend` is the rule, for any two positions. It is rendered in one of four forms, see `batch_mask`: as nothing but
the causal flag, as a block mask, as the numbers of samples, or as a dense mask.

Letters: B rows, L query positions, S key positions, D LLM width.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

from divot_lightning.errors import UserError
from divot_lightning.models.block_attention import (
    SDPA_OR_FLEX,
    make_block_mask,
    takes_block_masks,
    takes_sample_numbers,
)
from divot_lightning.parts.sequences.layout import GenerationMode
from divot_lightning.parts.sequences.rows import SequenceBatch
from divot_lightning.parts.sequences.tokens import TokenKind

LayerMask: TypeAlias = Tensor | BlockMask
TransformersMask: TypeAlias = LayerMask | dict[str, LayerMask] | None


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
    """What ``may_attend`` has to know about positions: three integer tensors that broadcast with each other.

    Attributes:
        order: Index in the row.
        sample: Index of the sample that the position belongs to, -1 for padding.
        block: From ``query_blocks``.
    """

    order: Tensor
    sample: Tensor
    block: Tensor


def may_attend(query: TokenPositions, key: TokenPositions, window: int | None = None) -> Tensor:
    """Return whether query positions attend to key positions. This is the only place where the rule is written.

    A padded position attends to itself only, so that every softmax has at least one term.

    Args:
        query: Positions that attend.
        key: Positions that are attended to.
        window: How many positions up to its own a position attends to; None for all. Later queries of its clip are
            always in it.

    Returns:
        Whether they attend, bool, of the shape that both broadcast to.

    >>> order, sample, block = torch.arange(5), torch.tensor([0, 0, 0, 1, -1]), torch.tensor([-1, 7, 7, -1, -1])
    >>> query = TokenPositions(order[:, None], sample[:, None], block[:, None])
    >>> may_attend(query, TokenPositions(order, sample, block)).int().tolist()
    [[1, 0, 0, 0, 0], [1, 1, 1, 0, 0], [1, 1, 1, 0, 0], [0, 0, 0, 1, 0], [0, 0, 0, 0, 1]]
    """
    same_sample = (query.sample == key.sample) & (key.sample >= 0)
    same_block = (query.block == key.block) & (query.block >= 0)
    attends = ((key.order <= query.order) & same_sample) | same_block | (query.order == key.order)
    return attends if window is None else attends & (query.order - key.order < window)


def dense_mask(query_BL: TokenPositions, key_BS: TokenPositions, window: int | None = None) -> Tensor:
    """Return the rule for all pairs.

    Args:
        query_BL: Positions that attend, each tensor (B, L).
        key_BS: Positions that are attended to, each tensor (B, S).
        window: See ``may_attend``.

    Returns:
        mask_BLS, bool: mask[b, q, k] is True where q attends to k.
    """
    query = TokenPositions(*(values_BL[:, :, None] for values_BL in query_BL))
    return may_attend(query, TokenPositions(*(values_BS[:, None, :] for values_BS in key_BS)), window)


def block_mask(query_BL: TokenPositions, key_BS: TokenPositions, window: int | None = None) -> BlockMask:
    """Return the rule as a block mask, which reads the positions while attention is computed; arguments as above."""
    # int32, since every pair of positions in a block that is allowed in part is looked up.
    queries, keys = ([values.int() for values in positions] for positions in (query_BL, key_BS))

    def rule(row: Tensor, query: Tensor, key: Tensor) -> Tensor:
        attending = TokenPositions(*(values[row, query] for values in queries))
        return may_attend(attending, TokenPositions(*(values[row, key] for values in keys)), window)

    (rows, length), num_keys = query_BL.order.shape, key_BS.order.shape[1]
    return make_block_mask(rule, (rows, length, num_keys), query_BL.order.device)


def row_positions(batch: SequenceBatch, generation_mode: GenerationMode) -> TokenPositions:
    """Return the positions of the rows of a batch, each tensor (B, L), on the batch's device."""
    order_L = torch.arange(batch.samples_BL.shape[1], device=batch.samples_BL.device)
    blocks_BL = query_blocks(batch.token_kind_BL, batch.clips_BL, generation_mode)
    return TokenPositions(order_L.expand_as(blocks_BL), batch.samples_BL, blocks_BL)


def batch_mask(
    config: Any, batch: SequenceBatch, generation_mode: GenerationMode, embeds_BLD: Tensor
) -> TransformersMask:
    """Return the mask of a batch in the fastest form that the language model takes.

    Rows with one sample each, without queries that attend to later ones, need no mask: padding is on the right, so
    causal attention, which is fastest, never attends to it. Other rows need a block mask where model and device take
    one. On a CPU, the numbers of the samples suffice without such queries, and without a window. All else needs a dense
    mask.

    Args:
        config: The model's transformers configuration.
        batch: The sequences.
        generation_mode: Of the video LLM.
        embeds_BLD: Input embeddings; dtype and device of the mask are theirs.

    Returns:
        See ``transformers_mask``; the numbers of the samples, int64 (B, 1, 1, L); None for causal attention.
    """
    positions = row_positions(batch, generation_mode)
    causal = not (positions.block >= 0).any()
    if causal and not batch.packed:
        return None
    device = embeds_BLD.device
    as_blocks = takes_block_masks(config, device)
    if causal and not as_blocks and takes_sample_numbers(config, device) and sliding_window(config) is None:
        return positions.sample[:, None, None]
    positions = TokenPositions(*(values_BL.to(device, non_blocking=True) for values_BL in positions))
    return transformers_mask(config, positions, positions, embeds_BLD.dtype, as_blocks=as_blocks)


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
    config: Any, query_BL: TokenPositions, key_BS: TokenPositions, dtype: torch.dtype, *, as_blocks: bool = False
) -> TransformersMask:
    """Return a mask in the form that an unmodified transformers model takes.

    transformers uses a 4D mask as it is, so the model's sliding window has to be part of it. Scaled dot product
    attention takes bool masks (independent of autocast), eager attention adds a float mask. A model with layers of
    different types (``layer_types``) takes a dictionary with one mask per type.

    Args:
        config: The model's transformers configuration.
        query_BL: Positions that attend, on the model's device.
        key_BS: Positions that are attended to.
        dtype: The model's dtype.
        as_blocks: Whether to return block masks, which the model must take; see ``takes_block_masks``.

    Returns:
        A (B, 1, L, S) tensor or block mask, or a dictionary of such by layer type.
    """
    render: Callable[..., LayerMask] = (
        block_mask if as_blocks else partial(_four_dimensional, config._attn_implementation, dtype)
    )
    window = sliding_window(config)
    if window is None or _layer_types(config) <= {"sliding_attention"}:
        return render(query_BL, key_BS, window)
    return {
        "full_attention": render(query_BL, key_BS, None),
        "sliding_attention": render(query_BL, key_BS, window),
    }


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


def _four_dimensional(
    implementation: str, dtype: torch.dtype, query_BL: TokenPositions, key_BS: TokenPositions, window: int | None
) -> Tensor:
    if implementation not in ("sdpa", "eager", SDPA_OR_FLEX):
        raise UserError(
            f"attention={implementation!r} does not take our masks; allowed: 'auto', 'sdpa', 'eager', 'flex'."
        )
    mask_BLS = dense_mask(query_BL, key_BS, window)
    return additive_mask(mask_BLS, dtype) if implementation == "eager" else mask_BLS[:, None]
