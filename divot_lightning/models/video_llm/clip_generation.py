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

    The query modes take one forward pass for a sample's first clip, the autoregressive mode Q steps. Later clips cost
    passes over their own positions alone, since keys and values stay in a cache.

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
    known = list(normal_MQC.split(given))
    active = [row for row, clips in enumerate(targets) if clips.count]
    if not active:
        return normal_MQC.new_zeros(0, *normal_MQC.shape[1:])
    generators = move_generators(generator, normal_MQC.device)
    chosen = [generators[row] for row in active] if isinstance(generators, list) else generators
    batch = video_llm.sequences([[*segments[row][:-1], replace(targets[row], count=1)] for row in active], prompt=True)
    features = _with_empty(video_llm, [known[row] for row in active])
    most = max(clips.count for clips in targets)
    if most == 1:
        new_NBQC = _generate_clip(video_llm, batch, features, temperature, [chosen])
    else:
        new_NBQC = _generate_in_turn(video_llm, batch, features, most, temperature, chosen)
    new_clips = [new_NBQC[: targets[row].count, place] for place, row in enumerate(active)]
    return torch.cat(new_clips) * video_llm.feature_std_C + video_llm.feature_mean_C


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
    features_MQC = _with_empty(video_llm, [video_llm.normalise(None, 0)] * len(batch.ids_BL))
    generated_NBQC = _generate_clip(video_llm, batch, features_MQC, temperature, moved)
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
    features_MQC: Tensor,
    temperature: float,
    generators: Sequence[Randomness],
) -> Tensor:
    """Generate the last clip of each prompt, given normalised features of its clips; return features_NBQC."""
    num_queries = video_llm.num_queries
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


def _with_empty(video_llm: VideoLLM, known: Sequence[Tensor]) -> Tensor:
    """Return the normalised features of all prompts, each with a row for the clip to generate, which nothing reads."""
    empty_1QC = video_llm.feature_mean_C.new_zeros(1, video_llm.num_queries, video_llm.feature_dim)
    return torch.cat([clips for known_NQC in known for clips in (known_NQC, empty_1QC)])


def _generate_in_turn(
    video_llm: VideoLLM,
    batch: SequenceBatch,
    features_MQC: Tensor,
    num_clips: int,
    temperature: float,
    generator: Randomness,
) -> Tensor:
    """Generate several clips of each prompt, which ends with the first of them; return features_NBQC."""
    autoregressive = video_llm.config.generation_mode == "autoregressive"
    sequence = CachedSequence(video_llm, batch, features_MQC, num_kept=1 if autoregressive else video_llm.num_queries)
    clips = list[Tensor]()
    for number in range(num_clips):
        if number:
            read_back(video_llm, sequence, clips[-1])
            sequence.append_tokens(video_llm.special.frame_end, video_llm.special.frame_begin)
        if autoregressive:
            clips.append(autoregress(video_llm, sequence, temperature, generator))
            continue
        hidden_BQD = append_queries(video_llm, sequence, batch.num_clips + number) if number else sequence.kept_BKD
        clips.append(sample_features(video_llm, hidden_BQD, temperature, [generator])[0])
    return torch.stack(clips)


def append_queries(video_llm: VideoLLM, sequence: CachedSequence, clip: int) -> Tensor:
    """Append the queries of a clip to every sequence, which ends with its ``<frame>``; not autoregressive.

    Args:
        video_llm: The model.
        sequence: The sequences.
        clip: A number that no earlier clip has.

    Returns:
        hidden_BQD, from which the head samples the clip.
    """
    rows, device = sequence.last_hidden_BD.shape[0], sequence.last_hidden_BD.device
    queries_QD = video_llm.queries(torch.arange(video_llm.num_queries, device=device))
    block = clip if video_llm.config.generation_mode == "query_bidirectional" else -1
    return sequence.extend(queries_QD.to(sequence.last_hidden_BD.dtype).expand(rows, -1, -1), block=block)


def read_back(video_llm: VideoLLM, sequence: CachedSequence, features_BQC: Tensor) -> None:
    """Let every sequence read the clip that it has just generated, as training does (`build_sequence`).

    The query modes have the queries first and then, in a second ``<frame>``, the features. In the autoregressive mode
    the features are the inputs already, all but the last.

    Args:
        video_llm: The model.
        sequence: The sequences; afterwards they end before the clip's ``</frame>``.
        features_BQC: Normalised features of the clip.
    """
    dtype = sequence.last_hidden_BD.dtype
    if video_llm.config.generation_mode == "autoregressive":
        sequence.append(video_llm.project(features_BQC[:, -1], dtype))
        return
    sequence.append_tokens(video_llm.special.frame_end, video_llm.special.frame_begin)
    sequence.extend(video_llm.project(features_BQC, dtype))


def _require_features(video_llm: VideoLLM, features_NBQC: Tensor, sizes_NBQ: tuple[int, ...]) -> None:
    """Refuse samples of another shape, which a head of somebody else may return."""
    expected = (*sizes_NBQ, len(video_llm.feature_mean_C))
    if tuple(features_NBQC.shape) != expected:
        raise UserError(
            f"{type(video_llm.head).__name__} sampled features of the shape {tuple(features_NBQC.shape)}; expected is "
            f"{expected}: samples, clips, tokens, width\nlet `sample` return one vector of feature_dim per hidden state"
        )


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
    _require_features(video_llm, features_NBQC, (len(generators), *hidden_BQD.shape[:2]))
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
