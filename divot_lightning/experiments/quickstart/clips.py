"""Read the clips that the quickstart measures.

Shape letters: N clips, F frames, H height, W width, Q tokens per clip, C token width.
"""

from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from divot_datamodules.decoding.clip_sampling import ClipConfig
from divot_datamodules.decoding.samples import Sample, SampleDecoder
from divot_datamodules.shards.sources import read_all
from divot_lightning.errors import UserError


@dataclass(frozen=True)
class Clips:
    """Samples of one clip each.

    Attributes:
        keys: Their keys.
        texts: The content of their json files.
        media: uint8 video (N, F, 3, H, W) or float32 features (N, Q, C).
    """

    keys: list[str]
    texts: list[dict[str, Any]]
    media: Tensor


def load_clips(shards: str | Path, size: int = 32, limit: int | None = None) -> Clips:
    """Read samples in the order of the shards.

    Args:
        shards: Folder of videos or of features.
        size: Height and width of videos, in pixels.
        limit: Largest number of samples; None for all.

    Raises:
        UserError: A sample does not have exactly one clip.
    """
    decode = SampleDecoder(ClipConfig(height=size, width=size))
    samples = [decode(raw, None) for raw in islice(read_all(shards), limit)]
    return Clips([s.key for s in samples], [s.text for s in samples], torch.stack([_one_clip(s) for s in samples]))


def _one_clip(sample: Sample) -> Tensor:
    media = sample.video if sample.video is not None else sample.features
    if media is None or len(media) != 1:
        raise UserError(f"sample {sample.key!r} has {sample.num_clips} clips; the quickstart measures single clips")
    return media[0]
