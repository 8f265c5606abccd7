from divot_heads.diffusion import DiffusionHead
from divot_heads.gmm import GMMHead
from divot_heads.mse import MSEHead
from divot_lightning.parts.heads import GenerationHead
from divot_lightning.testing import HeadConformance


class TestMSEHead(HeadConformance):
    def make_head(self, hidden_dim: int, feature_dim: int) -> GenerationHead:
        return MSEHead(hidden_dim, feature_dim)


class TestGMMHead(HeadConformance):
    def make_head(self, hidden_dim: int, feature_dim: int) -> GenerationHead:
        return GMMHead(hidden_dim, feature_dim, num_components=3, variance_scale=1.0)


class TestDiffusionHeadPredictingNoise(HeadConformance):
    def make_head(self, hidden_dim: int, feature_dim: int) -> GenerationHead:
        return DiffusionHead(hidden_dim, feature_dim, prediction="epsilon", width=32, depth=2, sampling_steps=20)


class TestDiffusionHeadPredictingVelocity(HeadConformance):
    def make_head(self, hidden_dim: int, feature_dim: int) -> GenerationHead:
        return DiffusionHead(hidden_dim, feature_dim, prediction="v", width=32, depth=2, sampling_steps=20)
