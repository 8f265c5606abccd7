"""Find what `divot export` writes: the components of a finished run, or of a checkpoint."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from torch import nn

from divot_lightning.checkpoint.folders import CHECKPOINTS, checkpoint_step, newest_checkpoint
from divot_lightning.checkpoint.manifest import require_manifest
from divot_lightning.checkpoint.run_components import component_names, find_component
from divot_lightning.errors import UserError
from divot_lightning.training.run_folder import CONFIG, FINISHED, describe, require_run
from divot_lightning.training.runs import load_stage


class ExportSource(NamedTuple):
    """What is exported.

    Attributes:
        run: The run folder.
        description: Which weights of it, in words.
        components: By name, folders of components, or modules with the weights of a checkpoint.
    """

    run: Path
    description: str
    components: dict[str, Path | nn.Module]


def find_source(path: str | Path, names: Sequence[str] = ()) -> ExportSource:
    """Find the components of a finished run, of a folder of components, or of a checkpoint.

    Args:
        path: Run folder, or a folder `checkpoints/step_...` of it; sharded checkpoints too.
        names: Components to export; all by default.

    Raises:
        UserError: There is no such run or component, the run has not finished, or the checkpoint does not fit.
    """
    path = Path(path)
    if path.parent.name == CHECKPOINTS:
        return _of_checkpoint(path, names)
    if (path / CONFIG).is_file() and not (path / FINISHED).is_file() and not component_names(path):
        newest = newest_checkpoint(path)
        advice = f"export its newest checkpoint: divot export {newest} --to FOLDER\n" if newest else ""
        raise UserError(f"{path} has not finished ({describe(path)})\n{advice}or finish it: divot resume {path}")
    chosen = names or component_names(path) or ["tokenizer"]
    return ExportSource(path, "the weights at its end", {name: find_component(path, name) for name in chosen})


def _of_checkpoint(checkpoint: Path, names: Sequence[str]) -> ExportSource:
    run = checkpoint.parent.parent
    require_run(run)
    require_manifest(checkpoint)
    stage = load_stage(run, checkpoint)
    found: dict[str, Path | nn.Module] = {**stage.used_components(), **stage.exported_components()}
    chosen = _choose(found, names or sorted(found), checkpoint)
    return ExportSource(run, f"the weights after step {checkpoint_step(checkpoint)}", chosen)


def _choose(
    found: Mapping[str, Path | nn.Module], names: Sequence[str], checkpoint: Path
) -> dict[str, Path | nn.Module]:
    missing = [name for name in names if name not in found]
    if missing:
        raise UserError(f"{checkpoint} has no {missing[0]}; it has: {', '.join(sorted(found))}")
    return {name: found[name] for name in names}
