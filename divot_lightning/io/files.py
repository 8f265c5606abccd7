"""Files that appear whole or not at all, and hashes. No torch in here."""

import hashlib
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def atomic_file(path: str | Path) -> Iterator[Path]:
    """Yield a file to write to, which replaces `path` at the end of the block; after an error it is removed.

    Several processes and machines may write the same path: each writes a file of its own, and the last one to finish
    wins. A process that is killed within the block leaves its file, `.<name>.<random>.unfinished`.

    Args:
        path: The file to write; a file of that name is replaced.

    Yields:
        Another name in the same folder, so that the last step is a renaming.
    """
    path = Path(path)
    unfinished = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.unfinished")
    try:
        yield unfinished
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def write_atomically(path: str | Path, content: str | bytes, *, durable: bool = False) -> None:
    """Write a file that appears whole or not at all.

    Args:
        path: The file to write.
        content: Text, written as UTF-8, or bytes.
        durable: Whether the content is on the disk when this returns, so that it survives a crash of the machine.
    """
    with atomic_file(path) as unfinished, unfinished.open("wb") as file:
        file.write(content.encode() if isinstance(content, str) else content)
        if durable:
            file.flush()
            os.fsync(file.fileno())


def text_sha256(text: str) -> str:
    """Return the SHA-256 of a text, in hexadecimal; also of a path whose bytes are no UTF-8.

    >>> text_sha256("a")[:16]
    'ca978112ca1bbdca'
    """
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()


def file_sha256(path: str | Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
