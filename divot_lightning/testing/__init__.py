"""Public test helpers for plug-in authors: head conformance, toy data, functions in several processes."""

from divot_lightning.testing.head_conformance import HeadConformance
from divot_lightning.testing.run_distributed import DistributedError, run_distributed

__all__ = ["DistributedError", "HeadConformance", "run_distributed"]
