"""Clips through the tokenizer and back through the de-tokenizer.

Shape letters: B batch, N clips, F frames, H height, W width, Q tokens per clip, C token width.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from divot_datamodules.clip_sampling import ClipSettings, decode_clip, image_clip
from divot_datamodules.decoding import IMAGE_SUFFIXES, VIDEO_SUFFIXES, DecodeError, Pixels
from divot_datamodules.samples import SampleDecoder, SampleError
from divot_datamodules.shard_reading import expand_shards
from divot_datamodules.sources import find_jsonl, open_source
from divot_datamodules.video_writing import write_video
from divot_lightning.components import find_component, load_component
from divot_lightning.errors import UserError
from divot_lightning.inference.run_settings import run_fps
from divot_lightning.models.detokenizer import VideoDetokenizer
from divot_lightning.models.noise_schedule import SamplingConfig
from divot_lightning.models.pixels import to_uint8, to_unit_range
from divot_lightning.models.tokenizer import VideoTokenizer

COMPARISON_HEIGHT = 256
"""Comparisons of smaller clips are enlarged to about this many rows, so that players show them sharp."""


@dataclass
class Reconstructor:
    """A tokenizer and a de-tokenizer that fit together, ready for use.

    Attributes:
        tokenizer: In evaluation mode.
        detokenizer: In evaluation mode.
        batch_size: Clips at a time.
        fps: Frames per second of the clips that they were trained on.
    """

    tokenizer: VideoTokenizer
    detokenizer: VideoDetokenizer
    batch_size: int = 32
    fps: float = ClipSettings.fps

    @classmethod
    def from_run(cls, run: str | Path, *, batch_size: int = 32, device: str = "cpu") -> "Reconstructor":
        """Loads both from a run that trained or used them."""
        tokenizer = load_component(find_component(run, "tokenizer"), VideoTokenizer)
        detokenizer = load_component(find_component(run, "detokenizer"), VideoDetokenizer)
        return cls(tokenizer.to(device).eval(), detokenizer.to(device).eval(), batch_size, run_fps(run))

    @property
    def clip(self) -> ClipSettings:
        """How clips are cut for this pair."""
        config = self.detokenizer.config
        return ClipSettings(config.size, config.size, config.num_frames, self.fps, short_videos="squeeze")

    @torch.no_grad()
    def encode(self, video_NFCHW: Tensor) -> Tensor:
        """Returns the tokens of clips, uint8 in, (N, Q, C) float32 on the CPU out."""
        device = next(self.tokenizer.parameters()).device
        parts = [self.tokenizer(to_unit_range(part.to(device))) for part in video_NFCHW.split(self.batch_size)]
        return torch.cat(parts).float().cpu()

    @torch.no_grad()
    def decode(
        self, tokens_NQC: Tensor, generator: torch.Generator | None = None, sampling: SamplingConfig | None = None
    ) -> Iterator[Tensor]:
        """Draws clips from tokens, batch by batch.

        Args:
            tokens_NQC: Tokens, float.
            generator: Source of randomness, on the CPU.
            sampling: Steps and guidance; those of the de-tokenizer by default.

        Yields:
            uint8 (B, F, 3, H, W) on the CPU.
        """
        config = self.detokenizer.config
        guided = (sampling or config.sampling).guidance != 1.0
        null_QC = self.tokenizer.null_tokens(config.size, config.size) if guided else None
        device = next(self.detokenizer.parameters()).device
        for tokens_BQC in tokens_NQC.split(self.batch_size):
            video_BFCHW = self.detokenizer.decode(
                tokens_BQC.to(device), null_tokens_QC=null_QC, sampling=sampling, generator=generator
            )
            yield to_uint8(video_BFCHW).cpu()


def read_clips(inputs: Sequence[str], clip: ClipSettings) -> Iterator[tuple[str, Pixels]]:
    """Reads clips from shards and from media files.

    Args:
        inputs: Each a video or picture, or shards: a folder, a tar, a glob or a URL; or a jsonl.
        clip: How clips are cut; of a longer video the clip in its middle.

    Yields:
        Key and pixels, uint8 (F, 3, H, W).

    Raises:
        UserError: If something cannot be read; names the file or the sample, and why.
    """
    for source in inputs:
        path = Path(source)
        suffix = path.suffix.lower().lstrip(".")
        if suffix not in (*VIDEO_SUFFIXES, *IMAGE_SUFFIXES):
            yield from _shard_clips(source, clip)
            continue
        if not path.is_file():
            raise UserError(f"there is no file {source}")
        try:
            video = (image_clip if suffix in IMAGE_SUFFIXES else decode_clip)(path, clip).video
        except DecodeError as error:
            raise UserError(f"{source} gives no clip: {error}") from error
        yield path.stem, video


def _shard_clips(source: str, clip: ClipSettings) -> Iterator[tuple[str, Pixels]]:
    """Yields clips shard by shard, so that no more shards are opened than are needed; a defect ends it."""
    decode = SampleDecoder(clip)
    for name in [source] if find_jsonl(source) else expand_shards(source):
        shard = open_source(name, progress=False)
        for number in range(shard.counts[0]):
            key = shard.key(0, number)
            try:
                video = decode(shard.read(0, number), None).video
            except SampleError as error:
                raise UserError(f"sample {key!r} of {name} gives no clip: {error.reason} {error.detail}") from error
            if video is None:
                raise UserError(f"{name} holds features; give the shards of videos that they were made from")
            for place, pixels in enumerate(video.numpy()):
                yield (key if len(video) == 1 else f"{key}.clip{place}"), pixels
        if shard.defects:
            first = shard.defects[0]
            raise UserError(
                f"{name} holds more than can be read: {first.reason} {first.key} ({first.detail}).\n"
                f"Write it again; `divot data inspect {name}` lists its defects."
            )


def comparison(original: Pixels, reconstruction: Pixels) -> Pixels:
    """Puts a clip and its reconstruction beside each other, enlarged to whole pixels if they are small.

    Args:
        original: uint8 (F, 3, H, W).
        reconstruction: The same shape.

    Returns:
        uint8 (F, 3, H', W') with a white bar between the two.
    """
    times = max(1, COMPARISON_HEIGHT // original.shape[2])
    bar = np.full((*original.shape[:3], 2), 255, dtype=np.uint8)
    both = np.concatenate([original, bar, reconstruction], axis=3)
    return both.repeat(times, axis=2).repeat(times, axis=3)


def reconstruct_files(
    run: str | Path, inputs: Sequence[str], output: str | Path, *, num: int = 8, seed: int = 0, device: str = "cpu"
) -> Iterator[Path]:
    """Writes `<key>.mp4`, `<key>_original.mp4` and `<key>_compare.mp4` for the first clips of the inputs.

    Args:
        run: A run that trained or used a tokenizer and a de-tokenizer.
        inputs: See `read_clips`.
        output: Folder of the files.
        num: Number of clips.
        seed: Of the de-tokenizer's noise.
        device: Where the models run.

    Returns:
        An iterator that writes the files clip by clip and gives the path of each comparison; run and inputs are read
        before it is returned.
    """
    models = Reconstructor.from_run(run, device=device)
    clips = list(islice(read_clips(inputs, models.clip), num))
    return _write_clips(models, clips, Path(output), seed)


def _write_clips(models: Reconstructor, clips: list[tuple[str, Pixels]], output: Path, seed: int) -> Iterator[Path]:
    names = _file_names(key for key, _ in clips)
    originals = torch.from_numpy(np.stack([video for _, video in clips]))
    generator = torch.Generator().manual_seed(seed)
    done = 0
    for batch in models.decode(models.encode(originals), generator):
        for video in batch.numpy():
            original, name = clips[done][1], names[done]
            write_video(output / f"{name}.mp4", video, models.fps)
            write_video(output / f"{name}_original.mp4", original, models.fps)
            both = comparison(original, video)
            even = both[:, :, : both.shape[2] // 2 * 2, : both.shape[3] // 2 * 2]
            # Half-resolution chroma, which every player knows; enlarged clips lose nothing by it.
            yield write_video(output / f"{name}_compare.mp4", even, models.fps, pixel_format="yuv420p")
            done += 1


def _file_names(keys: Iterable[str]) -> list[str]:
    """Turns keys into file names that are all different.

    >>> _file_names(["a/b c", "a/b_c", "x"])
    ['a_b_c', 'a_b_c-1', 'x']
    """
    names: list[str] = []
    for key in keys:
        name = stem = re.sub(r"[^\w.-]+", "_", key).strip(".") or "clip"
        number = 0
        while name in names:
            number += 1
            name = f"{stem}-{number}"
        names.append(name)
    return names
