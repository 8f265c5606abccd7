"""Clips through Megatron-Energon, whose workers need classes and functions that can be pickled."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from megatron.energon import (
    CrudeSample,
    DefaultTaskEncoder,
    Sample,
    WorkerConfig,
    basic_sample_keys,
    get_savable_loader,
    get_train_dataset,
    stateless,
)
from megatron.energon.task_encoder.cooking import Cooker
from torch import Tensor

from benchmarks.loaders.plain_decoder import decode_plainly


@dataclass
class Clip(Sample):
    video: Tensor


class ClipEncoder(DefaultTaskEncoder):
    """Decodes a sample as the other loaders do."""

    decoder = None  # the bytes as they are

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    @stateless
    def cook_crude_sample(self, sample: CrudeSample, cooker: Cooker, **aux: object) -> Clip:
        pixels = decode_plainly(bytes(sample["mp4"]), float(np.random.default_rng().random()), self.size)
        return Clip(**basic_sample_keys(sample), video=torch.from_numpy(pixels))

    cookers = (Cooker(lambda sample: sample),)


def batches(folder: Path, workers: int, batch_size: int, size: int) -> Iterator[Tensor]:
    """Yield batches uint8 (B, F, 3, size, size) without end."""
    data = get_train_dataset(
        str(folder),
        batch_size=batch_size,
        shuffle_buffer_size=16,
        max_samples_per_sequence=None,
        task_encoder=ClipEncoder(size),
        worker_config=WorkerConfig(rank=0, world_size=1, num_workers=workers),
    )
    return (batch.video for batch in get_savable_loader(data))
