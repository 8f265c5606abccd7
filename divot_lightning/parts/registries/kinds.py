"""The kinds of parts, each with its registry. This module does not import torch."""

from typing import TYPE_CHECKING, Any

from divot_lightning.errors import UserError, did_you_mean
from divot_lightning.parts.registries.registry import Registry

if TYPE_CHECKING:
    from divot_lightning.parts.benchmarks import Benchmark
    from divot_lightning.parts.denoisers import Denoiser
    from divot_lightning.parts.heads import GenerationHead
    from divot_lightning.parts.latents import Latents
    from divot_lightning.parts.metrics import BenchmarkMetric
    from divot_lightning.parts.objectives import Objective
    from divot_lightning.parts.optimizers import TrainingOptimizer
    from divot_lightning.parts.sources import Source
    from divot_lightning.parts.tasks import Task
    from divot_lightning.parts.vision_encoders import VisionEncoder

VISION_ENCODERS: "Registry[VisionEncoder]" = Registry(
    "vision_encoders", "vision encoder", "vision", "divot_lightning.parts.vision_encoders.VisionEncoder"
)

LATENTS: "Registry[Latents]" = Registry("latents", "latents", "latents", "divot_lightning.parts.latents.Latents")

DENOISERS: "Registry[Denoiser]" = Registry(
    "denoisers", "denoiser", "denoiser", "divot_lightning.parts.denoisers.Denoiser"
)

OBJECTIVES: "Registry[Objective]" = Registry(
    "objectives", "objective", "objective", "divot_lightning.parts.objectives.Objective"
)

HEADS: "Registry[GenerationHead]" = Registry("heads", "head", "head", "divot_lightning.parts.heads.GenerationHead")

SOURCES: "Registry[Source]" = Registry("sources", "source", "source", "divot_lightning.parts.sources.Source")

TASKS: "Registry[Task]" = Registry("tasks", "task", "tasks", "divot_lightning.parts.tasks.Task")

BENCHMARKS: "Registry[Benchmark]" = Registry(
    "benchmarks", "benchmark", "benchmark", "divot_lightning.parts.benchmarks.Benchmark"
)

METRICS: "Registry[BenchmarkMetric]" = Registry(
    "metrics", "metric", "benchmark_metric", "divot_lightning.parts.metrics.BenchmarkMetric"
)

OPTIMIZERS: "Registry[TrainingOptimizer]" = Registry(
    "optimizers", "optimizer", "optimizer", "divot_lightning.parts.optimizers.TrainingOptimizer"
)

_ALL: tuple[Registry[Any], ...] = (
    VISION_ENCODERS,
    LATENTS,
    DENOISERS,
    OBJECTIVES,
    HEADS,
    SOURCES,
    TASKS,
    BENCHMARKS,
    METRICS,
    OPTIMIZERS,
)

REGISTRIES: dict[str, Registry[Any]] = {registry.kind: registry for registry in _ALL}
"""Every registry by its kind."""


def find_registry(kind: str) -> Registry[Any]:
    """Return the registry of a kind.

    Raises:
        UserError: There is no such kind.
    """
    if kind not in REGISTRIES:
        hint = did_you_mean(kind, REGISTRIES)
        raise UserError(f"there is no kind of part {kind!r}; kinds: {', '.join(REGISTRIES)}.{hint}")
    return REGISTRIES[kind]
