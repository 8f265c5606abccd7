"""Write result files that several processes may write at the same time. No torch in here."""

import uuid
from pathlib import Path

from divot_lightning.io.files import write_atomically


def write_result(path: Path, text: str) -> None:
    """Write a file that appears whole or not at all, also when other processes write the same file meanwhile.

    The trials of an ablation may run side by side, and each of them writes table and report when it ends. Two writers
    must not share the name of their unfinished file, so each writes under a name of its own and renames it.

    Args:
        path: What is written.
        text: Its content.
    """
    own = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    write_atomically(own, text)
    own.replace(path)
