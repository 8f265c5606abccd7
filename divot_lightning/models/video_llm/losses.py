"""The two losses of the video LLM: of the next word, and of the features of clips to generate.

Both find their hidden states by the layout of the rows, so it does not matter which samples share a row. If a batch has
no targets, a loss is 0 with a gradient of 0, and still calls the same modules: so all ranks run the same collectives,
whatever their samples are.

Letters: B rows, L row length, M clips of the batch, Q tokens per clip, D LLM width, C feature width, G clips of the
batch that are generated, T targets of the next-word loss, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional

from divot_lightning.parts.heads import GenerationHead
from divot_lightning.parts.sequences.layout import GenerationMode
from divot_lightning.parts.sequences.rows import SequenceBatch
from divot_lightning.parts.sequences.tokens import TokenKind


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
    output_layer: Callable[[Tensor], Tensor], batch: SequenceBatch, hidden_BLD: Tensor
) -> tuple[Tensor, int]:
    """Return the mean cross entropy of the target tokens, each predicted at the position before it.

    Args:
        output_layer: Maps hidden states (T, D) to logits (T, V), float32.
        batch: The sequences.
        hidden_BLD: Last hidden states.

    Returns:
        The mean over the targets, scalar float32, and their number.
    """
    target_T = batch.text_targets()
    flat = hidden_BLD.flatten(0, 1)
    if len(target_T) == 0:
        return 0.0 * output_layer(flat[:1]).sum(), 0
    logits_TV = output_layer(flat[(target_T - 1).to(flat.device)])
    return functional.cross_entropy(logits_TV, batch.labels_BL.flatten()[target_T].to(flat.device)), len(target_T)


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
        unused_1QC = features_MQC.new_zeros(1, *features_MQC.shape[1:])
        return 0.0 * _head_loss(head, flat[:1].expand(1, num_queries, -1), unused_1QC, generation_mode), 0
    # Clips in the order of the features, so that a head samples the same noise for a clip in any layout of rows.
    clips_G, order_G = batch.clips_BL.flatten()[generated_GQ[:, 0]].sort()
    predicting_GQ = generated_GQ[order_G] - int(generation_mode == "autoregressive")
    hidden_GQD, target_GQC = flat[predicting_GQ.to(flat.device)], features_MQC[clips_G.to(flat.device)]
    return _head_loss(head, hidden_GQD, target_GQC, generation_mode), len(clips_G)


def _head_loss(head: GenerationHead, hidden_GQD: Tensor, target_GQC: Tensor, generation_mode: GenerationMode) -> Tensor:
    """Call the head with the same input as in generation: whole clips, or one token at a time.

    In the autoregressive mode the hidden state that follows a token has seen the token's true feature. A head that
    gets several tokens together would copy it, and could not do so when it samples.
    """
    if generation_mode == "autoregressive":
        hidden_GQD, target_GQC = (states.flatten(0, 1).unsqueeze(1) for states in (hidden_GQD, target_GQC))
    loss: Tensor = head(hidden_GQD, target_GQC)
    return loss
