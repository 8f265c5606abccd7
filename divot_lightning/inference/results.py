"""What `DivotPipeline` returns: plain data, each with the settings that made it; `save` writes videos and json.

Shape letters: N clips, F frames, H height, W width, Q tokens per clip, C feature width.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from divot_datamodules.decoding.media_files import suffix_of
from divot_datamodules.decoding.video import Pixels
from divot_datamodules.decoding.video_writing import CODECS, write_comparison, write_video
from divot_lightning.errors import UserError
from divot_lightning.io.files import write_atomically
from divot_lightning.io.output_files import make_folder, writing_to
from divot_lightning.parts.segments import Kind

Settings = Mapping[str, Any]
"""Everything that decided a result besides its input, as JSON values."""


@dataclass(frozen=True, eq=False)
class ClipFeatures:
    """Features of clips.

    Attributes:
        features_NQC: Float32, on the CPU.
        kinds: Whether each clip is of a video or an image.
    """

    features_NQC: Tensor
    kinds: tuple[Kind, ...]

    def __len__(self) -> int:
        """Return the number of clips."""
        return len(self.features_NQC)


@dataclass(frozen=True)
class Answer:
    """An answer of the video LLM.

    Attributes:
        question: The question; "" for a caption.
        text: The answer.
        settings: How it was sampled.
    """

    question: str
    text: str
    settings: Settings = field(default_factory=dict, repr=False)

    def __str__(self) -> str:
        """Return the answer alone."""
        return self.text


@dataclass(frozen=True, eq=False)
class GeneratedClips:
    """Clips that were generated from one text.

    Attributes:
        prompt: The text.
        video_NFCHW: uint8 (N, F, 3, H, W) in [0, 255], RGB.
        features_NQC: Features of the clips, as the head sampled them.
        fps: Frames per second.
        settings: How they were sampled.
    """

    prompt: str
    video_NFCHW: Tensor = field(repr=False)
    features_NQC: Tensor = field(repr=False)
    fps: float
    settings: Settings = field(repr=False)

    def save(self, output: str | Path) -> list[Path]:
        """Write a video per clip and its settings beside it as json.

        Args:
            output: The file, see `output_paths`.

        Returns:
            The videos.
        """
        paths = output_paths(output, len(self.video_NFCHW), self.prompt)
        for path, video in zip(paths, self.video_NFCHW, strict=True):
            save_clip(path, video.numpy(), self.fps, {"prompt": self.prompt, **self.settings})
        return paths


@dataclass(frozen=True, eq=False)
class Reconstruction:
    """Clips that were encoded and decoded again.

    Attributes:
        original_NFCHW: uint8 (N, F, 3, H, W) in [0, 255], RGB.
        video_NFCHW: The same, decoded.
        features_NQC: Their features.
        fps: Frames per second.
        settings: How they were decoded.
    """

    original_NFCHW: Tensor = field(repr=False)
    video_NFCHW: Tensor = field(repr=False)
    features_NQC: Tensor = field(repr=False)
    fps: float
    settings: Settings = field(repr=False)

    def save(self, output: str | Path) -> list[Path]:
        """Write a video per clip with its settings, and `<name>_compare` beside it, which shows both side by side."""
        paths = output_paths(output, len(self.video_NFCHW))
        for path, original, video in zip(paths, self.original_NFCHW.numpy(), self.video_NFCHW.numpy(), strict=True):
            save_clip(path, video, self.fps, self.settings)
            write_comparison(path.with_name(f"{path.stem}_compare{path.suffix}"), original, video, self.fps)
        return paths


@dataclass(frozen=True, eq=False)
class StoryPart:
    """A sentence of a story and its clip.

    Attributes:
        text: The sentence.
        kind: Whether the model opened a video or an image; None if no clip follows.
        video_FCHW: uint8 (F, 3, H, W) in [0, 255], RGB; None without a clip.
        features_QC: Features of the clip; None without one.
    """

    text: str
    kind: Kind | None = None
    video_FCHW: Tensor | None = field(default=None, repr=False)
    features_QC: Tensor | None = field(default=None, repr=False)


@dataclass(frozen=True, eq=False)
class Story:
    """A story: sentences and clips in turn.

    Attributes:
        instruction: What was asked for.
        parts: The sentences with their clips, in order.
        fps: Frames per second.
        settings: How it was sampled.
    """

    instruction: str
    parts: tuple[StoryPart, ...]
    fps: float
    settings: Settings = field(repr=False)

    def save(self, folder: str | Path) -> list[Path]:
        """Write a video per clip, `clip-0.mp4` and so on, and after them `story.json` with the texts and settings."""
        paths, described = list[Path](), list[dict[str, Any]]()
        for part in self.parts:
            path = None
            if part.video_FCHW is not None:
                path = write_video(Path(folder) / f"clip-{len(paths)}.mp4", part.video_FCHW.numpy(), self.fps)
                paths.append(path)
            described.append({"text": part.text, "kind": part.kind, "file": path and path.name})
        whole = {"instruction": self.instruction, "parts": described, **self.settings}
        write_json(Path(folder) / STORY_FILE, whole)
        return paths


STORY_FILE = "story.json"


PROMPT = "{prompt}"

MOST_NAME_BYTES = 240
"""File systems allow 255 bytes; a number and the name of an unfinished file need some."""


def output_paths(output: str | Path, count: int, prompt: str = "") -> list[Path]:
    """Return the files of several clips.

    Args:
        output: The file; its suffix names the container. `{prompt}` in its name stands for the text of the clips.
        count: Number of clips.
        prompt: The text.

    Returns:
        The file itself for one clip, else numbered ones; files that are named by their text always have a number, as
        VBench (arXiv:2311.17982) reads them.

    Raises:
        UserError: The suffix names no container, or the text is too long for the name of a file.

    >>> [str(path) for path in output_paths("a/x.mp4", 2)]
    ['a/x-0.mp4', 'a/x-1.mp4']
    >>> [str(path) for path in output_paths("a/{prompt}.mp4", 1, "a red circle")]
    ['a/a red circle-0.mp4']
    """
    output = Path(output)
    if suffix_of(output) not in CODECS:
        raise UserError(f"--output {output} names no kind of video; end it with one of: .{', .'.join(CODECS)}")
    named = PROMPT in output.name
    if named:
        output = output.with_name(output.name.replace(PROMPT, prompt.replace("/", "_")))
        if len(output.name.encode()) > MOST_NAME_BYTES:
            raise UserError(
                f"the text {prompt[:40]!r}... is too long for the name of a file\nwrite --output without {PROMPT}"
            )
    if count == 1 and not named:
        return [output]
    return [output.with_name(f"{output.stem}-{index}{output.suffix}") for index in range(count)]


def save_clip(path: Path, video: Pixels, fps: float, settings: Settings) -> Path:
    """Write a clip, uint8 (F, 3, H, W), and then its settings as json of the same name; return the video's path."""
    write_video(path, video, fps)
    write_json(path.with_suffix(".json"), settings)
    return path


def write_json(path: Path, value: Settings) -> None:
    """Write a json file, whole or not at all."""
    with writing_to(path):
        make_folder(path.parent)
        write_atomically(path, json.dumps(value, indent=1, ensure_ascii=False, default=str) + "\n")
