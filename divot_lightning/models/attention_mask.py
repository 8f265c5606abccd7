"""Who attends to whom: causal text, and queries of one clip that see each other.

A position attends to itself, to every valid position before it, and, with the mechanism ``query_bidirectional``, to all
queries of its own clip (Divot section 3.2, arXiv:2412.04432). All functions take *block* numbers: equal non-negative
numbers mark the queries of one clip, -1 everything else.

Letters: B samples, L query positions, S key positions.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from torch import Tensor

from divot_lightning.errors import UserError
from divot_lightning.models.sequences import Mechanism, Position

TransformersMask: TypeAlias = Tensor | dict[str, Tensor] | None


def query_blocks(roles_BL: Tensor, clips_BL: Tensor, mechanism: Mechanism) -> Tensor:
    """Gives the blocks of positions that see each other.

    Args:
        roles_BL: ``Position`` values, int64.
        clips_BL: Clip of each slot, int64.
        mechanism: Only ``query_bidirectional`` has such blocks.

    Returns:
        blocks_BL, int64: the clip at its queries, -1 elsewhere.
    """
    if mechanism != "query_bidirectional":
        return torch.full_like(clips_BL, -1)
    return torch.where(roles_BL == Position.QUERY, clips_BL, -1)


def attention_rule(
    query_position: Tensor, key_position: Tensor, query_block: Tensor, key_block: Tensor, key_valid: Tensor
) -> Tensor:
    """States the rule for pairs of positions, by broadcasting.

    A position sees itself even if it is padding, so that no softmax is over nothing.

    Args:
        query_position: Position of the one that looks, int64.
        key_position: Position of the one looked at, int64.
        query_block: Block of the one that looks, int64.
        key_block: Block of the one looked at, int64.
        key_valid: Whether the one looked at is no padding, bool.

    Returns:
        Whether it is seen, bool.

    >>> position, block = torch.arange(4), torch.tensor([-1, 0, 0, -1])
    >>> valid = torch.tensor([True, True, True, False])
    >>> attention_rule(position[:, None], position, block[:, None], block, valid).int().tolist()
    [[1, 0, 0, 0], [1, 1, 1, 0], [1, 1, 1, 0], [1, 1, 1, 1]]
    """
    same_block = (query_block == key_block) & (query_block >= 0)
    visible = (key_position <= query_position) | same_block
    return (visible & key_valid) | (query_position == key_position)


def mixed_attention_mask(roles_BL: Tensor, clips_BL: Tensor, mechanism: Mechanism) -> Tensor:
    """Gives the full mask of padded sequences.

    Args:
        roles_BL: ``Position`` values, int64; PAD is never seen by others.
        clips_BL: Clip of each slot, int64, -1 elsewhere.
        mechanism: How clips are generated.

    Returns:
        mask_BLL, bool: mask[b, q, k] says whether q attends to k.
    """
    position_L = torch.arange(roles_BL.shape[1], device=roles_BL.device)
    blocks_BL = query_blocks(roles_BL, clips_BL, mechanism)
    return attention_rule(
        position_L[None, :, None],
        position_L[None, None, :],
        blocks_BL[:, :, None],
        blocks_BL[:, None, :],
        (roles_BL != Position.PAD)[:, None, :],
    )


def flex_mask_mod(blocks_BL: Tensor, valid_BL: Tensor) -> Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]:
    """Gives the same rule as a ``mask_mod`` for ``torch.nn.attention.flex_attention.create_block_mask``.

    Args:
        blocks_BL: From ``query_blocks``.
        valid_BL: True where not padded, bool.

    Returns:
        The function of (batch, head, query, key) indices.
    """

    def mask_mod(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return attention_rule(query, key, blocks_BL[batch, query], blocks_BL[batch, key], valid_BL[batch, key])

    return mask_mod


def additive_mask(mask_BLS: Tensor, dtype: torch.dtype) -> Tensor:
    """Turns a bool mask into summands for attention scores.

    Args:
        mask_BLS: True where attended, bool.
        dtype: The model's dtype.

    Returns:
        (B, 1, L, S) in dtype: 0 where attended, else the least finite number (minus infinity would give NaN in rows
        without any key).
    """
    zero = torch.zeros((), dtype=dtype, device=mask_BLS.device)
    return torch.where(mask_BLS, zero, torch.finfo(dtype).min)[:, None]


def transformers_mask(
    config: Any, mask_BLS: Tensor, query_positions_BL: Tensor, key_positions_BS: Tensor, dtype: torch.dtype
) -> TransformersMask:
    """Puts a mask into the form in which an unmodified transformers model honours it.

    A 4D mask is used as it stands, so the sliding window of the model has to be in it. Scaled dot product attention
    takes bool masks (independent of autocast), eager attention adds a float mask. Models whose layers differ
    (``layer_types``) take a dictionary with one mask per type.

    Args:
        config: The model's transformers configuration.
        mask_BLS: Who attends to whom, bool.
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
    """Gives how many positions back a model's windowed layers see, None where no layer is windowed.

    Args:
        config: The model's transformers configuration.

    Returns:
        The window, the position itself counted.
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
            "Queries that see each other need full_attention or sliding_attention; choose another model."
        )
    return types


def _mask_form(config: Any, dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
    implementation = config._attn_implementation
    if implementation == "sdpa":
        return lambda mask_BLS: mask_BLS[:, None]
    if implementation == "eager":
        return lambda mask_BLS: additive_mask(mask_BLS, dtype)
    raise UserError(
        f"attention={implementation!r} takes no mask of queries that see each other; allowed: 'sdpa', 'eager'."
    )
