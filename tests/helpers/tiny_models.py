"""A tokenizer of 3 tokens and a de-tokenizer for them, both for clips of 32 x 32 pixels and built in a moment."""

from functools import partial

from divot_backbones.denoisers.video_dit import VideoDiT
from divot_backbones.latents.block_dct import BlockDCTLatents
from divot_backbones.objectives.ddim import VPrediction
from divot_backbones.vision.clip import ClipVision
from divot_lightning.models.detokenizer.config import DetokenizerConfig
from divot_lightning.models.detokenizer.sampling import SamplingConfig
from divot_lightning.models.detokenizer.video_detokenizer import VideoDetokenizer
from divot_lightning.models.tokenizer.config import TokenizerConfig
from divot_lightning.models.tokenizer.video_tokenizer import VideoTokenizer

SIZES = {"temporal_width": 8, "temporal_layers": 1, "temporal_heads": 2, "temporal_init": "random", "pool_size": 2}
SIZES |= {"spatiotemporal_width": 8, "spatiotemporal_layers": 1, "spatiotemporal_heads": 2, "num_tokens": 3}
SIZES |= {"resampler_layers": 1, "resampler_heads": 2, "resampler_head_dim": 4, "token_dim": 4}


def tiny_tokenizer() -> VideoTokenizer:
    """Build the tokenizer."""
    vision = partial(ClipVision, image_size=32, patch_size=16, width=8, layers=1, heads=2, frozen=False)
    return VideoTokenizer(TokenizerConfig(vision=vision, **SIZES))


def tiny_detokenizer(**sampling: float) -> VideoDetokenizer:
    """Build the de-tokenizer, which samples in 2 steps; its denoiser is the zero function."""
    config = DetokenizerConfig(
        latents=partial(BlockDCTLatents, scale=0.18215),
        denoiser=partial(VideoDiT, width=8, layers=1, heads=2, patch_frames=4),
        objective=VPrediction,
        sampling=SamplingConfig(steps=2, **sampling),
        size=32,
        num_tokens=3,
        token_dim=4,
    )
    return VideoDetokenizer(config)
