"""DynamiCrafter's U-Net as a denoiser of the de-tokenizer."""

from typing import Any

from divot_backbones.denoisers.diffusers_denoiser import DiffusersDenoiser
from divot_backbones.denoisers.dynamicrafter.attention import check_split
from divot_backbones.denoisers.dynamicrafter.model import DynamiCrafterUNet
from divot_backbones.denoisers.video_models import VideoModel


def _whole_levels(config: Any) -> tuple[int, int, int]:
    """Return the frames, rows and columns by which latents must be divisible: rows and columns halve at each level."""
    cells = 2 ** (len(config.block_out_channels) - 1)
    return 1, cells, cells


class DynamiCrafter(DiffusersDenoiser):
    """The paper's denoiser: DynamiCrafter's video U-Net without its image input (Divot section 3.1.3).

    `config: {}` is the released size, 1438.8 M parameters, untrained; settings are those of `DynamiCrafterUNet`.
    `pretrained` is a folder that `divot import dynamicrafter` wrote from DynamiCrafter's own checkpoint; Divot's whole
    de-tokenizer is imported by `divot import detokenizer`.
    """

    row = VideoModel(
        f"{DynamiCrafterUNet.__module__}.{DynamiCrafterUNet.__qualname__}",
        "cross_attention_dim",
        _whole_levels,
        cross_attention=(".attn2.",),
        not_cross_attention=("temporal_transformer", "input_transformer"),  # their second attention is over frames, too
    )

    def _check_sizes(self, derived: dict[str, Any]) -> None:
        super()._check_sizes(derived)
        check_split(self.condition_tokens, self.model.config.context_split)
