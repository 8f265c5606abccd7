"""Reconstruct clips: encode them with the tokenizer, decode the tokens with the de-tokenizer.

Shape letters: B batch, N clips, F frames, H height, W width, Q tokens per clip, C token width.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from divot_datamodules.decoding.clip_sampling import ClipConfig, decode_clip, image_clip
from divot_datamodules.decoding.sample_errors import decoding_errors
from divot_datamodules.decoding.samples import SampleDecoder
from divot_datamodules.decoding.video import IMAGE_SUFFIXES, VIDEO_SUFFIXES, Pixels
from divot_datamodules.decoding.video_writing import write_video
from divot_datamodules.loading.skipped_samples import left_out_lines
from divot_datamodules.shards.reading import expand_shards
from divot_datamodules.shards.sources import find_jsonl, open_source
from divot_lightning.checkpoint.components import find_component, load_component
from divot_lightning.errors import UserError
from divot_lightning.inference.run_config import run_fps
from divot_lightning.models.clip_encoding import encode_clips
from divot_lightning.models.detokenizer.sampling import SamplingConfig
from divot_lightning.models.detokenizer.video_detokenizer import VideoDetokenizer
from divot_lightning.models.pixels import to_uint8
from divot_lightning.models.tokenizer.video_tokenizer import VideoTokenizer
from divot_lightning.parts.sources import SampleError, SkippedSample

LONGEST_NAME = 200
"""Most bytes of a key in a file name; file systems limit the whole name, with its endings, to 255 bytes."""
COMPARISON_HEIGHT = 256
"""Comparisons of smaller clips are enlarged to about this many rows, so that players show them sharp."""


@dataclass
class Reconstructor:
    """A tokenizer and a de-tokenizer that fit together, ready for use.

    Attributes:
        tokenizer: In evaluation mode.
        detokenizer: In evaluation mode.
        batch_size: Clips that are decoded at a time.
        fps: Frames per second of the clips that they were trained on.
    """

    tokenizer: VideoTokenizer
    detokenizer: VideoDetokenizer
    batch_size: int = 32
    fps: float = ClipConfig.fps

    @classmethod
    def from_run(cls, run: str | Path, *, batch_size: int = 32, device: str = "cpu") -> "Reconstructor":
        """Load both models from a run that trained or used them."""
        tokenizer = load_component(find_component(run, "tokenizer"), VideoTokenizer)
        detokenizer = load_component(find_component(run, "detokenizer"), VideoDetokenizer)
        return cls(tokenizer.to(device).eval(), detokenizer.to(device).eval(), batch_size, run_fps(run))

    @property
    def clip(self) -> ClipConfig:
        """How clips are cut for these models."""
        config = self.detokenizer.config
        return ClipConfig(config.size, config.size, config.num_frames, self.fps, short_videos="squeeze")

    def encode(self, video_NFCHW: Tensor) -> Tensor:
        """Return the tokens of clips: uint8 (N, F, 3, H, W) in, (N, Q, C) float32 on the CPU out."""
        return encode_clips(self.tokenizer, video_NFCHW).cpu()

    @torch.no_grad()
    def decode(
        self, tokens_NQC: Tensor, generator: torch.Generator | None = None, sampling: SamplingConfig | None = None
    ) -> Iterator[Tensor]:
        """Decode tokens into clips, batch by batch.

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


def read_clips(
    inputs: Sequence[str], clip: ClipConfig, on_skip: Callable[[SkippedSample], object] = lambda sample: None
) -> Iterator[tuple[str, Pixels]]:
    """Read clips from shards and from media files; skip what cannot be read.

    Args:
        inputs: Each a video or picture, or shards: a folder, a tar, a glob or a URL; or a jsonl.
        clip: How clips are cut; of a longer video the clip in its middle.
        on_skip: Called with each sample or file that is skipped, as soon as it is.

    Yields:
        Key and pixels, uint8 (F, 3, H, W).

    Raises:
        UserError: A file is missing, or no clip can be read from any input; the message names the first ones and why.
    """
    skipped: list[SkippedSample] = []

    def note(sample: SkippedSample) -> None:
        skipped.append(sample)
        on_skip(sample)

    count = 0
    for source in inputs:
        suffix = Path(source).suffix.lower().lstrip(".")
        is_media = suffix in (*VIDEO_SUFFIXES, *IMAGE_SUFFIXES)
        for clips in (_file_clip if is_media else _shard_clips)(source, clip, note):
            count += 1
            yield clips
    if not count:
        raise UserError("no clip to take:\n" + "\n".join(left_out_lines(skipped)[:4]))


