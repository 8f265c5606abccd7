"""Generate text with a trained video LLM.

Letters: B samples, M clips, Q tokens per clip, C feature width, V vocabulary, T generated tokens.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from transformers import TemperatureLogitsWarper, TopPLogitsWarper

from divot_lightning.models.video_llm.cached_sequence import CachedSequence
from divot_lightning.parts.segments import Segment
from divot_lightning.parts.sequences.rows import SequenceBatch

if TYPE_CHECKING:
    from divot_lightning.models.video_llm.model import VideoLLM


def sample_tokens(
    logits_BV: Tensor, temperature: float, top_p: float, generator: torch.Generator | None = None
) -> Tensor:
    """Choose the next token of each sequence.

    Args:
        logits_BV: Logits, float.
        temperature: Divides the logits; 0 takes the most likely token.
        top_p: Only the most likely tokens that together reach this probability can be sampled.
        generator: Random generator on the device of the logits.

    Returns:
        ids_B, int64.

    >>> sample_tokens(torch.tensor([[0.0, 3.0, 1.0]]), temperature=0.0, top_p=1.0).tolist()
    [1]
    """
    if temperature == 0:
        return logits_BV.argmax(dim=-1)
    unused = torch.empty(0, dtype=torch.int64)  # the ids before, which these two do not look at
    scores_BV = TopPLogitsWarper(top_p)(unused, TemperatureLogitsWarper(float(temperature))(unused, logits_BV))
    return torch.multinomial(scores_BV.softmax(dim=-1), 1, generator=generator)[:, 0]


@torch.no_grad()
def generate_text(
    video_llm: VideoLLM,
    segments: list[list[Segment]],
    features_MQC: Tensor | None,
    *,
    max_new_tokens: int = 256,
    temperature: float = 0.0,
    top_p: float = 1.0,
    generator: torch.Generator | None = None,
    same_clips: bool = False,
) -> list[str]:
    """Continue prompts with text, without gradient; call it in eval mode.

    Args:
        video_llm: The model; this is its method ``generate_text``.
        segments: B prompts, or none.
        features_MQC: Features of all their clips, unnormalised, float; None without clips.
        max_new_tokens: Most tokens per answer.
        temperature: 0 takes the most likely token each time. The released code samples with 0.7 and top_p 0.5.
        top_p: Only the most likely tokens that together reach this probability can be sampled.
        generator: Random generator on the model's device; None is the global one.
        same_clips: Whether all prompts are about the same clips. Then ``features_MQC`` has them once, and what is alike
            at the beginning of the prompts is computed once.

    Returns:
        B texts without special tokens.
    """
    if not segments:
        return []
    batch = video_llm.sequences(segments, prompt=True)
    sequence = _read(video_llm, batch, features_MQC, same_clips=same_clips)
    embedding, special = video_llm.causal_lm.get_input_embeddings(), video_llm.special
    running_B = torch.full_like(sequence.lengths_B, True, dtype=torch.bool)
    chosen: list[Tensor] = []
    while len(chosen) < max_new_tokens:
        if chosen:
            sequence.append(embedding(chosen[-1]))
        logits_BV = video_llm.logits(sequence.last_hidden_BD)
        logits_BV[:, special.clip_markers] = -torch.inf
        ids_B = torch.where(running_B, sample_tokens(logits_BV, temperature, top_p, generator), special.end)
        running_B = running_B & (ids_B != special.end)
        if not running_B.any():
            break
        chosen.append(ids_B)
    ids_BT = torch.stack(chosen, dim=1).tolist() if chosen else [[] for _ in segments]
    return [decode_text(video_llm, ids) for ids in ids_BT]


def _read(
    video_llm: VideoLLM, batch: SequenceBatch, features_MQC: Tensor | None, *, same_clips: bool
) -> CachedSequence:
    rows = len(batch.ids_BL)
    if not same_clips:
        return CachedSequence(video_llm, batch, video_llm.normalise(features_MQC, batch.num_clips))
    normal_NQC = video_llm.normalise(features_MQC, batch.num_clips // rows)
    num_common = batch.num_common
    if (batch.clips_BL[:, num_common:] >= 0).any():  # a prompt has words before its clips that others have not
        return CachedSequence(video_llm, batch, normal_NQC.repeat(rows, 1, 1))
    return CachedSequence(video_llm, batch, normal_NQC, num_common=num_common)


def decode_text(video_llm: VideoLLM, ids: list[int]) -> str:
    """Return the text of generated ids up to the first end token, without special tokens."""
    end = video_llm.special.end
    ids = ids[: ids.index(end)] if end in ids else ids
    return video_llm.text_tokenizer.decode(ids, skip_special_tokens=True).strip()
