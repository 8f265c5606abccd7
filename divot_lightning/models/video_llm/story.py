"""Tell a story: the video LLM writes a sentence, opens a clip by itself, generates it, reads it back, and continues.

The instruction and everything after it are read once: keys and values stay in the cache, so a clip costs one pass over
its own positions (Divot section 3.3.2, arXiv:2412.04432).

Letters: B samples, here 1, T positions, Q tokens per clip, D LLM width, C feature width, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, get_args

import torch
from torch import Tensor

from divot_lightning.models.video_llm.cached_sequence import CachedSequence
from divot_lightning.models.video_llm.clip_generation import (
    append_queries,
    autoregress,
    read_back,
    sample_features,
)
from divot_lightning.models.video_llm.sampling import decode_text, sample_tokens
from divot_lightning.parts.segments import Kind, Segment

if TYPE_CHECKING:
    from divot_lightning.models.video_llm.model import VideoLLM


@dataclass(frozen=True)
class StorySampling:
    """How a story is sampled.

    Attributes:
        max_new_tokens: Most tokens of a sentence, at least 1.
        text_temperature: Of the words; 0 takes the most likely one each time.
        top_p: Only the most likely words that together reach this probability can be sampled.
        temperature: Spread of the features that the head samples.
    """

    max_new_tokens: int = 64
    text_temperature: float = 0.0
    top_p: float = 1.0
    temperature: float = 1.0


@dataclass(frozen=True)
class StoryStep:
    """A sentence, and the clip that the model generated after it.

    Attributes:
        text: The sentence.
        kind: Whether the model opened a video or an image; None if it ended the story, or opened no clip within the
            allowed tokens.
        features_QC: Features of the clip, unnormalised, float32, on the CPU; None without a clip.
        is_cut: Whether the sentence reached `max_new_tokens`.
    """

    text: str
    kind: Kind | None = None
    features_QC: Tensor | None = None
    is_cut: bool = False


@torch.no_grad()
def generate_story(
    video_llm: VideoLLM,
    segments: list[Segment],
    *,
    num_clips: int,
    sampling: StorySampling | None = None,
    generator: torch.Generator | None = None,
) -> list[StoryStep]:
    """Continue an instruction with sentences and clips in turn; call it in eval mode.

    Args:
        video_llm: Trained with the task `story`; this is its method ``generate_story``.
        segments: The instruction, without clips.
        num_clips: Most clips, at least 1.
        sampling: How words and features are sampled.
        generator: Random generator on the model's device; None is the global one.

    Returns:
        The steps in order. The last one has no clip if the model ended the story, or wrote too long a sentence, before
        there were ``num_clips`` clips.
    """
    sampling = sampling or StorySampling()
    batch = video_llm.sequences([segments], prompt=True)
    sequence = CachedSequence(video_llm, batch, video_llm.normalise(None, batch.num_clips))
    kinds: dict[int, Kind] = {video_llm.special.opening[kind]: kind for kind in get_args(Kind)}
    steps: list[StoryStep] = []
    while len(steps) < num_clips:
        ids, stop = _write(video_llm, sequence, sampling, generator)
        text = decode_text(video_llm, ids)
        if stop not in kinds:
            if text:
                steps.append(StoryStep(text, is_cut=stop is None))
            break
        sequence.append_tokens(stop, video_llm.special.frame_begin)
        features_1QC = _append_clip(video_llm, sequence, len(steps), sampling.temperature, generator)
        sequence.append_tokens(video_llm.special.frame_end, video_llm.special.closing[kinds[stop]])
        features_QC = (features_1QC[0].float() * video_llm.feature_std_C) + video_llm.feature_mean_C
        steps.append(StoryStep(text, kinds[stop], features_QC.cpu()))
    return steps


def _write(
    video_llm: VideoLLM, sequence: CachedSequence, sampling: StorySampling, generator: torch.Generator | None
) -> tuple[list[int], int | None]:
    """Write words until the model opens a clip or ends; return their ids and the token that it stopped at, if any."""
    special, embedding = video_llm.special, video_llm.causal_lm.get_input_embeddings()
    stops = {special.end, *special.opening.values()}
    refused = [token for token in special.clip_markers if token not in stops]
    ids: list[int] = []
    while True:
        logits_1V = video_llm.logits(sequence.last_hidden_BD)
        logits_1V[:, refused] = -torch.inf
        chosen_1 = sample_tokens(logits_1V, sampling.text_temperature, sampling.top_p, generator)
        token = int(chosen_1)
        if token in stops:
            return ids, token
        if len(ids) == sampling.max_new_tokens:
            return ids, None
        ids.append(token)
        sequence.append(embedding(chosen_1))


def _append_clip(
    video_llm: VideoLLM, sequence: CachedSequence, clip: int, temperature: float, generator: torch.Generator | None
) -> Tensor:
    """Generate a clip after its ``<frame>`` and let the sequence read it."""
    if video_llm.config.generation_mode == "autoregressive":
        features_1QC = autoregress(video_llm, sequence, temperature, generator)
    else:
        hidden_1QD = append_queries(video_llm, sequence, clip)
        features_1QC = sample_features(video_llm, hidden_1QD, temperature, [generator])[0]
    read_back(video_llm, sequence, features_1QC)
    return features_1QC
