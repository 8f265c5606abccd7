"""Write shards with every known defect, and list the report that is expected for each.

`make_broken_shards` writes them. Every reader of shards must use exactly `good`, and report exactly `expected`.
"""

import io
import json
import pickle
import tarfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import av
import numpy as np

from divot_datamodules.decoding.clip_sampling import ClipConfig
from divot_datamodules.decoding.samples import Sample, SampleDecoder
from divot_datamodules.decoding.video_writing import encode_video
from divot_datamodules.shards.index_files import write_index
from divot_lightning.parts.sources import RawSample

Member = tuple[str, bytes]
When = Literal["indexing", "reading", "decoding", "task", "deadline"]

FRAMES, FPS, SIDE = 16, 8.0, 32
MAX_PIXELS = 256 * 256
HANGING_KEY = "hangs"
_BLOCK = tarfile.BLOCKSIZE


class Expected(NamedTuple):
    """A defect that must be found.

    Attributes:
        reason: As skipped samples are counted.
        shard: Its path.
        key: The sample's; "" where the whole shard is meant.
        when: The moment that finds it: indexing, reading (the shard is gone, see `BrokenShards.remove_vanishing`),
            decoding, choosing a caption task, or the deadline (with `HangingDecoder`).
    """

    reason: str
    shard: str
    key: str
    when: When


@dataclass
class BrokenShards:
    """What was written.

    Attributes:
        folder: Where.
        shards: Paths of all shards, one of them missing.
        good: Keys that can be used, by path of the shard; those of the vanishing shard only as long as it is there.
        expected: What must be found.
        clip: Settings under which the table holds; the videos are 16 frames at 8 per second.
        bomb: A file that comes into being if a pickle among the members is loaded.
    """

    folder: Path
    shards: list[str] = field(default_factory=list)
    good: dict[str, list[str]] = field(default_factory=dict)
    expected: list[Expected] = field(default_factory=list)
    clip: ClipConfig = field(
        default_factory=lambda: ClipConfig(height=SIDE, width=SIDE, frames=FRAMES, fps=FPS, max_pixels=MAX_PIXELS)
    )

    @property
    def bomb(self) -> Path:
        """A file that comes into being if a pickle among the members is loaded."""
        return self.folder / "bomb-went-off"

    @property
    def vanishing(self) -> str:
        """The shard that `remove_vanishing` removes."""
        return str(self.folder / "vanishing.tar")

    def remove_vanishing(self) -> None:
        """Remove a shard, as happens between indexing and reading; each of its samples is then expected missing."""
        Path(self.vanishing).unlink()

    def found_when(self, *when: When) -> set[tuple[str, str, str]]:
        """Return reason, shard and key of what is expected to be found at these moments."""
        return {(reason, shard, key) for reason, shard, key, moment in self.expected if moment in when}


class HangingDecoder(SampleDecoder):
    """Decodes like the one it stands for, but never comes back from the sample `HANGING_KEY`."""

    def __call__(self, raw: RawSample, rng: np.random.Generator | None) -> Sample:
        """Decode one sample, or sleep for an hour."""
        if raw.key == HANGING_KEY:
            time.sleep(3600)
        return super().__call__(raw, rng)


