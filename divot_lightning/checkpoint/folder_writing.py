"""A checkpoint folder: every tensor under the name of its parameter, whatever the number of processes and ZeRO stage.

    step_00000200/
      weights-00000.safetensors ...    trained parameters, buffers, frozen parameters that came from no folder
      optimizer-00000.safetensors ...  "<parameter>/<state>", such as "layer.weight/exp_avg"
      ema-00000.safetensors ...        averaged parameters, if the run averages them
      trainer.pt                       loops, schedules, callbacks, data position, random states; plain data only
      provenance.json                  where frozen parameters came from, and hashes of their contents
      manifest.json                    sizes and hashes of all files

Each process writes about the same number of bytes, one tensor at a time, and reads only the tensors that it holds.
A folder is written under a temporary name and renamed when it is whole.
"""

import io
import json
import shutil
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from divot_lightning.checkpoint.manifest import FileRecord, sync_folder, write_manifest
from divot_lightning.checkpoint.module_tensors import TensorAccess
from divot_lightning.checkpoint.provenance import PROVENANCE
from divot_lightning.checkpoint.tensor_file import TensorFile, TensorSpec
from divot_lightning.distributed.ranks import Ranks
from divot_lightning.errors import UserError, first_line
from divot_lightning.io.files import file_sha256, write_atomically

TRAINER = "trainer.pt"
UNFINISHED = ".{}.unfinished"


class Entry(NamedTuple):
    """A tensor to be stored.

    Attributes:
        group: First part of the name of its file.
        key: Its name in the file.
        spec: Its dtype and shape.
        read: Called with the number of a rank, returns the tensor on that rank; all ranks call it together.
    """

    group: str
    key: str
    spec: TensorSpec
    read: Callable[[int], Tensor | None]


class CheckpointNotWritten(UserError):
    """A checkpoint could not be written, as on a full disk; nothing of it is left, and earlier ones are unchanged."""


def stage_entries(access: TensorAccess) -> list[Entry]:
    """List the tensors of a stage and of its optimizers."""
    entries = [
        Entry("weights", name, access.spec(value), partial(access.read, value))
        for name, value in access.tensors.weights.items()
    ]
    for name, entry in access.optimizer_entries().items():
        for key, spec in entry.states.items():
            entries.append(Entry("optimizer", f"{name}/{key}", spec, partial(access.read_state, name, key)))
    return entries


def save_folder(
    folder: Path,
    entries: Sequence[Entry],
    *,
    state: dict[str, Any],
    provenance: dict[str, Any],
    about: dict[str, Any],
    ranks: Ranks,
    writers: int | None = None,
) -> None:
    """Write a checkpoint; all ranks call it together.

    Args:
        folder: Where it appears when it is whole.
        entries: Its tensors, the same on all ranks.
        state: Content of `trainer.pt`; that of the first rank is used.
        provenance: Content of `provenance.json`; that of the first rank is used.
        about: Further entries of the manifest.
        ranks: The processes.
        writers: How many of them write tensors, the first ones; by default all.

    Raises:
        CheckpointNotWritten: On all ranks, if one of them could not write.
        UserError: `state` holds something else than plain data.
    """
    unfinished = folder.with_name(UNFINISHED.format(folder.name))
    _together(ranks, unfinished, lambda: _start(unfinished) if ranks.rank == 0 else None)
    files = write_tensors(unfinished, entries, ranks, writers or ranks.size)
    every = [item for part in ranks.gather(files) for item in part.items()]
    _raise_failures(unfinished, [value for _, value in every if isinstance(value, OSError)], ranks)
    records = {name: value for name, value in every if isinstance(value, FileRecord)}

    def finish() -> None:
        records[TRAINER] = _write(unfinished / TRAINER, plain_bytes(state))
        records[PROVENANCE] = _write(unfinished / PROVENANCE, (json.dumps(provenance, indent=1) + "\n").encode())
        write_manifest(unfinished, records, about)
        _put_in_place(unfinished, folder)

    _together(ranks, unfinished, lambda: finish() if ranks.rank == 0 else None)


