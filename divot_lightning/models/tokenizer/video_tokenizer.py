"""The video tokenizer: a clip of a few frames becomes a short sequence of continuous tokens.

Letters: B batch, F frames, T steps in time (F, or fewer if the vision encoder merges frames), P patches per step,
G pooled positions per step, L = T * G, Q tokens per clip, C channels, H W pixels.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from divot_lightning.errors import UserError, require_at_least
from divot_lightning.models.perceiver import PerceiverResampler
from divot_lightning.models.positions import init_with_sin_cos
from divot_lightning.models.tokenizer.bottleneck import BottleneckConfig, TokenBottleneck
from divot_lightning.models.tokenizer.spatiotemporal_transformer import SpatiotemporalTransformer
from divot_lightning.models.tokenizer.temporal_transformer import TemporalInit, TemporalTransformer
from divot_lightning.models.transformer_block import BLOCK_NORM_EPS, check_heads
from divot_lightning.parts.registries.kinds import VISION_ENCODERS
from divot_lightning.parts.sparse_frames import sparse_frame_indices
from divot_lightning.parts.vision_encoders import VisionEncoder, VisionSpec, require_whole_steps

TokenSource = Literal["perceiver", "spatiotemporal"]
PositionInit = Literal["random", "sin_cos"]


@dataclass(kw_only=True)
class TokenizerConfig:
    """Sizes of a video tokenizer. The defaults are the paper's (Divot appendix A.1, arXiv:2412.04432).

    Attributes:
        vision: The vision encoder that turns frames into patches: a class or another callable that builds it, or a
            dictionary with `class_path` and `init_args`. After the tokenizer has been built, what it was built from.
        num_frames: Sparse frames read from a clip; 5 of 16 at 8 fps cover 2 seconds. A multiple of the frames that the
            vision encoder turns into one step in time.
        temporal_width: Channels of the temporal transformer; a multiple of ``temporal_heads``.
        temporal_layers: Blocks of the temporal transformer.
        temporal_heads: Attention heads of the temporal transformer.
        temporal_init: Initial weights of the temporal transformer. "zero" is the released code's choice: the input
            projection is the identity; positions, last layers of the residual branches and output projection are zero.
            The stage has no residual connection around it, so all clips have the same tokens at first, and the
            LayerNorm after it increases the gradient of the first step about a thousandfold: train with gradient
            clipping. "random" is torch's default, for training from scratch: tokens depend on the clip from the start.
        position_init: Initial values of the learned positions. "random" is small and random, as released. "sin_cos" is
            for a small tokenizer that is trained from scratch in minutes; see `init_with_sin_cos`. A trained
            vision encoder then sets initial weights of its own, see `VisionEncoder.init_from_scratch`.
        pool_size: Height and width of the grid that the patches of each step are averaged to; at most the vision
            encoder's own grid, and equal to it for no pooling.
        spatiotemporal_width: Channels of the spatio-temporal transformer; a multiple of ``spatiotemporal_heads``.
        spatiotemporal_layers: Blocks of the spatio-temporal transformer.
        spatiotemporal_heads: Attention heads of the spatio-temporal transformer.
        token_source: Where the tokens are taken from. "perceiver": the output of the resampler, ``num_tokens`` tokens
            without a position. "spatiotemporal": one token for each step and grid position, mapped to ``token_dim`` by
            a linear layer and a LayerNorm (the paper's ablation, Table 8); there is no resampler then.
        num_tokens: Tokens per clip from the resampler.
        resampler_layers: Layers of the resampler; its width is ``spatiotemporal_width``.
        resampler_heads: Attention heads of the resampler.
        resampler_head_dim: Channels of one attention head of the resampler.
        token_dim: Channels of a token.
        bottleneck: What is done to the tokens on their way to the de-tokenizer; nothing by default.
    """

    vision: Callable[[], VisionEncoder]
    num_frames: int = 5
    temporal_width: int = 768
    temporal_layers: int = 6
    temporal_heads: int = 12
    temporal_init: TemporalInit = "zero"
    position_init: PositionInit = "random"
    pool_size: int = 5
    spatiotemporal_width: int = 1024
    spatiotemporal_layers: int = 4
    spatiotemporal_heads: int = 8
    token_source: TokenSource = "perceiver"
    num_tokens: int = 64
    resampler_layers: int = 6
    resampler_heads: int = 16
    resampler_head_dim: int = 64
    token_dim: int = 256
    bottleneck: BottleneckConfig = field(default_factory=BottleneckConfig)

    def __post_init__(self) -> None:
        """Accept ``vision`` and ``bottleneck`` as dictionaries, such as those that ``asdict`` returns."""
        if isinstance(self.vision, dict):
            self.vision = _vision_of(self.vision)
        if isinstance(self.bottleneck, dict):
            self.bottleneck = BottleneckConfig(**self.bottleneck)

    @property
    def image_size(self) -> int:
        """Height and width, in pixels, that the vision encoder of a built tokenizer reads."""
        assert isinstance(self.vision, VisionSpec)
        return self.vision.image_size

    @functools.cached_property
    def frame_stride(self) -> int:
        """Frames that the vision encoder turns into one step in time."""
        if isinstance(self.vision, VisionSpec):
            return self.vision.frame_stride
        # Only the encoder itself can tell; on the meta device it takes no memory and reads no weights.
        with torch.random.fork_rng(devices=[]), torch.device("meta"):
            return self.vision().frame_stride

    @property
    def tokens_per_clip(self) -> int:
        """Number of tokens of one clip, also before the tokenizer is built."""
        if self.token_source == "perceiver":
            return self.num_tokens
        return self.num_frames // self.frame_stride * self.pool_size**2


def _vision_of(described: dict[str, Any]) -> Callable[[], VisionEncoder]:
    """Return what builds the encoder of a dictionary; only that of a component folder has facts beside the class."""
    if "frame_stride" in described:
        return VisionSpec(**described)
    if "class_path" not in described:
        raise UserError(f"tokenizer: vision={described} names no class; give {{class_path: clip, init_args: {{...}}}}")
    return functools.partial(VISION_ENCODERS.build, described["class_path"], described.get("init_args") or {})


def check_tokenizer_config(config: TokenizerConfig, vision: VisionEncoder) -> None:
    """Raise UserError if sizes do not fit together, or do not fit the vision encoder."""
    for name in ("num_frames", "temporal_layers", "spatiotemporal_layers", "token_dim"):
        require_at_least(1, "tokenizer: ", **{name: getattr(config, name)})
    require_whole_steps(config.num_frames, vision.frame_stride)
    if not 1 <= config.pool_size <= min(vision.grid):
        raise UserError(
            f"tokenizer: pool_size {config.pool_size} is not between 1 and {min(vision.grid)}; "
            f"the vision encoder has {vision.grid[0]} x {vision.grid[1]} patches"
        )
    check_heads("temporal transformer", config.temporal_width, config.temporal_heads)
    check_heads("spatio-temporal transformer", config.spatiotemporal_width, config.spatiotemporal_heads)
    if config.temporal_init not in ("zero", "random"):
        raise UserError(f"tokenizer: temporal_init {config.temporal_init!r} is unknown; choose 'zero' or 'random'")
    if config.position_init not in ("random", "sin_cos"):
        raise UserError(f"tokenizer: position_init {config.position_init!r} is unknown; choose 'random' or 'sin_cos'")
    if config.token_source not in ("perceiver", "spatiotemporal"):
        raise UserError(
            f"tokenizer: token_source {config.token_source!r} is unknown; choose 'perceiver' or 'spatiotemporal'"
        )


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