def moving_clip(seed: int, side: int = SIDE, container: str = "mp4") -> bytes:
    """Return a video file of 2 seconds of coarse noise, each seed another one."""
    coarse = np.random.default_rng(seed).integers(0, 255, (FRAMES, 3, 8, 8), dtype=np.uint8)
    return encode_video(coarse.repeat(side // 8, axis=2).repeat(side // 8, axis=3), FPS, container=container)


def write_members(path: Path, members: Sequence[Member]) -> Path:
    """Write a tar of (name, content) pairs as they come, without an index beside it."""
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def make_broken_shards(folder: str | Path) -> BrokenShards:
    """Write shards with defects and good samples between them, some 30 kB per shard, in about a second.

    Args:
        folder: Where to; made if it is missing.
    """
    made = BrokenShards(Path(folder))
    made.folder.mkdir(parents=True, exist_ok=True)
    for write in (_write_good, _write_bad_media, _write_bad_texts, _write_cut, _write_misplaced, _write_lost):
        write(made)
    return made


def _sample(key: str, seed: int = 0) -> list[Member]:
    return [(f"{key}.mp4", moving_clip(seed)), (f"{key}.json", json.dumps({"caption": f"this is {key}"}).encode())]


def _add(made: BrokenShards, name: str, members: Sequence[Member], good: Sequence[str]) -> Path:
    path = write_members(made.folder / name, members)
    made.shards.append(str(path))
    made.good[str(path)] = list(good)
    return path


class _Bomb:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def _write_good(made: BrokenShards) -> None:
    """Samples that look odd but are valid: keys with dots, a varying frame rate, pickles and programs beside them."""
    bomb = pickle.dumps(_Bomb(made.bomb))
    dangerous = [(f"a.{suffix}", bomb) for suffix in ("pkl", "pth", "pyd", "pickle", "pt", "npy", "py", "mp4.pkl")]
    varying = [("varying_rate.mp4", _varying_rate()), ("varying_rate.txt", b"this is varying_rate")]
    members = [*_sample("a"), *dangerous, *_sample("clip.v1.2", 1), *_sample("clip.v1.3", 2), *varying]
    _add(made, "good.tar", members, ["a", "clip.v1.2", "clip.v1.3", "varying_rate"])


def _varying_rate() -> bytes:
    """Return a video whose frames are shown for 40 to 200 ms, 2.4 seconds in all."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as output:
        stream = output.add_stream("libx264", rate=1000)
        stream.width, stream.height, stream.pix_fmt = SIDE, SIDE, "yuv444p"
        for number in range(20):
            frame = av.VideoFrame.from_ndarray(np.full((SIDE, SIDE, 3), 12 * number, np.uint8), format="rgb24")
            frame.pts = 240 * (number // 2) + 40 * (number % 2)
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    return buffer.getvalue()


def _write_bad_media(made: BrokenShards) -> None:
    clip = moving_clip(3)
    fast = _fast_start(clip, made.folder / "fast.mp4.part")
    media = {
        "empty": (b"", "empty_media"),
        "no_moov": (clip[: clip.index(b"moov") - 4], "undecodable"),
        "truncated": (_cut_media(fast, within_packet=True), "corrupt"),
        "truncated_between_frames": (_cut_media(fast, within_packet=False), "too_short"),
        "flipped_bits": (_flipped(clip), "corrupt"),
        "zero_length": (_no_frames(), "no_video_stream"),
        "short": (encode_video(np.zeros((5, 3, SIDE, SIDE), np.uint8), FPS), "too_short"),
        "huge": (moving_clip(4, side=512), "too_large"),
        "noise": (np.random.default_rng(0).bytes(4000), "undecodable"),
    }
    members = [*_sample("before")]
    for key, (data, _) in media.items():
        members += [(f"{key}.mp4", data), (f"{key}.json", json.dumps({"caption": key}).encode())]
    path = _add(made, "bad_media.tar", [*members, *_sample(HANGING_KEY), *_sample("after")], ["before", "after"])
    made.expected += [Expected(reason, str(path), key, "decoding") for key, (_, reason) in media.items()]
    made.expected.append(Expected("deadline", str(path), HANGING_KEY, "deadline"))


def _fast_start(clip: bytes, scratch: Path) -> bytes:
    """Return an mp4 with its header in front, which promises all frames however little follows."""
    options = {"movflags": "faststart"}
    with av.open(io.BytesIO(clip), "r") as source, av.open(str(scratch), "w", format="mp4", options=options) as output:
        stream = output.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(source.streams.video[0]):
            if packet.dts is not None:
                packet.stream = stream
                output.mux(packet)
    data = scratch.read_bytes()
    scratch.unlink()
    return data


def _cut_media(fast: bytes, *, within_packet: bool) -> bytes:
    with av.open(io.BytesIO(fast), "r") as container:
        packets = [packet for packet in container.demux() if packet.size]
        middle = packets[len(packets) // 2]
        assert middle.pos is not None
        return fast[: middle.pos + (middle.size // 2 if within_packet else 0)]


def _flipped(clip: bytes) -> bytes:
    damaged = bytearray(clip)
    start = clip.index(b"mdat") + 4
    for index in range(start + (clip.index(b"moov") - start) // 2, clip.index(b"moov") - 8):
        damaged[index] ^= 0x55
    return bytes(damaged)


def _no_frames() -> bytes:
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as output:
        stream = output.add_stream("libx264", rate=8)
        stream.width, stream.height, stream.pix_fmt = SIDE, SIDE, "yuv420p"
        output.start_encoding()
    return buffer.getvalue()


def _write_bad_texts(made: BrokenShards) -> None:
    texts = {
        "no_text": (None, "missing_caption", "task"),
        "no_caption": (b'{"attributes": {}}', "missing_caption", "task"),
        "not_utf8": (b'{"caption": "caf\xe9"}', "not_utf8", "decoding"),
        "bad_json": (b'{"caption": "cut', "bad_json", "decoding"),
        "deep_json": (b"[" * 100_000, "bad_json", "decoding"),
    }
    members = [*_sample("before")]
    for key, (text, _, _) in texts.items():
        members += [(f"{key}.mp4", moving_clip(5)), *([(f"{key}.json", text)] if text is not None else [])]
    members += [("no_media.json", b'{"caption": "none"}'), *_sample("after")]
    path = _add(made, "bad_texts.tar", members, ["before", "after"])
    made.expected += [Expected(reason, str(path), key, when) for key, (_, reason, when) in texts.items()]  # type: ignore[arg-type]
    made.expected.append(Expected("missing_media", str(path), "no_media", "decoding"))


def _write_cut(made: BrokenShards) -> None:
    """Shards of k0 to k3 that end too early, or whose headers are damaged, in k2; one of them with its index."""
    members = [member for number in range(4) for member in _sample(f"k{number}", number)]
    offsets = _offsets(write_members(made.folder / "whole.tar.part", members))
    (made.folder / "whole.tar.part").unlink()
    cuts: dict[str, tuple[int, str, str]] = {
        "cut_in_header": (offsets[4] + 200, "cut_in_header", ""),
        "cut_in_second_header": (offsets[5] + 200, "cut_in_header", "k2"),
        "cut_in_body": (offsets[4] + _BLOCK + 300, "cut_in_body", "k2"),
        "cut_between": (offsets[4], "cut_between_members", ""),
    }
    for name, (size, reason, key) in cuts.items():
        path = _add(made, f"{name}.tar", members, ["k0", "k1"])
        path.write_bytes(path.read_bytes()[:size])
        made.expected.append(Expected(reason, str(path), key, "indexing"))
    damaged = _add(made, "broken_header.tar", members, ["k0", "k1"])
    damaged.write_bytes(_with(damaged.read_bytes(), offsets[4] + 10, lambda byte: byte ^ 0x40))
    made.expected.append(Expected("broken_header", str(damaged), "", "indexing"))
    indexed = _add(made, "cut_with_index.tar", members, ["k0", "k1"])
    write_index(indexed)
    indexed.write_bytes(indexed.read_bytes()[: cuts["cut_in_body"][0]])
    made.expected += [Expected("cut_in_body", str(indexed), key, "indexing") for key in ("k2", "k3")]


def _offsets(path: Path) -> list[int]:
    with tarfile.open(path) as tar:
        return [member.offset for member in tar]


def _with(data: bytes, index: int, change: Callable[[int], int]) -> bytes:
    return data[:index] + bytes([change(data[index])]) + data[index + 1 :]


def _write_misplaced(made: BrokenShards) -> None:
    a, b, c = (_sample(key, seed) for seed, key in enumerate(("a", "b", "c")))
    path = _add(made, "interleaved.tar", [a[0], b[0], a[1], b[1], *c], ["c"])
    made.expected += [Expected("interleaved", str(path), key, "indexing") for key in ("a", "b")]
    path = _add(made, "duplicates.tar", [*a, *b, *a, c[0], c[0], c[1]], ["b"])
    made.expected += [
        Expected("duplicate_key", str(path), "a", "indexing"),
        Expected("duplicate_member", str(path), "c", "indexing"),
    ]
    path = _add(made, "joined.tar", a, ["a"])
    path.write_bytes(path.read_bytes() + path.read_bytes())
    made.expected.append(Expected("data_after_end", str(path), "", "indexing"))


def _write_lost(made: BrokenShards) -> None:
    vanishing = _add(made, "vanishing.tar", [*_sample("v0"), *_sample("v1", 1)], ["v0", "v1"])
    made.expected += [Expected("missing_shard", str(vanishing), key, "reading") for key in ("v0", "v1")]
    for name, content, reason in (
        ("rubbish.tar", b"rubbish" * 999, "not_a_tar"),
        ("nothing.tar", b"", "empty_shard"),
        ("missing.tar", None, "missing_shard"),
    ):
        path = made.folder / name
        if content is not None:
            path.write_bytes(content)
        made.shards.append(str(path))
        made.good[str(path)] = []
        made.expected.append(Expected(reason, str(path), "", "indexing"))