def _file_clip(
    source: str, clip: ClipConfig, on_skip: Callable[[SkippedSample], object]
) -> Iterator[tuple[str, Pixels]]:
    path = Path(source)
    if not path.is_file():
        raise UserError(f"there is no file {source}")
    is_image = path.suffix.lower().lstrip(".") in IMAGE_SUFFIXES
    try:
        with decoding_errors():
            video = (image_clip if is_image else decode_clip)(path, clip).video
    except SampleError as error:
        on_skip(SkippedSample(error.reason, source, "", error.detail))
        return
    yield path.stem, video


def _shard_clips(
    source: str, clip: ClipConfig, on_skip: Callable[[SkippedSample], object]
) -> Iterator[tuple[str, Pixels]]:
    """Yield clips shard by shard: a caller that stops early opens no further shard."""
    jsonl = find_jsonl(source)
    for name in jsonl or expand_shards(source):
        shard = open_source(name, progress=False, may_be_empty=True)
        for index in range(shard.counts[0]):
            key = shard.key(0, index)
            try:
                video = SampleDecoder(clip)(shard.read(0, index), None).video
            except SampleError as error:
                on_skip(SkippedSample(error.reason, name, key, error.detail))
                continue
            if video is None:
                raise UserError(f"{name} holds features; give the shards of videos that they were made from")
            for clip_index, pixels in enumerate(video.numpy()):
                yield (key if len(video) == 1 else f"{key}.clip{clip_index}"), pixels
        for skipped in shard.skipped:
            on_skip(skipped)


def comparison(original: Pixels, reconstruction: Pixels) -> Pixels:
    """Put a clip and its reconstruction side by side; small ones are enlarged by a whole factor.

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


def write_comparison(path: Path, original: Pixels, reconstruction: Pixels, fps: float) -> Path:
    """Write a video of a clip and its reconstruction side by side, and return its path."""
    both = comparison(original, reconstruction)
    even = both[:, :, : both.shape[2] // 2 * 2, : both.shape[3] // 2 * 2]
    # Every player knows chroma of half resolution; it needs even sides, and enlarged clips lose nothing by it.
    return write_video(path, even, fps, pixel_format="yuv420p")


def reconstruct_files(
    run: str | Path,
    inputs: Sequence[str],
    output: str | Path,
    *,
    num: int = 8,
    seed: int = 0,
    device: str = "cpu",
    on_skip: Callable[[SkippedSample], object] = lambda sample: None,
) -> Iterator[Path]:
    """Write `<key>.mp4`, `<key>_original.mp4` and `<key>_compare.mp4` for the first clips of the inputs.

    Args:
        run: A run that trained or used a tokenizer and a de-tokenizer.
        inputs: See `read_clips`.
        output: Folder of the files.
        num: Number of clips.
        seed: Of the de-tokenizer's noise.
        device: Where the models run.
        on_skip: Called with each sample or file that is skipped.

    Returns:
        An iterator that writes the files of one clip at a time and yields the path of its comparison. Run and inputs
        are read before it is returned, so that errors in them come first.
    """
    models = Reconstructor.from_run(run, device=device)
    clips = list(islice(read_clips(inputs, models.clip, on_skip), num))
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
            yield write_comparison(output / f"{name}_compare.mp4", original, video, models.fps)
            done += 1


def _file_names(keys: Iterable[str]) -> list[str]:
    """Turn keys into file names that are all different.

    >>> _file_names(["a/b c", "a/b_c", "x"])
    ['a_b_c', 'a_b_c-1', 'x']
    """
    names: list[str] = []
    for key in keys:
        safe = re.sub(r"[^\w.-]+", "_", key).encode()[:LONGEST_NAME].decode(errors="ignore").strip(".")
        name = stem = safe or "clip"
        number = 0
        while name in names:
            number += 1
            name = f"{stem}-{number}"
        names.append(name)
    return names
