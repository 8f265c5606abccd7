"""Ways to load clips: this library's, and what a competent user writes with each of the others.

All read the same mp4 files and give batches uint8 (B, F, 3, size, size); clips start at a random time. Each way imports
its library when it is called, since each environment has only some of them.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from benchmarks.loaders.plain_decoder import decode_plainly, placed

BATCH = 8
Batches = Iterator[Tensor]


def clip_of(media: bytes, size: int) -> Tensor:
    """Decode a clip that starts at a random time."""
    return torch.from_numpy(decode_plainly(media, float(np.random.default_rng().random()), size))


def divot(folder: Path, workers: int, size: int) -> Batches:
    """This library's data module."""
    from divot_datamodules.decoding.clip_sampling import ClipConfig
    from divot_datamodules.video_text import VideoTextData

    clip = ClipConfig(height=size, width=size)
    data = VideoTextData(str(folder / "tars"), batch_size=BATCH, num_workers=workers, clip=clip, shuffle_buffer=16)
    data.setup("fit")
    return (batch["video"] for batch in data.train_dataloader())


class Files(Dataset[Tensor]):
    """The mp4 files of a folder, decoded by PyAV."""

    def __init__(self, folder: Path, size: int) -> None:
        self.paths, self.size = sorted((folder / "files").glob("*.mp4")), size

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, number: int) -> Tensor:
        return clip_of(self.paths[number].read_bytes(), self.size)


class CodecFiles(Files):
    """The same, decoded by torchcodec, which resizes with torch."""

    def __getitem__(self, number: int) -> Tensor:
        from torchcodec.decoders import VideoDecoder

        decoder = VideoDecoder(self.paths[number].read_bytes(), num_ffmpeg_threads=1)
        duration = decoder.metadata.duration_seconds or 0.0
        frames = decoder.get_frames_played_at(placed(float(np.random.default_rng().random()), duration)).data
        short = min(frames.shape[-2:])
        if short != self.size:
            shape = [round(side * self.size / short) for side in frames.shape[-2:]]
            frames = torch.nn.functional.interpolate(frames, shape, mode="bicubic", antialias=True)
        top, left = ((side - self.size) // 2 for side in frames.shape[-2:])
        return frames[..., top : top + self.size, left : left + self.size].contiguous()


def endless(dataset: Dataset[Any], workers: int, **settings: Any) -> Batches:
    """Read pass after pass with torch's DataLoader, whose workers stay."""
    kept = {"num_workers": workers, "persistent_workers": workers > 0, "drop_last": True}
    loader = DataLoader(dataset, batch_size=BATCH, **kept, **settings)
    while True:
        yield from loader


def pyav(folder: Path, workers: int, size: int) -> Batches:
    """torch's DataLoader over mp4 files, decoded by PyAV with a seek."""
    return endless(Files(folder, size), workers, shuffle=True)


def torchcodec(folder: Path, workers: int, size: int) -> Batches:
    """torch's DataLoader over mp4 files, decoded by torchcodec."""
    return endless(CodecFiles(folder, size), workers, shuffle=True)


def webdataset(folder: Path, workers: int, size: int) -> Batches:
    """webdataset over tars, with its loader."""
    import webdataset as wds

    shards = sorted(str(path) for path in (folder / "tars").glob("*.tar"))
    data = (
        wds.WebDataset(shards, resampled=True, shardshuffle=False, nodesplitter=wds.split_by_node)
        .shuffle(16)
        .to_tuple("mp4")
        .map_tuple(lambda media: clip_of(media, size))
        .batched(BATCH, collation_fn=lambda samples: torch.stack([clip for (clip,) in samples]))
    )
    return iter(wds.WebLoader(data, batch_size=None, num_workers=workers))


def mosaicml(folder: Path, workers: int, size: int) -> Batches:
    """MosaicML streaming over its own shards (MDS)."""
    from streaming import StreamingDataset

    class Clips(StreamingDataset):
        def __getitem__(self, at: Any) -> Tensor:
            return clip_of(super().__getitem__(at)["mp4"], size)

    data = Clips(local=str(folder / "mds"), shuffle=True, batch_size=BATCH)
    return endless(data, workers)


def energon(folder: Path, workers: int, size: int) -> Batches:
    """Megatron-Energon over tars that it has indexed."""
    from benchmarks.loaders.energon_clips import batches

    return batches(folder / "energon", workers, BATCH, size)


WAYS: dict[str, Callable[[Path, int, int], Batches]] = {
    way.__name__: way for way in (divot, pyav, torchcodec, webdataset, mosaicml, energon)
}

MODULES = {
    "divot": "divot_datamodules.video_text",
    "pyav": "av",
    "torchcodec": "torchcodec.decoders",
    "webdataset": "webdataset",
    "mosaicml": "streaming",
    "energon": "benchmarks.loaders.energon_clips",
}
"""What each way imports, so that this can be done before the clock starts."""