def write_tensors(
    folder: Path, entries: Sequence[Entry], ranks: Ranks, writers: int
) -> dict[str, FileRecord | OSError]:
    """Write this rank's part of the tensors, and take part in gathering those of the others.

    Returns:
        Records of this rank's files by name, or the error of a file.
    """
    owners = balance_by_size([entry.spec.bytes for entry in entries], writers)
    files: dict[str, FileRecord | OSError] = {}
    for group in dict.fromkeys(entry.group for entry in entries):
        members = [(entry, owner) for entry, owner in zip(entries, owners, strict=True) if entry.group == group]
        members.sort(key=lambda member: -member[0].spec.dtype.itemsize)
        specs = {entry.key: entry.spec for entry, owner in members if owner == ranks.rank}
        name = f"{group}-{ranks.rank:05d}.safetensors"
        file = TensorFile(folder / name, specs) if specs else None
        for entry, owner in members:
            value = entry.read(owner)
            if owner == ranks.rank:
                assert file is not None
                assert value is not None
                file.write(entry.key, value)
        if file is not None:
            files[name] = file.close()
    return files


def balance_by_size(sizes: Sequence[int], num_ranks: int) -> list[int]:
    """Assign each tensor to a rank, so that all write about as much: the largest first, to the rank with least.

    >>> balance_by_size([4, 1, 3, 2], 2)
    [0, 0, 1, 1]
    """
    loads = [0] * num_ranks
    owners = [0] * len(sizes)
    for index in sorted(range(len(sizes)), key=lambda index: -sizes[index]):
        owner = loads.index(min(loads))
        owners[index] = owner
        loads[owner] += sizes[index]
    return owners


def plain_bytes(state: dict[str, Any]) -> bytes:
    """Serialise plain data, which can be read again without running code.

    Raises:
        UserError: An entry holds anything else; the message names it.
    """
    for name, value in state.items():
        buffer = io.BytesIO()
        torch.save(value, buffer)
        buffer.seek(0)
        try:
            torch.load(buffer, weights_only=True)
        except Exception as error:
            raise UserError(
                f"the state of {name!r} cannot be kept in a checkpoint: {first_line(error)}\n"
                "numbers, text, lists, dictionaries and tensors can; return only those from state_dict()"
            ) from error
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


def _start(unfinished: Path) -> None:
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)


def _write(file: Path, content: bytes) -> FileRecord:
    write_atomically(file, content, durable=True)
    return FileRecord(len(content), file_sha256(file))


def _put_in_place(unfinished: Path, folder: Path) -> None:
    if folder.exists():
        # Only a run that was set back by hand saves a step again. A folder cannot be replaced in one operation.
        replaced = folder.with_name(f".{folder.name}.removing")
        shutil.rmtree(replaced, ignore_errors=True)
        folder.rename(replaced)
        unfinished.rename(folder)
        shutil.rmtree(replaced, ignore_errors=True)
    else:
        unfinished.rename(folder)
    sync_folder(folder.parent)


def _together(ranks: Ranks, unfinished: Path, action: Callable[[], None]) -> None:
    """Run an action on all ranks; raise an error of one of them on all."""
    failure: Exception | None = None
    try:
        action()
    except (OSError, UserError) as error:
        failure = error
    failures = [found for found in ranks.gather(failure) if found is not None]
    if failures and not isinstance(failures[0], OSError):
        _discard(unfinished, ranks)
        raise failures[0]
    _raise_failures(unfinished, failures, ranks)


def _raise_failures(unfinished: Path, failures: Sequence[OSError], ranks: Ranks) -> None:
    if failures:
        _discard(unfinished, ranks)
        raise CheckpointNotWritten(
            f"a checkpoint could not be written into {unfinished.parent}: {failures[0]}\n"
            "its files are removed; checkpoints before it are untouched"
        )


def _discard(unfinished: Path, ranks: Ranks) -> None:
    if ranks.rank == 0:
        shutil.rmtree(unfinished, ignore_errors=True)
