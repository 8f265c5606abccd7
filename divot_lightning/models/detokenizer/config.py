"""Config of the de-tokenizer. Letters as in `divot_lightning.models.detokenizer.video_detokenizer`."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from divot_lightning.errors import UserError
from divot_lightning.models.detokenizer.sampling import SamplingConfig
from divot_lightning.parts.denoisers import Denoiser
from divot_lightning.parts.latents import Latents
from divot_lightning.parts.objectives import Objective


@dataclass(frozen=True)
class ConditionResamplerConfig:
    """Config of the Perceiver between tokens and cross-attention; the defaults are the released ones.

    Attributes:
        num_queries: Condition tokens K.
        dim: Width inside.
        layers: Number of layers.
        heads: Attention heads.
        head_dim: Channels of a head.
        output_dim: Condition width E.
    """

    num_queries: int = 125
    dim: int = 1024
    layers: int = 6
    heads: int = 16
    head_dim: int = 64
    output_dim: int = 1024


@dataclass
class DetokenizerConfig:
    """Config of the de-tokenizer.

    Parts are held as factories, as recipes give them, or as `PartSpec` or the dictionary of one, as component folders
    do; see `divot_lightning.parts.part.build_part`.

    Attributes:
        latents: The latents that the diffusion works on.
        denoiser: The network; it is supplied with latent channels, frames and grid, and the condition's sizes.
        objective: What the network predicts, and how noise is added and removed.
        condition_resampler: Perceiver in front of the cross-attention; with None it attends to the tokens themselves.
        sampling: Defaults of `decode`.
        num_frames: Frames F of a clip; 16 at 8 per second in the paper.
        size: Height and width in pixels; 256 in the paper.
        num_tokens: Tokens Q of a clip; None takes the tokenizer's, and another number than the tokenizer's is refused.
        token_dim: Width C of a token; as `num_tokens`.
    """

    latents: Callable[[], Latents]
    denoiser: Callable[[int, int, tuple[int, int], int, int], Denoiser]
    objective: Callable[[], Objective]
    condition_resampler: ConditionResamplerConfig | None = None
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    num_frames: int = 16
    size: int = 256
    num_tokens: int | None = None
    token_dim: int | None = None

    def __post_init__(self) -> None:
        """Accept nested configs as the dictionaries that `asdict` returns."""
        self.condition_resampler = _restore(self.condition_resampler, ConditionResamplerConfig)
        self.sampling = _restore(self.sampling, SamplingConfig)

    def for_tokens(self, num_tokens: int, token_dim: int) -> "DetokenizerConfig":
        """Return this config with the sizes of a tokenizer's tokens.

        Raises:
            UserError: The config states other sizes.
        """
        derived = {"num_tokens": num_tokens, "token_dim": token_dim}
        for name, size in derived.items():
            if getattr(self, name) not in (None, size):
                raise UserError(
                    f"detokenizer.{name} is {getattr(self, name)}, and the tokenizer gives {num_tokens} tokens of "
                    f"width {token_dim}\nin a recipe leave detokenizer.{name} out, since it is derived; "
                    "of a run, take the de-tokenizer that was trained with this tokenizer"
                )
        return replace(self, **derived)  # type: ignore[arg-type]


def _restore(value: Any, config_class: type) -> Any:
    return config_class(**value) if isinstance(value, dict) else value
