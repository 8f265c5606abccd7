"""Clips that visitors upload, and the examples that are ready to click.

A browser names a clip by an id that it was given; no path of a request is ever opened.
"""

import secrets
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from divot_datamodules.decoding.media_files import PICTURE_CONTAINERS, opened
from divot_datamodules.decoding.video import DecodeError, probe
from divot_datamodules.decoding.video_writing import write_video
from divot_datamodules.toy.world import Scene, ToyWorld, caption
from divot_lightning.demo.limits import Limits
from divot_lightning.errors import UserError

TOY_SCENES = (
    Scene("red", "circle", "right", "quickly", 16.0, 10.0),
    Scene("blue", "square", "upper left", "slowly", 20.0, 20.0),
    Scene("yellow", "triangle", "down", "quickly", 10.0, 16.0),
)
"""Content of the example clips; each shape stays in the picture."""


@dataclass(frozen=True)
class Clip:
    """A video or picture that the models can read.

    Attributes:
        id: What the browser calls it.
        path: The file.
        name: Its name on the visitor's machine; shown, and never used as a path.
        seconds: Length; 0 for a picture.
    """

    id: str
    path: Path
    name: str
    seconds: float

    @property
    def content(self) -> bytes:
        """The file's bytes: what is in them decides how they are read, not the ending of a visitor's file name."""
        return self.path.read_bytes()

    def describe(self) -> dict[str, Any]:
        """Return what the page shows of it, as JSON values."""
        return {"id": self.id, "name": self.name, "seconds": round(self.seconds, 2)}


class ClipStore:
    """The uploads of all visitors and the examples.

    Args:
        folder: Where the uploads are kept; the page does not serve it.
        limits: What is taken.
    """

    def __init__(self, folder: Path, limits: Limits) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.limits = folder, limits
        self._uploads: dict[str, Clip] = {}
        self._examples: dict[str, Clip] = {}
        self._lock = threading.Lock()

    def new_file(self) -> Path:
        """Return a file for an upload."""
        return self.folder / secrets.token_hex(12)

    def add(self, path: Path, name: str) -> Clip:
        """Take an upload, and delete the oldest one if there are too many.

        Args:
            path: From `new_file`; deleted if it is refused.
            name: Its name on the visitor's machine.

        Raises:
            UserError: It is no video or picture, or too long or large.
        """
        try:
            clip = self._checked(path, name)
        except UserError:
            path.unlink(missing_ok=True)
            raise
        with self._lock:
            self._uploads[clip.id] = clip
            while len(self._uploads) > self.limits.uploads:
                self._uploads.pop(next(iter(self._uploads))).path.unlink(missing_ok=True)
        return clip

    def add_example(self, path: Path, name: str) -> Clip:
        """Take an example, which stays."""
        clip = self._checked(path, name)
        self._examples[clip.id] = clip
        return clip

    def find(self, name: object) -> Clip:
        """Return a clip by its id.

        Raises:
            UserError: There is none, or it is gone.
        """
        found = self._uploads.get(str(name)) or self._examples.get(str(name))
        if found is None:
            raise UserError("This clip is not there any more. Choose it again.")
        return found

    def _checked(self, path: Path, name: str) -> Clip:
        name, limits = Path(name).name[:80] or "clip", self.limits
        try:
            info = probe(path, max_pixels=limits.pixels)
            with opened(path, limits.pixels) as video:
                is_picture = video.kind in PICTURE_CONTAINERS
        except DecodeError as error:
            raise UserError(f"{name} cannot be read as a video or picture ({error}).") from error
        if info.duration > limits.seconds:
            raise UserError(
                f"{name} is {info.duration:.0f} seconds long; this page takes at most {limits.seconds:g}. Cut it first."
            )
        return Clip(secrets.token_urlsafe(12), path, name, 0.0 if is_picture else info.duration)


def toy_examples(folder: Path) -> list[tuple[Path, str]]:
    """Write clips of the toy world; return their files and captions."""
    world = ToyWorld()
    return [
        (write_video(folder / f"toy-{number}.mp4", world.render(scene), world.frames_per_second), caption(scene))
        for number, scene in enumerate(TOY_SCENES)
    ]
