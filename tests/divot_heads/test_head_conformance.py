from divot_heads.autoregressive_flow import AutoregressiveFlowHead
from divot_heads.diffusion import DiffusionHead
from divot_heads.energy import EnergyHead
from divot_heads.flow_clip import FlowClipHead
from divot_heads.flow_token import FlowTokenHead
from divot_heads.gmm import GMMHead
from divot_heads.meanflow import MeanFlowHead
from divot_heads.mse import MSEHead
from divot_lightning.parts.heads import GenerationHead
from divot_lightning.testing import HeadConformance


class Quick(HeadConformance):
    """Half the steps at three times the rate, by which these heads learn as well."""

    learning_steps = 150
    learning_rate = 1e-2


class TestMSEHead(Quick):
    def make_head(self, hidden_dim: int, feature_dim: int) -> GenerationHead:
        return MSEHead(hidden_dim, feature_dim)


class TestGMMHead(Quick):
    def make_head(self, hidden_dim: int, feature_dim: int) -> GenerationHead:
        return GMMHead(hidden_dim, feature_dim, num_components=3, variance_scale=1.0)


class TestDiffusionHeadPredictingNoise(Quick):
    def make_head(self, hidden_dim: int, feature_dim: int) -> GenerationHead:
        return DiffusionHead(hidden_dim, feature_dim, prediction="epsilon", width=32, depth=2, sampling_steps=20)


class TestDiffusionHeadPredictingVelocity(Quick):
    def make_head(self, hidden_dim: int, feature_dim: int) -> GenerationHead:
        return DiffusionHead(hidden_dim, feature_dim, prediction="v", width=32, depth=2, sampling_steps=20)


class TestDiffusionHeadWithConditionDropout(Quick):
    def make_head(self, hidden_dim: int, feature_dim: int) -> GenerationHead:
        return DiffusionHead(hidden_dim, feature_dim, width=32, depth=2, sampling_steps=20, condition_dropout=0.1)


class TestGMMHeadWithLowRankCovariances(Quick):
    def make_head(self, hidden_dim: int, feature_dim: int) -> GenerationHead:
        return GMMHead(hidden_dim, feature_dim, num_components=3, variance_scale=1.0, covariance_rank=2)


class TestGMMHeadWithASharedComponent(Quick):
    def make_head(self, hidden_dim: int, feature_dim: int) -> GenerationHead:
        return GMMHead(hidden_dim, feature_dim, num_components=3, variance_scale=1.0, shared_component=True)


class TestFlowTokenHead(Quick):
    def make_head(self, hidden_dim: int, feature_dim: int) -> GenerationHead:
        return FlowTokenHead(hidden_dim, feature_dim, width=32, depth=2, sampling_steps=10)


class TestFlowClipHead(Quick):
    def make_head(self, hidden_dim: int, feature_dim: int) -> GenerationHead:
        return FlowClipHead(hidden_dim, feature_dim, width=32, depth=2, num_attention_heads=2, sampling_steps=10)


class TestEnergyHead(Quick):
    def make_head(self, hidden_dim: int, feature_dim: int) -> GenerationHead:
        return EnergyHead(hidden_dim, feature_dim, width=32, depth=2)


class TestMeanFlowHead(Quick):
    learning_steps = 300  # with half of them, samples spread 0.72 times as widely as the targets, near the bound

    def make_head(self, hidden_dim: int, feature_dim: int) -> GenerationHead:
        # More and longer intervals than in the paper: few steps would hardly reach the one interval of sampling.
        return MeanFlowHead(
            hidden_dim, feature_dim, width=32, depth=2, interval_fraction=0.75, time_mean=0.0, time_std=2.0
        )


class TestAutoregressiveFlowHead(Quick):
    def make_head(self, hidden_dim: int, feature_dim: int) -> GenerationHead:
        return AutoregressiveFlowHead(
            hidden_dim, feature_dim, width=32, depth=1, num_attention_heads=2, num_couplings=4
        )
