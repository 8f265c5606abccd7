"""`divot evaluate`: run a benchmark on a run, and write predictions and scores."""

import string
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from jsonargparse import ArgumentError, ArgumentParser

from divot_lightning.errors import UserError
from divot_lightning.evaluation.config import EvaluationConfig
from divot_lightning.io.quick_imports import quick_imports
from divot_lightning.parts.registries.kinds import BENCHMARKS
from divot_lightning.training.training_args import resolve_recipes

if TYPE_CHECKING:
    from divot_lightning.evaluation.scoring import EvaluationResult

DESCRIPTION = (
    "Evaluate a run on a benchmark: `divot evaluate RUN --benchmark mvbench --data FOLDER`, or with a recipe: "
    "`divot evaluate RUN --config evaluation/mvbench --data FOLDER`. Writes predictions.jsonl and scores.json. After a "
    "stop, the same command continues. Under torchrun the items are divided among the processes."
)


def parser() -> ArgumentParser:
    """Build the command's parser."""
    names = ", ".join(dict.fromkeys(part.name for part in BENCHMARKS.installed()))
    description = f"{DESCRIPTION} Installed benchmarks: {names}."
    parser = ArgumentParser(prog="divot evaluate", description=description, exit_on_error=False)
    parser.add_argument("run", type=str, help="run folder of the stage whose models are measured")
    parser.add_argument("--config", action="config", help="recipe with settings, such as evaluation/mvbench")
    parser.add_class_arguments(EvaluationConfig, fail_untyped=False)
    return parser


def main(argv: Sequence[str]) -> int:
    """Run the command with the words after `divot evaluate`, and return the exit status."""
    options = parser()
    try:
        given = options.instantiate(options.parse_args(resolve_recipes(list(argv))))
    except ArgumentError as error:
        from divot_lightning.training.messages import condense

        raise UserError(condense(str(error), options)) from error
    if not Path(given.run).is_dir():
        raise UserError(f"there is no run folder {given.run}")
    with quick_imports():
        from divot_lightning.evaluation.run import evaluate

    names = EvaluationConfig.__dataclass_fields__
    found = evaluate(given.run, EvaluationConfig(**{name: given[name] for name in names}))
    if found.scores:
        sys.stdout.write(shown(found))
    return 0


def shown(found: "EvaluationResult") -> str:
    """Return the printed text: warnings, scores (the benchmark's main score first), remarks, paths of the files."""
    from divot_lightning.evaluation.headline import fractions_of, warnings

    lines = warnings(found.scores)
    for number, score in enumerate(found.scores):
        fractions = [fractions_of(found.scores)] if number == 0 else []
        columns = [score.name, f"{score.value:.4f}", str(score.count), *filter(None, fractions)]
        lines.append("\t".join(columns))
    lines += [f"note: {remark}" for remark in found.remarks]
    if (file := found.submission) is not None:
        filled = f"{file.filled} ({file.filled / file.count:.1%}) of its {file.count} answers chose no option"
        lines.append(f"submission: {file.path}; {filled} and count as option {string.ascii_uppercase[file.option]}")
    lines.append(f"predictions and scores: {found.folder}")
    return "".join(f"{line}\n" for line in lines)
