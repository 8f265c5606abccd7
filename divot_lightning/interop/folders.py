"""Write the folders of an import: whole or not at all, with a list of what was used."""

import shutil
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from divot_lightning.checkpoint.components import new_component
from divot_lightning.errors import UserError
from divot_lightning.interop.conversion import convert, ignored_reasons
from divot_lightning.interop.released_keys import KeyTable
from divot_lightning.io.file_locks import writer_lock
from divot_lightning.io.output_files import make_folder, require_writable, writing_to


class Imported(NamedTuple):
    """What an import did.

    Attributes:
        folder: The folder that it wrote.
        parameters: Numbers in it.
        ignored: Why names of the file were not used -> number of names.
    """

    folder: Path
    parameters: int
    ignored: dict[str, int]


def require_new(folder: str | Path) -> Path:
    """Return a folder as a path; raise UserError if it exists or cannot be made."""
    if Path(folder).exists():
        raise UserError(f"{folder} exists, and nothing is overwritten\ngive a new folder, or remove that one")
    require_writable(folder)
    return Path(folder)


@contextmanager
def whole_folder(folder: str | Path) -> Generator[Path, None, None]:
    """Write a new folder elsewhere; it is moved into place at the end, and nothing of it is left after an error.

    Args:
        folder: Where it appears.

    Yields:
        Where to write it, beside that place; nothing is there yet.

    Raises:
        UserError: It exists, cannot be written, or another process writes it.
    """
    folder = require_new(folder)
    work = folder.with_name(f".{folder.name}.unfinished")
    with writing_to(folder.parent):
        make_folder(work)
        lock = writer_lock(work / "writer.lock")
        shutil.rmtree(work / folder.name, ignore_errors=True)  # by a process that was killed
        try:
            yield work / folder.name
            (work / folder.name).rename(folder)
        except SafetensorError as error:  # the library's own form of an OSError
            if "I/O error" not in str(error):
                raise
            raise UserError(f"{folder} cannot be written: {error}\nmake room, or choose another place") from error
        finally:
            shutil.rmtree(work, ignore_errors=True)
            lock.release()


def import_component(
    released: Mapping[str, Tensor],
    table: KeyTable,
    module: nn.Module,
    file: str | Path,
    folder: str | Path,
    *,
    keep_dtype: bool = False,
) -> Imported:
    """Convert released weights, and write a component folder with them.

    Args:
        released: Released name -> tensor.
        table: Names of the module.
        module: The module, without memory for its parameters.
        file: Where the weights come from, for messages.
        folder: Where to; it must not exist.
        keep_dtype: See `convert`.

    Raises:
        UserError: The weights do not fit, or the folder exists.
    """
    weights = _without_aliases(convert(released, table, module, file, keep_dtype=keep_dtype))
    with whole_folder(folder) as work, new_component(module, work) as weights_file:
        save_file(weights, weights_file)
    return Imported(Path(folder), count_numbers(weights), ignored_reasons(released, table))


def _without_aliases(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Keep one name of each tensor: tied weights are stored once, and loading fills all of their names."""
    first = {value.data_ptr(): name for name, value in reversed(list(weights.items()))}
    return {name: value for name, value in weights.items() if first[value.data_ptr()] == name}


def count_numbers(weights: Mapping[str, Tensor]) -> int:
    """Return how many numbers some tensors hold together."""
    return sum(value.numel() for value in weights.values())
