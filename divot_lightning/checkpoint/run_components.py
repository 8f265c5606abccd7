"""The components of a run: those that it wrote, and those that it took over from earlier stages, with their hashes."""

import json
import os
from pathlib import Path

from divot_lightning.errors import UserError
from divot_lightning.io.component_files import CONFIG_FILE
from divot_lightning.io.files import file_sha256, text_sha256, write_atomically
from divot_lightning.models.weights import weight_paths

RECORD_FILE = "components.json"
"""Where the components come from that a run uses and does not train."""


def find_component(run: str | Path, name: str) -> Path:
    """Find a component of a run: one that it wrote, or one that it took over from an earlier stage.

    Args:
        run: A run folder, or the component folder itself.
        name: Such as `tokenizer`, `detokenizer`, `video_llm`.

    Returns:
        The component folder.

    Raises:
        UserError: There is no such run or component, or an earlier stage's weights have changed since.
    """
    run = Path(run)
    if (run / CONFIG_FILE).is_file():
        return run
    record = read_record(run)
    if (run / name / CONFIG_FILE).is_file():
        return _same(run, name, run / name, record[name]) if name in record else run / name
    if name in record:
        return _recorded(run, name, record[name])
    if not run.is_dir():
        raise UserError(f"there is no run folder {run}\nrun the stage that makes it, or correct the path")
    raise UserError(
        f"{run} has no {name}; it has: {', '.join(component_names(run)) or 'no component'}\n"
        "give the run folder of a finished stage that trains or uses one"
    )


def component_names(run: str | Path) -> list[str]:
    """Return the names of a run's components, of those too that it took over from an earlier stage."""
    # No name with a dot in front: those are left behind by a save that was cut off.
    return sorted({*read_record(run), *(file.parent.name for file in Path(run).glob(f"[!.]*/{CONFIG_FILE}"))})


def record_components(run: str | Path, used: dict[str, Path]) -> None:
    """Write into a run where the components come from that it uses and does not train, with their content hashes."""
    run = Path(run)
    record = {
        name: {
            "folder": os.path.relpath(folder.resolve(), run.resolve()),
            "absolute": str(folder.resolve()),
            "sha256": weights_sha256(folder),
        }
        for name, folder in used.items()
    }
    write_atomically(run / RECORD_FILE, json.dumps(record, indent=1) + "\n")


def read_record(run: str | Path) -> dict[str, dict[str, str]]:
    """Read what `record_components` wrote; empty if there is nothing.

    Raises:
        UserError: The record is damaged.
    """
    file = Path(run) / RECORD_FILE
    try:
        record = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
        for name, source in record.items():
            if not {"folder", "sha256"} <= {*source}:
                raise ValueError(f"{name} lacks its folder or its hash")
        return record
    except (ValueError, AttributeError, TypeError) as error:
        raise UserError(f"{file} is damaged: {error}\ncopy the run again, or run its stage again") from error


def weights_sha256(folder: str | Path) -> str:
    """Return the SHA-256 of a component's weights, in hexadecimal; of several files that of their names and hashes."""
    files = weight_paths(Path(folder))
    if len(files) == 1:
        return file_sha256(files[0])
    lines = [f"{file.relative_to(folder)} {file_sha256(file)}\n" for file in files]
    return text_sha256("".join(lines))


def _recorded(run: Path, name: str, source: dict[str, str]) -> Path:
    """Follow a record: from the run, so that runs can be moved together, or to where it was, if only the run moved."""
    # The recorded path starts at the run itself, which may have been reached through a link.
    beside = Path(os.path.normpath(run.resolve() / source["folder"]))
    folder = next((path for path in (beside, Path(source.get("absolute", beside))) if _has_weights(path)), None)
    if folder is None:
        raise UserError(
            f"{run} uses the {name} in {beside}, which is gone\n"
            "a run holds what it trained itself: move it together with the runs that it builds on,\n"
            f"or put a copy of that {name} folder, or a link to it, at {run / name}"
        )
    return _same(run, name, folder, source)


def _has_weights(folder: Path) -> bool:
    return all(file.is_file() for file in weight_paths(folder))


def _same(run: Path, name: str, folder: Path, source: dict[str, str]) -> Path:
    """Refuse other weights than the run was made with."""
    found = weights_sha256(folder) if _has_weights(folder) else "nothing"
    if found != source["sha256"]:
        raise UserError(
            f"{run} was made with another {name} than {folder} now holds\n"
            f"expected sha256 {source['sha256'][:16]}..., found {found[:16]}...; put the right one there, or run the "
            "stages after it again"
        )
    return folder
