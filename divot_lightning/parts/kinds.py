"""The kinds of parts, each with its registry. This module does not import torch."""

from typing import TYPE_CHECKING, Any

from divot_lightning.errors import UserError
from divot_lightning.parts.registry import Registry

if TYPE_CHECKING:
    from divot_lightning.parts.benchmarks import Benchmark
    from divot_lightning.parts.heads import GenerationHead
    from divot_lightning.parts.metrics import BenchmarkMetric
    from divot_lightning.parts.optimizers import TrainingOptimizer

HEADS: "Registry[GenerationHead]" = Registry(
    "heads", "head", "head", "divot_lightning.parts.heads.GenerationHead", ("hidden_dim", "feature_dim")
)

BENCHMARKS: "Registry[Benchmark]" = Registry(
    "benchmarks", "benchmark", "benchmark", "divot_lightning.parts.benchmarks.Benchmark"
)
METRICS: "Registry[BenchmarkMetric]" = Registry(
    "metrics", "metric", "metric", "divot_lightning.parts.metrics.BenchmarkMetric"
)
OPTIMIZERS: "Registry[TrainingOptimizer]" = Registry(
    "optimizers", "optimizer", "optimizer", "divot_lightning.parts.optimizers.TrainingOptimizer"
)

_ALL: tuple[Registry[Any], ...] = (HEADS, BENCHMARKS, METRICS, OPTIMIZERS)

REGISTRIES: dict[str, Registry[Any]] = {registry.kind: registry for registry in _ALL}
"""Every registry by its kind."""


def find_registry(kind: str) -> Registry[Any]:
    """Return the registry of a kind.

    Raises:
        UserError: There is no such kind.
    """
    if kind not in REGISTRIES:
        raise UserError(f"there is no kind of part {kind!r}; kinds: {', '.join(REGISTRIES)}")
    return REGISTRIES[kind]
