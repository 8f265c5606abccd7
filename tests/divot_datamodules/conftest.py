"""Clips whose pixels tell which frame of the source they are."""

import io
import json
import tarfile
import zlib

import av
import numpy as np
import pytest
import torch

from divot_datamodules.decoding.samples import Sample, tokenizer_items
from divot_datamodules.decoding.video_writing import encode_video
from divot_datamodules.loading.batch_reader import BatchReader, LoadedSource, decode_function
from divot_datamodules.loading.decode_pool import LazyDecoding
from divot_datamodules.loading.decoded_cache import DecodedCache
from divot_datamodules.loading.skipped_samples import Budget, SkippedSamples
from divot_lightning.parts.sources import RawSample, SampleError

BITS = 8


def _numbered_video(count, size=32):
    """Frames whose number stands in binary in eight columns, black or white."""
    video = np.zeros((count, 3, size, size), dtype=np.uint8)
    width = size // BITS
    for number in range(count):
        for bit in range(BITS):
            video[number, :, :, bit * width : (bit + 1) * width] = 255 * (number >> bit & 1)
    return video


def _frame_numbers(video):
    """Read the numbers back from frames of any size that were not cropped."""
    columns = np.asarray(video).mean(axis=(1, 2)).reshape(len(video), BITS, -1)
    width = columns.shape[2]
    middle = columns[:, :, width // 4 : width - width // 4].mean(axis=2)
    return [int(sum(1 << bit for bit in range(BITS) if row[bit] > 127)) for row in middle]


@pytest.fixture
def numbered_video():
    return _numbered_video


@pytest.fixture
def frame_numbers():
    return _frame_numbers


@pytest.fixture
def numbered_file():
    """Make a video file of numbered frames."""

    def make(count=16, fps=8, container="mp4", size=32):
        return encode_video(_numbered_video(count, size), fps, container=container)

    return make


@pytest.fixture
def variable_rate_file():
    """Make an mp4 whose frame i is shown from the i-th of the given milliseconds."""

    def make(milliseconds):
        buffer = io.BytesIO()
        with av.open(buffer, "w", format="mp4") as output:
            stream = output.add_stream("libx264", rate=1000, options={"crf": "4"})
            stream.width = stream.height = 32
            stream.pix_fmt = "yuv444p"
            for pixels, time in zip(_numbered_video(len(milliseconds)), milliseconds, strict=True):
                frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels.transpose(1, 2, 0)), format="rgb24")
                frame.pts = time
                output.mux(stream.encode(frame))
            output.mux(stream.encode(None))
        return buffer.getvalue()

    return make


@pytest.fixture
def picture_file():
    """Make a jpg or png of one colour."""

    def make(colour=(200, 40, 90), size=(40, 30), kind="JPEG"):
        from PIL import Image

        buffer = io.BytesIO()
        Image.new("RGB", size, colour).save(buffer, kind, **({"quality": 95} if kind == "JPEG" else {}))
        return buffer.getvalue()

    return make


@pytest.fixture
def write_tar():
    """Write a tar from (name, bytes) pairs, as they come."""

    def write(path, members):
        path.parent.mkdir(parents=True, exist_ok=True)
        with tarfile.open(path, "w") as tar:
            for name, data in members:
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
        return path

    return write


@pytest.fixture
def video_shards(tmp_path, write_tar, numbered_file):
    """Write shards of good samples with captions and return their folder."""

    def write(shards=2, samples=3, folder="shards", extra=()):
        media = numbered_file()
        for shard in range(shards):
            members = []
            for number in range(samples):
                key = f"s{shard}n{number}"
                text = {"caption": f"caption {key}", "questions": [{"question": "which ?", "answer": key}]}
                members += [(f"{key}.mp4", media), (f"{key}.json", json.dumps(text).encode())]
            write_tar(tmp_path / folder / f"{shard:03d}.tar", [*members, *extra])
        return tmp_path / folder

    return write


class CountedSource:
    """A source without bytes: its samples are their keys, and it notes which were read."""

    def __init__(self, counts, name="", bad=()):
        self.counts, self.name, self.bad = tuple(counts), name, set(bad)
        self.skipped, self.fingerprint, self.content = [], f"{name}{self.counts}", ""
        self.reads = []

    def shard_path(self, shard):
        return f"{self.name}{shard}.tar"

    def key(self, shard, sample):
        return f"{self.name}u{shard}s{sample}"

    def read(self, shard, sample):
        self.reads.append(self.key(shard, sample))
        if self.key(shard, sample) in self.bad:
            raise SampleError("undecodable", "as asked")
        return RawSample(self.key(shard, sample), self.shard_path(shard), sample, {})


def _number_of_key(raw, rng):
    """Decode a counted sample to pixels that tell its key, and what was drawn for it."""
    value = zlib.crc32(raw.key.encode()) % 200 + (int(rng.integers(50)) if rng is not None else 0)
    return Sample(raw.key, {}, video=torch.full((1, 2, 3, 2, 2), value, dtype=torch.uint8))


@pytest.fixture
def counted_source():
    return CountedSource


@pytest.fixture
def counted_reader():
    """Make a reader of counted sources, which decodes in this process unless told otherwise."""

    def make(*sources, data="train", skipped=None, seed=0, make_decoding=LazyDecoding, **settings):
        opened = [LoadedSource(source, _number_of_key, tokenizer_items) for source in sources]
        decoding = make_decoding(decode_function({data: opened}, seed))
        return BatchReader(
            data=data,
            sources=opened,
            decoding=lambda: decoding,
            skipped=skipped or SkippedSamples(data, budget=Budget(1.0)),
            cache=settings.pop("cache", DecodedCache(0)),
            seed=seed,
            **settings,
        )

    return make


def _sound(output, seconds):
    """Add a silent stream; it must be added before the first packet of the video is written."""
    codec = "libopus" if output.format.name in ("webm", "matroska") else "aac"
    stream = output.add_stream(codec, rate=48000, layout="mono")
    block = 960 if codec == "libopus" else 1024

    def write():
        for number in range(round(seconds * 48000 / block)):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, block), np.float32), format="fltp", layout="mono")
            frame.sample_rate, frame.pts = 48000, number * block
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))

    return write


@pytest.fixture
def coded_file():
    """Make a file of numbered frames with a codec, container and time stamps of choice."""

    def make(
        codec,
        container,
        options=None,
        *,
        count=40,
        rate=25,
        stamps=None,
        sound=0.0,
        pixel_format="yuv420p",
        muxing=None,
        pixel_aspect=None,
        width=64,
    ):
        buffer = io.BytesIO()
        with av.open(buffer, "w", format=container, options=muxing or {}) as output:
            stream = output.add_stream(codec, rate=rate, options=options or {})
            stream.width, stream.height, stream.pix_fmt = width, 64, pixel_format
            if pixel_aspect:
                stream.sample_aspect_ratio = pixel_aspect
            write_sound = _sound(output, sound) if sound else None
            for number, pixels in enumerate(_numbered_video(count, 64)[..., :: 64 // width]):
                frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels.transpose(1, 2, 0)), format="rgb24")
                frame.pts = number if stamps is None else stamps[number]
                output.mux(stream.encode(frame))
            output.mux(stream.encode(None))
            if write_sound:
                write_sound()
        return buffer.getvalue()

    return make
