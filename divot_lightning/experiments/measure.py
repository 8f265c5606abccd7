"""Run the evaluations of a step in one process.

Run: `python -m divot_lightning.experiments.measure '[{"benchmark": "toy-captions", "run": ..., "output": ...}]'`

Each entry is a call of `divot evaluate`, with the settings of that command.
"""

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from jsonargparse import ArgumentError, ArgumentParser

from divot_lightning.errors import UserError
from divot_lightning.evaluation.chosen_benchmark import find_benchmark
from divot_lightning.evaluation.config import EvaluationConfig
from divot_lightning.evaluation.run import evaluate
from divot_lightning.training.messages import condense


def prepare(settings: Mapping[str, Any]) -> Callable[[], object]:
    """Check the settings of an evaluation, and return what runs it.

    Args:
        settings: `run`, and the settings of `EvaluationConfig`; `name` is not used.

    Raises:
        UserError: The benchmark or a setting is unknown or missing.
    """
    given = {key: value for key, value in settings.items() if key not in ("name", "run")}
    if "run" not in settings:
        raise UserError(f"{settings['benchmark']} lacks the setting run")
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(EvaluationConfig, fail_untyped=False)
    try:
        found = parser.instantiate(parser.parse_object(given))
    except ArgumentError as error:
        raise UserError(condense(str(error), parser)) from error
    config = EvaluationConfig(**{name: found[name] for name in EvaluationConfig.__dataclass_fields__})
    find_benchmark(config)
    return partial(evaluate, settings["run"], config)


def main(argv: Sequence[str]) -> int:
    """Run evaluations.

    Args:
        argv: One word, the settings of all evaluations as a JSON list.

    Returns:
        The exit status.
    """
    torch.set_num_threads(1)
    try:
        for measurement in [prepare(settings) for settings in json.loads(argv[0])]:
            with torch.no_grad():
                measurement()
    except UserError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
