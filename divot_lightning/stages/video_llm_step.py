"""What the stages of the video LLM share: features of a batch, the loss, feature statistics, the frozen tokenizer.

Letters: M clips of the batch, F frames, Q tokens per clip, C feature width, H W pixels.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from divot_lightning.components import find_component, load_component
from divot_lightning.errors import UserError
from divot_lightning.models.pixels import to_unit_range
from divot_lightning.models.tokenizer import VideoTokenizer
from divot_lightning.models.video_llm import VideoLLM, VideoLLMOutput

FROZEN_PREFIX = "tokenizer."
"""Keys of the frozen tokenizer in a stage's state; checkpoints leave them out, since its run has them."""


def load_frozen_tokenizer(run: str) -> tuple[VideoTokenizer, Path]:
    """Loads the tokenizer that a run trained or used.

    Args:
        run: Run folder, or the component folder itself.

    Returns:
        The tokenizer, frozen and in eval mode, and its folder.
    """
    folder = find_component(run, "tokenizer")
    tokenizer = load_component(folder, VideoTokenizer)
    return tokenizer.requires_grad_(False).eval(), folder


def find_drawing_part(run: str, tokenizer_folder: Path) -> dict[str, Path]:
    """Finds the de-tokenizer of a run, which these stages hand on without using it.

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


def check_widths(tokenizer: VideoTokenizer, video_llm: VideoLLM) -> None:
    """Refuses a tokenizer whose features the video LLM does not take.

    Args:
        tokenizer: The frozen tokenizer.
        video_llm: The video LLM.
    """
    gives = (tokenizer.config.tokens_per_clip, tokenizer.config.token_dim)
    takes = (video_llm.settings.num_queries, video_llm.settings.feature_dim)
    if gives != takes:
        raise UserError(
            f"The tokenizer gives {gives[0]} tokens of width {gives[1]}, but the video LLM has "
            f"num_queries={takes[0]} and feature_dim={takes[1]}.\n"
            "Set both to the tokenizer's, or give another tokenizer run as previous."
        )


@torch.no_grad()
def clip_features(batch: dict[str, Any], tokenizer: VideoTokenizer) -> Tensor | None:
    """Gives the features of all clips of a batch: the cached ones, or those of the frozen tokenizer.

    Args:
        batch: With "features", float (M, Q, C), or "video", uint8 (M, F, 3, H, W), or neither if it has no clips.
        tokenizer: The frozen tokenizer.

    Returns:
        features_MQC, float, or None.
    """
    if "features" in batch:
        return batch["features"]
    if "video" in batch:
        return tokenizer(to_unit_range(tokenizer.select_frames(batch["video"])))
    return None


def video_llm_step(
    video_llm: VideoLLM,
    batch: dict[str, Any],
    features_MQC: Tensor | None,
    *,
    text_loss_weight: float,
    head_loss_weight: float,
) -> tuple[Tensor, VideoLLMOutput]:
    """Computes the weighted loss of a batch.

    Args:
        video_llm: The model.
        batch: With "segments".
        features_MQC: From ``clip_features``.
        text_loss_weight: Weight of the next-word loss.
        head_loss_weight: Weight of the generation head's loss.

    Returns:
        The loss, scalar float32, and its parts.
    """
    output = video_llm(batch["segments"], features_MQC)
    return text_loss_weight * output.text_loss + head_loss_weight * output.head_loss, output


def loss_record(split: str, loss: Tensor, output: VideoLLMOutput, num_samples: int) -> dict[str, tuple[Tensor, int]]:
    """Names what a step logs.

    Args:
        split: "train" or "validation".
        loss: The weighted loss.
        output: Its parts.
        num_samples: Samples of the batch.

    Returns:
        Detached scalars by name, each with the number of things it is the mean over; 0 where a batch has none, so that
        its value must not count.
    """
    return {
        f"{split}/loss": (loss.detach(), num_samples),
        f"{split}/text_loss": (output.text_loss.detach(), output.num_text_targets),
        f"{split}/head_loss": (output.head_loss.detach(), output.num_generated_clips),
    }


@torch.no_grad()
def feature_statistics(
    batches: Iterable[dict[str, Any]], num_batches: int, tokenizer: VideoTokenizer, video_llm: VideoLLM
) -> Tensor:
    """Sums what mean and standard deviation of the features need; sums of several processes may be added.

    Args:
        batches: Training batches, on any device.
        num_batches: How many of them to look at.
        tokenizer: The frozen tokenizer.
        video_llm: Gives device and feature width.

    Returns:
        (3, C) float64: count, sum and sum of squares per channel.
    """
    device = video_llm.feature_mean_C.device
    sums = torch.zeros(3, video_llm.settings.feature_dim, dtype=torch.float64, device=device)
    for batch in islice(batches, num_batches):
        tensors = {name: value.to(device) for name, value in batch.items() if isinstance(value, Tensor)}
        features = clip_features(tensors, tokenizer)
        if features is not None:
            flat = features.flatten(0, 1).double()
            sums += torch.stack([torch.full_like(flat[0], len(flat)), flat.sum(dim=0), flat.square().sum(dim=0)])
    return sums


def apply_feature_statistics(video_llm: VideoLLM, sums: Tensor) -> None:
    """Sets the model's feature normalisation.

    Args:
        video_llm: The model.
        sums: From ``feature_statistics``.
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


def drop_frozen(checkpoint: dict[str, Any]) -> None:
    """Removes the frozen tokenizer from a checkpoint; its run folder has it.

    Args:
        checkpoint: Lightning's checkpoint, changed in place.
    """
    state = checkpoint["state_dict"]
    checkpoint["state_dict"] = {key: value for key, value in state.items() if not key.startswith(FROZEN_PREFIX)}


def add_frozen(checkpoint: dict[str, Any], tokenizer: nn.Module) -> None:
    """Puts the frozen tokenizer back, so that loading stays strict about everything else.

    Args:
        checkpoint: Lightning's checkpoint, changed in place.
        tokenizer: The tokenizer that the run folder gave.
    """
    frozen = {f"{FROZEN_PREFIX}{key}": value for key, value in tokenizer.state_dict().items()}
    checkpoint["state_dict"] = {**checkpoint["state_dict"], **frozen}
