"""The built-in optimizers keep the contract of an optimizer."""

from divot_lightning.testing.optimizer_conformance import OptimizerConformance
from divot_optimizers.adamw import AdamWOptimizer
from divot_optimizers.muon import MuonOptimizer


class TestAdamW(OptimizerConformance):
    def make_optimizer(self):
        return AdamWOptimizer(lr=0.02, warmup_steps=2)


class TestMuon(OptimizerConformance):
    def make_optimizer(self):
        return MuonOptimizer(lr=0.02, matrix_lr=0.02, warmup_steps=2)
