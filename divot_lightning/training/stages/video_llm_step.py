"""Functions of the video LLM's stages: features of a batch, the loss, feature statistics.

Letters: M clips of the batch, F frames, Q tokens per clip, C feature width, H W pixels.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from divot_lightning.checkpoint.run_components import find_component
from divot_lightning.distributed.rank_sync import StepState, check_ranks_in_sync
from divot_lightning.errors import UserError
from divot_lightning.models.clip_encoding import encode_clips
from divot_lightning.models.tokenizer.video_tokenizer import VideoTokenizer
from divot_lightning.models.video_llm.model import VideoLLM, VideoLLMOutput
from divot_lightning.models.weights import has_shards
from divot_lightning.parts.batch import Batch, num_real_samples
from divot_lightning.parts.sequences.rows import SequenceBatch
from divot_lightning.training.global_mean import LossPart


def find_detokenizer(run: str, tokenizer_folder: Path) -> dict[str, Path]:
    """Find the de-tokenizer of a run, which these stages export without using it.

    Args:
        run: Run folder, or a component folder.
        tokenizer_folder: The tokenizer's folder.

    Returns:
        Its folder under "detokenizer"; empty if the run has none.
    """
    try:
        folder = find_component(run, "detokenizer")
    except UserError:
        return {}
    return {} if folder == tokenizer_folder else {"detokenizer": folder}


def sequences_of(batch: Mapping[str, Any]) -> SequenceBatch:
    """Return the token sequences of a batch.

    Raises:
        UserError: The batch has none: it comes from a data module that does not lay out samples.
    """
    sequences = batch.get("sequences")
    if not isinstance(sequences, SequenceBatch):
        raise UserError(
            f"the batch has no 'sequences', only {', '.join(batch)}\n"
            "A data module of your own adds them: batch['sequences'] = stage.sequence_collator().lay_out(segments)"
        )
    return sequences


@torch.no_grad()
def clip_features(batch: Mapping[str, Any], tokenizer: VideoTokenizer, at_least: int = 0) -> Tensor | None:
    """Return the features of all clips of a batch: the cached ones, or those of the frozen tokenizer.

    Args:
        batch: With "features", float (M, Q, C), or "video", uint8 (M, F, 3, H, W), or neither if it has no clips.
        tokenizer: The frozen tokenizer.
        at_least: Number of clips to encode; black clips are added up to it, and their features are dropped.

    Returns:
        features_MQC, float, or None; the same bits for the same clips, cached or not (see ``encode_clips``).
    """
    video = batch.get("video")
    num_clips = 0 if video is None else len(video)
    if num_clips < at_least:
        size = tokenizer.config.image_size
        shape = (tokenizer.config.num_frames, 3, size, size) if video is None else tuple(video.shape[1:])
        device = next(tokenizer.parameters()).device
        black = torch.zeros(at_least - num_clips, *shape, dtype=torch.uint8, device=device)
        video = black if video is None else torch.cat([video, black])
    if video is None:
        return batch.get("features")
    encoded = encode_clips(tokenizer, video)[:num_clips]
    return encoded if num_clips else batch.get("features")


def loss_parts(
    output: VideoLLMOutput, batch: Mapping[str, Any], *, text_loss_weight: float, head_loss_weight: float
) -> dict[str, LossPart]:
    """Return the losses of a batch with their counts.

    Args:
        output: Output of the model.
        batch: The batch; with a dummy batch all counts are 0.
        text_loss_weight: Weight of the next-word loss.
        head_loss_weight: Weight of the generation head's loss.

    Returns:
        Losses by name.
    """
    counts = int(num_real_samples(batch) > 0)
    return {
        "text_loss": LossPart(output.text_loss, counts * output.num_text_targets, text_loss_weight),
        "head_loss": LossPart(output.head_loss, counts * output.num_generated_clips, head_loss_weight),
    }


def most_clips(batch: Mapping[str, Any], index: int) -> int:
    """Return the largest number of clips that any process encodes for the feature statistics."""
    clips = len(batch["video"]) if "video" in batch else 0
    return check_ranks_in_sync(
        StepState("feature statistics", 0, index, -1, list(batch.get("key", [])), clips, 0)
    ).most_clips


@torch.no_grad()
def feature_statistics(
    batches: Iterable[Batch], num_batches: int, tokenizer: VideoTokenizer, video_llm: VideoLLM
) -> Tensor:
    """Sum the features and their squares for mean and standard deviation; sums of processes may be added.

    Args:
        batches: Training batches, on any device.
        num_batches: How many of them to look at.
        tokenizer: The frozen tokenizer.
        video_llm: Has the device and the feature width.

    Returns:
        (3, C) float64: count, sum and sum of squares per channel.
    """
    device = video_llm.feature_mean_C.device
    sums = torch.zeros(3, video_llm.feature_dim, dtype=torch.float64, device=device)
    for index, batch in enumerate(islice(batches, num_batches)):
        tensors = {name: value.to(device) for name, value in batch.items() if isinstance(value, Tensor)}
        features = clip_features(tensors, tokenizer, most_clips(batch, index) if has_shards(tokenizer) else 0)
        if features is not None and batch.get("counted", 1):
            flat = features.flatten(0, 1).double()
            sums += torch.stack([torch.full_like(flat[0], len(flat)), flat.sum(dim=0), flat.square().sum(dim=0)])
    return sums


def apply_feature_statistics(video_llm: VideoLLM, sums: Tensor) -> None:
    """Set the model's feature normalisation.

    Args:
        video_llm: The model.
        sums: From ``feature_statistics``.

    Raises:
        UserError: There are too few features.
    """
    count, total, squares = sums
    if not (count > 1).all():
        raise UserError(
            f"The first training batches hold {int(count.max())} features; statistics need clips.\n"
            "Raise statistics_batches, or set it to 0 to leave features as they are."
        )
    mean_C = total / count
    variance_C = (squares / count - mean_C.square()).clamp(min=0.0)
    video_llm.set_feature_statistics(mean_C.float(), variance_C.sqrt().float())
