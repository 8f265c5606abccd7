"""The video tokenizer: a clip of a few frames becomes a short sequence of continuous tokens.

Letters: B batch, F frames, T steps in time (F, or fewer if the vision encoder merges frames), P patches per step,
G pooled positions per step, L = T * G, Q tokens per clip, C channels, H W pixels.
"""

from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional

from divot_lightning.errors import UserError
from divot_lightning.models.perceiver import PerceiverResampler
from divot_lightning.models.positions import init_with_sin_cos
from divot_lightning.models.tokenizer.bottleneck import TokenBottleneck
from divot_lightning.models.tokenizer.config import TokenizerConfig, check_tokenizer_config
from divot_lightning.models.tokenizer.spatiotemporal_transformer import SpatiotemporalTransformer
from divot_lightning.models.tokenizer.temporal_transformer import TemporalTransformer
from divot_lightning.models.transformer_block import BLOCK_NORM_EPS
from divot_lightning.parts.sparse_frames import sparse_frame_indices
from divot_lightning.parts.vision_encoders import VisionSpec


class VideoTokenizer(nn.Module):
    """Encode clips to tokens: vision encoder, temporal transformer, pooling, spatio-temporal transformer, resampler.

    In the attribute ``config``, ``vision`` is a ``VisionSpec`` that builds the encoder without the folder of pretrained
    weights, so config and weights are enough to build the tokenizer again.

    Args:
        config: Sizes of the tokenizer.
    """

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__()
        self.vision = config.vision()
        check_tokenizer_config(config, self.vision)
        self.config = config = replace(config, vision=VisionSpec.of(self.vision))
        num_steps = config.num_frames // self.vision.frame_stride
        width = config.spatiotemporal_width
        self.temporal = TemporalTransformer(
            self.vision.patch_dim,
            num_frames=num_steps,
            width=config.temporal_width,
            layers=config.temporal_layers,
            heads=config.temporal_heads,
            output_dim=width,
            init=config.temporal_init,
        )
        self.pooled_norm = nn.LayerNorm(width, eps=BLOCK_NORM_EPS)
        self.spatiotemporal = SpatiotemporalTransformer(
            width,
            num_frames=num_steps,
            num_positions=config.pool_size**2,
            layers=config.spatiotemporal_layers,
            heads=config.spatiotemporal_heads,
        )
        self.to_tokens = _token_layer(config)
        self.bottleneck = TokenBottleneck(config.bottleneck, config.token_dim)
        if config.position_init == "sin_cos":
            self._init_positions()

    def _init_positions(self) -> None:
        frames = [self.spatiotemporal.frame_positions, self.temporal.frame_positions]
        queries = [self.to_tokens.queries] if isinstance(self.to_tokens, PerceiverResampler) else []
        init_with_sin_cos(self.spatiotemporal.grid_positions, self.config.pool_size, [*frames, *queries])
        if not self.vision.frozen:
            self.vision.init_from_scratch()

    def select_frames(self, video_BF3HW: Tensor) -> Tensor:
        """Select the frames to encode, (B, num_frames, 3, H, W); frames 0, 4, 8, 12, 15 of 16 in the paper."""
        indices = sparse_frame_indices(video_BF3HW.shape[1], self.config.num_frames)
        return video_BF3HW[:, indices]

    def encode_patches(self, patches_BTPC: Tensor) -> Tensor:
        """Compute tokens (B, Q, token_dim) from the vision encoder's patch features (B, T, P, C), row by row."""
        x_BTPC = self.temporal(patches_BTPC)
        # Patches of a step as an image (B * T, C, rows, columns), to be pooled to (B * T, C, pool, pool).
        maps = x_BTPC.flatten(0, 1).transpose(1, 2).unflatten(2, self.vision.grid)
        pooled = functional.adaptive_avg_pool2d(maps, self.config.pool_size)
        pooled_BTGC = pooled.flatten(2).transpose(1, 2).unflatten(0, x_BTPC.shape[:2])
        return self.bottleneck(self.to_tokens(self.spatiotemporal(self.pooled_norm(pooled_BTGC))))

    @torch.no_grad()
    def null_tokens(self, height: int, width: int) -> Tensor:
        """Compute the tokens (Q, token_dim) of an all-zero, mid-grey clip: the unconditional branch of the guidance."""
        weight = next(self.parameters())
        return self(weight.new_zeros(1, self.config.num_frames, 3, height, width))[0]

    def forward(self, video_BF3HW: Tensor) -> Tensor:
        """Encode clips.

        Args:
            video_BF3HW: Float in [-1, 1]. F is ``num_frames`` (frames that are already selected) or more (all frames of
                a clip, of which ``select_frames`` selects). Any height and width; the vision encoder resizes
                frames.

        Returns:
            Tokens (B, Q, token_dim), float: LayerNorm outputs, or on a sphere (`BottleneckConfig`). Q is
            ``config.tokens_per_clip``.

        Raises:
            UserError: The video is not float.
        """
        if not video_BF3HW.is_floating_point():
            raise UserError(f"tokenizer: the video is {video_BF3HW.dtype}; it must be float in [-1, 1] (to_unit_range)")
        return self.encode_patches(self.vision(self.select_frames(video_BF3HW)))


def _token_layer(config: TokenizerConfig) -> nn.Module:
    if config.token_source == "spatiotemporal":
        return nn.Sequential(
            nn.Linear(config.spatiotemporal_width, config.token_dim),
            nn.LayerNorm(config.token_dim),
        )
    return PerceiverResampler(
        dim=config.spatiotemporal_width,
        depth=config.resampler_layers,
        dim_head=config.resampler_head_dim,
        heads=config.resampler_heads,
        num_queries=config.num_tokens,
        embedding_dim=config.spatiotemporal_width,
        output_dim=config.token_dim,
    )
