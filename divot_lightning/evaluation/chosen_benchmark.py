"""Build the benchmark that a config names, with the settings that it takes."""

import inspect
from typing import Any

from divot_lightning.errors import UserError
from divot_lightning.evaluation.config import EvaluationConfig
from divot_lightning.evaluation.config_checks import SUPPLIED, check_config, is_set, setting_of
from divot_lightning.io import renamed
from divot_lightning.parts.benchmarks import Benchmark
from divot_lightning.parts.registries.kinds import BENCHMARKS
from divot_lightning.parts.registries.registry import class_path


def find_benchmark(config: EvaluationConfig) -> tuple[Benchmark, str, str]:
    """Build the benchmark of a config.

    Returns:
        The benchmark, its name in scores, and the split.

    Raises:
        UserError: It is not installed or broken, has no such split, or a setting is wrong or without effect on it.
    """
    given: dict[str, Any] = config.benchmark if isinstance(config.benchmark, dict) else {"class_path": config.benchmark}
    named = str(given.get("class_path", ""))
    if named in renamed.BENCHMARKS:
        raise UserError(f"{named!r} is now {renamed.BENCHMARKS[named]}")
    path = BENCHMARKS.resolve(named)
    part_class = BENCHMARKS.import_class(path)
    name = _name(named, part_class)
    taken = inspect.signature(part_class.__init__).parameters
    idle = next((key for arg, key in SUPPLIED.items() if arg not in taken and is_set(config, key)), None)
    if idle:
        raise UserError(f"{idle} has no effect on {name}; leave it out")
    supplied: dict[str, Any] = {arg: setting_of(config, key) for arg, key in SUPPLIED.items() if arg in taken}
    own = given.get("init_args") or {}
    benchmark = BENCHMARKS.build(path, own, **{arg: value for arg, value in supplied.items() if arg not in own})
    if config.split is not None and config.split not in benchmark.splits:
        raise UserError(f"{name} has no split {config.split!r}; it has: {', '.join(benchmark.splits)}")
    check_config(config, benchmark, name)
    return benchmark, name, config.split or benchmark.splits[0]


def _name(given: str, part_class: type[Benchmark]) -> str:
    """Return the short name of a benchmark, for one that is not installed the name of its class."""
    installed = BENCHMARKS.installed()
    if any(part.name == given for part in installed):
        return given
    return next((part.name for part in installed if part.class_path == class_path(part_class)), part_class.__name__)
