"""What the page takes at most, and the reading of requests. Everything in a request comes from a stranger.

No torch in here.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from divot_lightning.errors import UserError

MOST_SEED = 2**32 - 1
"""Seeds are 32-bit numbers, which a browser's numbers hold exactly."""


@dataclass(frozen=True)
class Limits:
    """What the page takes at most.

    Attributes:
        upload_mb: Size of an uploaded file, in millions of bytes.
        seconds: Length of an uploaded video.
        pixels: Height x width of an uploaded video or picture; 4K television by default.
        uploads: Uploads that are kept; the oldest is deleted.
        waiting: Jobs that wait for the one that runs.
        results: Jobs whose files are kept; the oldest are deleted.
        characters: Length of a prompt, a question or an instruction.
        turns: Earlier questions that a question takes with it.
        samples: Clips of each system per prompt.
        story_clips: Clips of a story.
        steps: Denoising steps.
        answer_tokens: Tokens of an answer.
    """

    upload_mb: int = 64
    seconds: float = 60.0
    pixels: int = 3840 * 2160
    uploads: int = 16
    waiting: int = 8
    results: int = 50
    characters: int = 500
    turns: int = 20
    samples: int = 4
    story_clips: int = 6
    steps: int = 200
    answer_tokens: int = 64

    def __post_init__(self) -> None:
        for name, option in (
            ("upload_mb", "--max-upload-mb"),
            ("seconds", "--max-seconds"),
            ("waiting", "--max-queue"),
        ):
            if getattr(self, name) <= 0:
                raise UserError(f"{option} is {getattr(self, name)}; it must be above 0")


def text(request: Mapping[str, Any], name: str, limits: Limits, what: str) -> str:
    """Return a text of a request.

    Args:
        request: The request.
        name: Name of the entry.
        limits: Its `characters` are the greatest length.
        what: What the text is, for messages.

    Raises:
        UserError: It is missing, blank or too long.
    """
    value = request.get(name)
    if not isinstance(value, str) or not value.strip():
        raise UserError(f"There is no {what}. Write one.")
    if len(value) > limits.characters:
        raise UserError(f"The {what} has {len(value)} characters; this page takes at most {limits.characters}.")
    return value.strip()


def whole_number(request: Mapping[str, Any], name: str, most: int, least: int = 1, default: int | None = None) -> int:
    """Return a whole number of a request; without a default it must be there.

    Raises:
        UserError: It is no whole number from ``least`` to ``most``.
    """
    value = request.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise UserError(f"{name} is {_shown(value)}; it must be a whole number from {least} to {most}.")
    return value


def number(request: Mapping[str, Any], name: str, most: float, default: float) -> float:
    """Return a number of a request.

    Raises:
        UserError: It is no number from 0 to ``most``.
    """
    value = request.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= most:
        raise UserError(f"{name} is {_shown(value)}; it must be a number from 0 to {most:g}.")
    return float(value)


def _shown(value: object) -> str:
    return repr(value)[:40]
