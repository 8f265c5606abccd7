"""Run the measurements of a step in one process.

Run: `python -m divot_lightning.experiments.measure '[{"benchmark": "toy-captions", "run": ..., "output": ...}]'`

A benchmark is one of `divot evaluate`, with the settings of that command, or a measurement of the toy world that reads
no predictions; see `divot_lightning.experiments.toy_measurements`.
"""

import inspect
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jsonargparse import ArgumentError, ArgumentParser

from divot_lightning.errors import UserError
from divot_lightning.evaluation.chosen_benchmark import find_benchmark
from divot_lightning.evaluation.config import EvaluationConfig
from divot_lightning.evaluation.run import evaluate
from divot_lightning.experiments.toy_measurements import MEASUREMENTS
from divot_lightning.training.messages import condense


def prepare(settings: Mapping[str, Any]) -> Callable[[], object]:
    """Check the settings of a measurement, and return what runs it.

    Args:
        settings: `benchmark`, `output`, and the settings of the benchmark; `name` is not used.

    Raises:
        UserError: The benchmark or a setting is unknown or missing.
    """
    given = {key: value for key, value in settings.items() if key != "name"}
    if isinstance(given["benchmark"], dict) or given["benchmark"] not in MEASUREMENTS:
        return _evaluation(given)
    measurement = MEASUREMENTS[given.pop("benchmark")]
    output = Path(given.pop("output"))
    known = list(inspect.signature(measurement).parameters)[1:]
    if unknown := sorted(set(given) - set(known)):
        raise UserError(f"{settings['benchmark']} has no setting {', '.join(unknown)}; it has {', '.join(known)}")
    try:
        inspect.signature(measurement).bind(output, **given)
    except TypeError as error:
        raise UserError(f"{settings['benchmark']}: {error}; its settings are {', '.join(known)}") from error
    return partial(measurement, output, **given)


def _evaluation(given: dict[str, Any]) -> Callable[[], object]:
    if "run" not in given:
        raise UserError(f"{given['benchmark']} lacks the setting run")
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(EvaluationConfig, fail_untyped=False)
    run = given.pop("run")
    try:
        found = parser.instantiate(parser.parse_object(given))
    except ArgumentError as error:
        raise UserError(condense(str(error), parser)) from error
    config = EvaluationConfig(**{name: found[name] for name in EvaluationConfig.__dataclass_fields__})
    find_benchmark(config)
    return partial(evaluate, run, config)


def main(argv: Sequence[str]) -> int:
    """Run measurements.

    Args:
        argv: One word, the settings of all measurements as a JSON list.

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
