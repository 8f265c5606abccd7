"""Generate the features of clips with a trained video LLM.

Letters: B samples, L prompt length, M clips, G generated clips, N candidates, Q tokens per clip, D LLM width, C feature
width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from divot_lightning.errors import UserError
from divot_lightning.models.randomness import Randomness, move_generators
from divot_lightning.models.tokenizer.bottleneck import to_sphere
from divot_lightning.models.video_llm.cached_sequence import CachedSequence
from divot_lightning.parts.segments import Clips, Segment
from divot_lightning.parts.sequences.rows import SequenceBatch
from divot_lightning.parts.sequences.tokens import TokenKind

if TYPE_CHECKING:
    from divot_lightning.models.video_llm.model import VideoLLM


@torch.no_grad()
def generate_features(
    video_llm: VideoLLM,
    segments: list[list[Segment]],
    features_MQC: Tensor | None = None,
    *,
    temperature: float = 1.0,
    generator: Randomness = None,
) -> Tensor:
    """Generate the clips that samples end with, without gradient; call it in eval mode.

    The query modes take one forward pass per clip, the autoregressive mode Q steps.

    Args:
        video_llm: The model; this is its method ``generate_features``.
        segments: B samples, or none, each ending with ``Clips(role="generate")``. If that is several clips, each is
            generated given the earlier ones.
        features_MQC: Features of all clips before those to generate, in order of appearance, unnormalised; None if
            there are none.
        temperature: Spread of the head's samples.
        generator: Random generator on the model's device; None is the global one. A list has one per sample, so that
            the result of a sample does not depend on its batch.

    Returns:
        features_GQC of the generated clips in order of appearance, unnormalised, float32.
    """
    targets = [clips_to_generate(sample) for sample in segments]
    given = [sum(segment.count for segment in sample[:-1] if isinstance(segment, Clips)) for sample in segments]
    normal_MQC = video_llm.normalise(features_MQC, sum(given))
    known = [list(part) for part in normal_MQC.split(given)]
    generators = move_generators(generator, normal_MQC.device)
    for index in range(max((clips.count for clips in targets), default=0)):
        active = [row for row, clips in enumerate(targets) if clips.count > index]
        prompts = [[*segments[row][:-1], replace(targets[row], count=index + 1)] for row in active]
        chosen = [generators[row] for row in active] if isinstance(generators, list) else generators
        batch = video_llm.sequences(prompts, prompt=True)
        new_BQC = _generate_clip(video_llm, batch, [known[row] for row in active], temperature, [chosen])[0]
        for row, clip_QC in zip(active, new_BQC, strict=True):
            known[row].append(clip_QC)
    new_clips = [clip for row, clips in enumerate(known) for clip in clips[given[row] :]]
    generated = torch.stack(new_clips) if new_clips else normal_MQC.new_zeros(0, *normal_MQC.shape[1:])
    return generated * video_llm.feature_std_C + video_llm.feature_mean_C


@torch.no_grad()
def generate_prompted_clips(
    video_llm: VideoLLM, batch: SequenceBatch, generators: Sequence[Randomness], *, temperature: float = 1.0
) -> Tensor:
    """Generate N candidates for the clip that each prompt ends with, and before which is none; call it in eval mode.

    In the query modes the candidates share one forward pass of the language model.

    Args:
        video_llm: The model.
        batch: B prompts, as a `SequenceCollator` of prompts lays them out.
        generators: For each candidate the ``generator`` of `generate_features`.
        temperature: Spread of the head's samples.

    Returns:
        features_NBQC, unnormalised, float32; each candidate is what its generator alone gives, bit for bit.
    """
    moved = [move_generators(each, video_llm.feature_mean_C.device) for each in generators]
    generated_NBQC = _generate_clip(video_llm, batch, [[] for _ in batch.ids_BL], temperature, moved)
    return generated_NBQC * video_llm.feature_std_C + video_llm.feature_mean_C


def clips_to_generate(sample: list[Segment]) -> Clips:
    """Return the clips that a sample ends with.

    Raises:
        UserError: It ends with something else.
    """
    if not sample or not isinstance(sample[-1], Clips) or sample[-1].role != "generate":
        raise UserError(f"The sample ends with {sample[-1:]}; to generate, it must end with Clips(role='generate').")
    return sample[-1]


def _generate_clip(
    video_llm: VideoLLM,
    batch: SequenceBatch,
    known: list[list[Tensor]],
    temperature: float,
    generators: Sequence[Randomness],
) -> Tensor:
    """Generate the last clip of each prompt, given normalised features of its earlier ones; return features_NBQC."""
    num_queries, dim = video_llm.num_queries, video_llm.feature_dim
    # The features have a row for the clip to generate, but no position reads it.
    empty_QC = video_llm.feature_mean_C.new_zeros(num_queries, dim)
    features_MQC = torch.stack([clip for clips in known for clip in [*clips, empty_QC]])
    if video_llm.config.generation_mode == "autoregressive":
        return torch.stack(
            [
                autoregress(video_llm, CachedSequence(video_llm, batch, features_MQC), temperature, one)
                for one in generators
            ]
        )
    hidden_BLD = video_llm.hidden_states(batch, video_llm.embed(batch, features_MQC))
    ends_B = (batch.token_kind_BL != TokenKind.PAD).sum(dim=1)
    columns_BQ = ends_B[:, None] - num_queries + torch.arange(num_queries)
    hidden_BQD = hidden_BLD[torch.arange(len(ends_B))[:, None], columns_BQ]
    return sample_features(video_llm, hidden_BQD, temperature, generators)


def sample_features(
    video_llm: VideoLLM, hidden_BQD: Tensor, temperature: float, generators: Sequence[Randomness]
) -> Tensor:
    """Sample N normalised candidates, features_NBQC; the head sees one sample at a time if each has its generator.

    So a sample's bits do not depend on its batch: a matrix product of other rows may round differently.
    """
    per_sample: list[Sequence[torch.Generator | None]] = [
        each if isinstance(each, list) else [each] for each in generators
    ]
    rows = hidden_BQD.split(1) if isinstance(generators[0], list) else [hidden_BQD]
    sampled = [
        video_llm.head.sample_each(row, candidates, temperature=temperature)
        for row, candidates in zip(rows, zip(*per_sample, strict=True), strict=True)
    ]
    features_NBQC = torch.cat(sampled, dim=1)
    if not video_llm.config.features_on_sphere:
        return features_NBQC
    mean_C, std_C = video_llm.feature_mean_C, video_llm.feature_std_C
    return (to_sphere(features_NBQC * std_C + mean_C) - mean_C) / std_C


def autoregress(video_llm: VideoLLM, sequence: CachedSequence, temperature: float, generator: Randomness) -> Tensor:
    """Generate a clip of each sample token by token: each sampled feature is the input of the next step.

    Args:
        video_llm: The model, of the autoregressive generation mode.
        sequence: Ends with the ``<frame>`` of the clip; afterwards it has all features but the last.
        temperature: Spread of the head's samples.
        generator: See ``generate_features``.

    Returns:
        features_BQC, normalised.
    """
    features = []
    for index in range(video_llm.num_queries):
        hidden_B1D = sequence.last_hidden_BD[:, None]
        features.append(sample_features(video_llm, hidden_B1D, temperature, [generator])[0, :, 0])
        if index + 1 < video_llm.num_queries:
            sequence.append(video_llm.project(features[-1], hidden_B1D.dtype))
    return torch.stack(features, dim=1)
