"""Config of the video tokenizer."""

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import torch

from divot_lightning.errors import UserError, require_at_least, require_one_of
from divot_lightning.models.tokenizer.bottleneck import BottleneckConfig
from divot_lightning.models.tokenizer.temporal_transformer import TemporalInit
from divot_lightning.models.transformer_block import check_heads
from divot_lightning.parts.registries.kinds import VISION_ENCODERS
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
    require_one_of(get_args(TemporalInit), "tokenizer: ", temporal_init=config.temporal_init)
    require_one_of(get_args(PositionInit), "tokenizer: ", position_init=config.position_init)
    require_one_of(get_args(TokenSource), "tokenizer: ", token_source=config.token_source)
