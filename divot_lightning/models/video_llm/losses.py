"""The two losses of the video LLM: of the next word, and of the features of clips to generate.

Both find their hidden states by the layout of the rows, so it does not matter which samples share a row. If a batch has
no targets, a loss is 0 with a gradient of 0, and still calls the same modules: so all ranks run the same collectives,
whatever their samples are. Positions are copied to the device without waiting for what it still computes.

Letters: B rows, L row length, M clips of the batch, Q tokens per clip, D LLM width, C feature width, G clips of the
batch that are generated, T targets of the next-word loss, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from divot_lightning.parts.heads import GenerationHead
from divot_lightning.parts.sequences.layout import GenerationMode
from divot_lightning.parts.sequences.rows import SequenceBatch
from divot_lightning.parts.sequences.tokens import TokenKind

TILE_VOCABULARY = 32_768
"""Logits of one target that are in memory at a time, on average. Mistral-7B, the paper's model, has 32,000 words and is
computed in one tile; a vocabulary of 150,000 takes the same memory in five."""


@dataclass
class VideoLLMOutput:
    """Losses of a batch.

    Attributes:
        text_loss: Mean next-word cross entropy over all targets, scalar float32; 0 without targets.
        head_loss: Loss of the generation head, scalar float32; 0 without clips to generate.
        num_text_targets: Targets of the next-word loss.
        num_generated_clips: Clips that the head was trained on.
    """

    text_loss: Tensor
    head_loss: Tensor
    num_text_targets: int
    num_generated_clips: int


def next_word_loss(
    output_layer: Callable[[Tensor], Tensor], batch: SequenceBatch, hidden_BLD: Tensor, num_tiles: int = 1
) -> tuple[Tensor, int]:
    """Return the mean cross entropy of the target tokens, each predicted at the position before it.

    Args:
        output_layer: Maps hidden states (T, D) to logits (T, V), float32.
        batch: The sequences.
        hidden_BLD: Last hidden states.
        num_tiles: The output layer runs on so many parts of the targets, one after the other, and again in the backward
            pass: only one part's logits are in memory. All ranks need the same number, since ZeRO-3 gathers the
            layer's weights each time it runs.

    Returns:
        The mean over the targets, scalar float32, and their number.
    """
    target_T = batch.text_targets()
    flat = hidden_BLD.flatten(0, 1)
    if len(target_T) == 0:
        return 0.0 * _sum_over_tiles(_sum_of_logits, num_tiles, output_layer, flat[:1]), 0
    hidden_TD = flat[(target_T - 1).to(flat.device, non_blocking=True)]
    labels_T = batch.labels_BL.flatten()[target_T].to(flat.device, non_blocking=True)
    if num_tiles == 1:
        return functional.cross_entropy(output_layer(hidden_TD), labels_T), len(target_T)
    total = _sum_over_tiles(_sum_of_losses, num_tiles, output_layer, hidden_TD, labels_T)
    return total / len(target_T), len(target_T)


def num_logit_tiles(vocabulary: int) -> int:
    """Return into how many tiles the targets are cut: as many as keep the logits at `TILE_VOCABULARY` a target.

    >>> num_logit_tiles(32_262), num_logit_tiles(151_936)
    (1, 5)
    """
    return math.ceil(vocabulary / TILE_VOCABULARY)


def _sum_over_tiles(
    function: Callable[..., Tensor], num_tiles: int, output_layer: Callable[[Tensor], Tensor], *rows: Tensor
) -> Tensor:
    """Sum a function of the output layer over tiles of rows; its intermediate results are computed twice, not kept."""
    if num_tiles == 1:
        return function(output_layer, *rows)
    tiles = zip(*(row.tensor_split(num_tiles) for row in rows), strict=True)
    return torch.stack([checkpoint(function, output_layer, *tile, use_reentrant=False) for tile in tiles]).sum()


def _sum_of_losses(output_layer: Callable[[Tensor], Tensor], hidden_TD: Tensor, labels_T: Tensor) -> Tensor:
    return functional.cross_entropy(output_layer(hidden_TD), labels_T, reduction="sum")


def _sum_of_logits(output_layer: Callable[[Tensor], Tensor], hidden_TD: Tensor) -> Tensor:
    return output_layer(hidden_TD).sum()


def generation_loss(
    head: GenerationHead,
    batch: SequenceBatch,
    hidden_BLD: Tensor,
    features_MQC: Tensor,
    *,
    generation_mode: GenerationMode,
) -> tuple[Tensor, int]:
    """Return the head's loss on all clips to generate.

    Args:
        head: The generation head.
        batch: The sequences.
        hidden_BLD: Last hidden states.
        features_MQC: Normalised features of all clips, float.
        generation_mode: With "autoregressive" the hidden state one position earlier predicts a feature, and the head
            gets each token as a clip of its own (Q = 1), as when it samples.

    Returns:
        The mean over the clips, scalar float32, and their number.
    """
    flat, num_queries = hidden_BLD.flatten(0, 1), features_MQC.shape[1]
    generated_GQ = batch.where(TokenKind.QUERY, TokenKind.FORCED).view(-1, num_queries)
    if len(generated_GQ) == 0:
        # One token, since only the gradients of 0 count: those of a whole clip cost as much as its training.
        return 0.0 * head(flat[:1].unsqueeze(0), features_MQC.new_zeros(1, 1, features_MQC.shape[2])), 0
    # Clips in the order of the features, so that a head samples the same noise for a clip in any layout of rows.
    clips_G, order_G = batch.clips_BL.flatten()[generated_GQ[:, 0]].sort()
    predicting_GQ = generated_GQ[order_G] - int(generation_mode == "autoregressive")
    hidden_GQD = flat[predicting_GQ.to(flat.device, non_blocking=True)]
    target_GQC = features_MQC[clips_G.to(flat.device, non_blocking=True)]
    return _head_loss(head, hidden_GQD, target_GQC, generation_mode), len(clips_G)


def _head_loss(head: GenerationHead, hidden_GQD: Tensor, target_GQC: Tensor, generation_mode: GenerationMode) -> Tensor:
    """Call the head with the same input as in generation: whole clips, or one token at a time.

    In the autoregressive mode the hidden state that follows a token has seen the token's true feature. A head that
    gets several tokens together would copy it, and could not do so when it samples.
    """
    if generation_mode == "autoregressive":
        hidden_GQD, target_GQC = (states.flatten(0, 1).unsqueeze(1) for states in (hidden_GQD, target_GQC))
    return head(hidden_GQD, target_GQC)
