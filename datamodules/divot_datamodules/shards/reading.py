"""Names of shards and of their members, and raw samples read from a tar front to back.

Nothing is unpickled. Nothing is executed, unless a recipe allows "pipe:" commands.
"""

import glob as globbing
import re
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO, cast

import fsspec
import webdataset

from divot_datamodules.decoding.video import IMAGE_SUFFIXES, VIDEO_SUFFIXES
from divot_lightning.errors import UserError, first_line

FEATURE_SUFFIX = "features.safetensors"
MEDIA_SUFFIXES = (*VIDEO_SUFFIXES, *IMAGE_SUFFIXES)
TEXT_SUFFIXES = ("json", "txt")
UNFINISHED_INDEX = "index.unfinished.json"
"""File of a folder into which shards are being written."""

# Keys may contain dots, so only known suffixes count. `clip0.mp4`, `clip1.mp4` ... are the clips of one sample.
_KNOWN = "|".join(re.escape(s) for s in (FEATURE_SUFFIX, *MEDIA_SUFFIXES, *TEXT_SUFFIXES))
_MEMBER = re.compile(rf"(?P<key>.+?)\.(?P<suffix>(?:clip[0-9]{{1,9}}\.)?(?:{_KNOWN}))", re.IGNORECASE | re.DOTALL)


class ShardError(Exception):
    """A shard cannot be read, or not to its end; the message says why.

    Attributes:
        reason: Short fixed name; skipped samples are counted by it.
    """

    def __init__(self, message: str, reason: str = "unreadable_shard") -> None:
        super().__init__(message, reason)
        self.reason = reason

    def __str__(self) -> str:
        return str(self.args[0])


def split_member_name(name: str) -> tuple[str, str] | None:
    """Split a member's name into key and suffix; return None for members that belong to no sample.

    >>> split_member_name("cats/clip.v1.mp4")
    ('cats/clip.v1', 'mp4')
    >>> split_member_name("00017.features.safetensors")
    ('00017', 'features.safetensors')
    >>> split_member_name("tale.clip0.mp4")
    ('tale', 'clip0.mp4')
    >>> split_member_name("weights.pth") is None
    True
    >>> split_member_name("cats/._clip.mp4") is None  # tar on a Mac adds such a file for each file
    True
    """
    match = _MEMBER.fullmatch(name) if not name.rpartition("/")[2].startswith("._") else None
    return (match["key"], match["suffix"].lower()) if match else None


def expand_shards(source: str | Path | Sequence[str | Path], *, allow_pipe: bool = False) -> list[str]:
    """Expand a recipe's shard setting into a list of paths and URLs.

    Args:
        source: A folder, a tar, a glob, a brace expansion such as "s3://bucket/shard-{000000..000063}.tar", or a list
            of these.
        allow_pipe: Whether "pipe:COMMAND" may be used, which runs the command in a shell.

    Returns:
        Paths and URLs; those of a folder or glob are sorted.

    Raises:
        UserError: A shard is a command that is not allowed, or a folder holds no tars or is not finished.
    """
    if not isinstance(source, str | Path):
        return [shard for part in source for shard in expand_shards(part, allow_pipe=allow_pipe)]
    text = str(source)
    if text.startswith("pipe:"):
        if not allow_pipe:
            raise UserError(f"the shard {text!r} is a command; set allow_pipe to true only if you trust the recipe.")
        return [text]
    if is_url(text):
        return list(webdataset.shardlists.expand_urls(text))
    if Path(text).is_dir():
        require_finished(Path(text))
        found = sorted(str(path) for path in Path(text).glob("*.tar"))
        if not found:
            raise UserError(f"the folder {text} holds no .tar shards; make some with `divot data toy` or `pack`.")
        return found
    # A path that exists is taken literally, even if it contains magic characters.
    parts = [text] if Path(text).exists() else list(webdataset.shardlists.expand_urls(text))
    return [shard for part in parts for shard in _expand_glob(part)]


def require_finished(folder: Path) -> None:
    """Refuse a folder of shards whose writing was interrupted, or still goes on: most samples may be missing.

    Raises:
        UserError: The folder has the index of unfinished shards.
    """
    if (folder / UNFINISHED_INDEX).is_file():
        raise UserError(
            f"the shards in {folder} are not finished ({UNFINISHED_INDEX} is there): writing them was interrupted, or "
            f"still goes on\nrun the command that writes them again; to use those that are there, give {folder}/*.tar"
        )


def _expand_glob(pattern: str) -> list[str]:
    if not globbing.has_magic(pattern) or Path(pattern).exists():
        return [pattern]
    found = sorted(globbing.glob(pattern))
    if not found:
        raise UserError(f"no shard matches {pattern!r}; look at the path.")
    return found


def is_url(shard: str) -> bool:
    """Return whether a shard's name is a URL and not a path."""
    return "://" in shard


def open_shard(shard: str, *, allow_pipe: bool = False) -> BinaryIO:
    """Open a shard as a stream of bytes.

    Local files are opened directly; URLs through fsspec, or through webdataset's opener where fsspec does not know the
    scheme.

    Raises:
        ShardError: It cannot be opened.
    """
    if shard.startswith("pipe:") and not allow_pipe:
        raise UserError(f"the shard {shard!r} is a command; set allow_pipe to true only if you trust the recipe.")
    try:
        if not is_url(shard) and not shard.startswith("pipe:"):
            return Path(shard).open("rb")
        scheme = shard.split("://")[0]
        if scheme in fsspec.available_protocols():
            return cast(BinaryIO, fsspec.open(shard, "rb").open())
        if re.search(r"[\s'\"`$;|&<>\\]", shard) and not shard.startswith("pipe:"):
            raise ShardError("characters that a shell would interpret")  # webdataset's openers run shell commands
        return cast(BinaryIO, webdataset.gopen(shard, "rb"))
    except ShardError:
        raise
    except FileNotFoundError as error:
        raise ShardError("it does not exist", "missing_shard") from error
    except Exception as error:  # openers of many libraries, each with its own exceptions
        raise ShardError(f"it cannot be opened ({first_line(error)})") from error
