"""Public test helpers for plug-in authors: conformance of parts, toy data, functions in several processes."""

from divot_lightning.testing.benchmark_conformance import BenchmarkConformance
from divot_lightning.testing.head_conformance import HeadConformance
from divot_lightning.testing.metric_conformance import MetricConformance
from divot_lightning.testing.optimizer_conformance import OptimizerConformance
from divot_lightning.testing.run_distributed import DistributedError, run_distributed
from divot_lightning.testing.source_conformance import SourceConformance
from divot_lightning.testing.task_conformance import TaskConformance
from divot_lightning.testing.vision_encoder_conformance import VisionEncoderConformance

__all__ = [
    "BenchmarkConformance",
    "DistributedError",
    "HeadConformance",
    "MetricConformance",
    "OptimizerConformance",
    "SourceConformance",
    "TaskConformance",
    "VisionEncoderConformance",
    "run_distributed",
]
