"""DynamiCrafter's U-Net as a denoiser of the de-tokenizer.

Shape letters: B batch, f latent frames, c latent channels, h w latent grid, K condition tokens, E condition width.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from divot_backbones.denoisers.dynamicrafter.attention import check_split
from divot_backbones.denoisers.dynamicrafter.model import DynamiCrafterUNet
from divot_lightning.checkpoint.components import load_weights
from divot_lightning.distributed.meta_building import without_memory
from divot_lightning.errors import UserError
from divot_lightning.parts.denoisers import Denoiser

UNET_WEIGHTS = "diffusion_pytorch_model.safetensors"
"""File with the weights in a folder that `DynamiCrafterUNet.save_pretrained` writes."""


class DynamiCrafterDenoiser(Denoiser):
    """The paper's denoiser: DynamiCrafter's video U-Net without its image input (Divot section 3.1.3).

    The defaults are the released sizes, 1438.8 M parameters. `divot import` writes a folder for `pretrained` from
    DynamiCrafter's checkpoint, and a whole de-tokenizer from Divot's.

    Args:
        channels: Latent channels c.
        frames: Latent frames f; the U-Net itself takes any number.
        grid: Latent rows h and columns w.
        condition_tokens: Condition tokens K.
        condition_dim: Condition width E.
        pretrained: Folder of a `DynamiCrafterUNet`, whose weights are where training starts. Its settings replace all
            of those below but the last two.
        block_out_channels: Channels of each level.
        layers_per_block: Layers of a level.
        attention_levels: Levels with transformers.
        attention_head_dim: Width of an attention head.
        transformer_layers: Blocks of each transformer.
        cross_attention_dim: Width of the condition tokens inside; a linear layer leads to it from another width E.
        context_split: Condition tokens that the first attention branch reads; all others are read by the second, gated
            one. 77 as released; null for one branch, in a new training.
        input_attention_heads: Heads of the temporal transformer after the first convolution; 0 leaves it out.
        norm_num_groups: Groups of the group norms.
        dropout: Dropout of the convolutions.
        frame_stride: Frame stride of all clips; 3 as released; null leaves the conditioning out.
        gradient_checkpointing: Keep only the inputs of each residual block, temporal convolution and transformer, and
            recompute the rest in the backward pass: less memory, about a third more time, the same loss and gradients.
        compile: Compile these blocks with `torch.compile`, for a faster step after a start of minutes.
    """

    def __init__(
        self,
        channels: int,
        frames: int,
        grid: tuple[int, int],
        condition_tokens: int,
        condition_dim: int,
        pretrained: str | None = None,
        block_out_channels: Sequence[int] = (320, 640, 1280, 1280),
        layers_per_block: int = 2,
        attention_levels: Sequence[int] = (0, 1, 2),
        attention_head_dim: int = 64,
        transformer_layers: int = 1,
        cross_attention_dim: int = 1024,
        context_split: int | None = 77,
        input_attention_heads: int = 8,
        norm_num_groups: int = 32,
        dropout: float = 0.1,
        frame_stride: int | None = 3,
        gradient_checkpointing: bool = False,
        compile: bool = False,
    ) -> None:
        super().__init__(channels, frames, grid, condition_tokens, condition_dim)
        if pretrained is None:
            self.unet = DynamiCrafterUNet(
                in_channels=channels,
                out_channels=channels,
                block_out_channels=list(block_out_channels),
                layers_per_block=layers_per_block,
                attention_levels=list(attention_levels),
                attention_head_dim=attention_head_dim,
                transformer_layers=transformer_layers,
                cross_attention_dim=cross_attention_dim,
                context_split=context_split,
                input_attention_heads=input_attention_heads,
                norm_num_groups=norm_num_groups,
                dropout=dropout,
                frame_stride=frame_stride,
            )
        else:
            self.unet = load_unet(pretrained, channels)
            # From here on the weights are stored with the de-tokenizer, and its folder is not needed to build it again.
            sizes = {name: value for name, value in self.unet.config.items() if name in self.init_args}
            self.init_args = {**self.init_args, **sizes, "pretrained": None}
        config = self.unet.config
        check_split(condition_tokens, config.context_split)
        self.unet.check_grid(grid)
        fits = condition_dim == config.cross_attention_dim
        self.projection = None if fits else nn.Linear(condition_dim, config.cross_attention_dim)
        if gradient_checkpointing:
            self.unet.enable_gradient_checkpointing()
        if compile:
            self.unet.compile_repeated_blocks()

    def forward(self, latents_BFchw: Tensor, time_B: Tensor, condition_BKE: Tensor) -> Tensor:
        """Return the prediction, of the latents' shape; see the base class."""
        condition = condition_BKE if self.projection is None else self.projection(condition_BKE)
        return self.unet(latents_BFchw.transpose(1, 2), time_B, condition, return_dict=False)[0].transpose(1, 2)


def load_unet(folder: str | Path, channels: int) -> DynamiCrafterUNet:
    """Load a U-Net from a folder that `DynamiCrafterUNet.save_pretrained` or `divot import` wrote.

    Args:
        folder: The folder.
        channels: Latent channels that it must have.

    Returns:
        The U-Net, float32; sharded where `divot_lightning.distributed.meta_building` says so.

    Raises:
        UserError: It is no such folder, its weights do not fit, or it has other channels.
    """
    try:
        config: dict[str, Any] = DynamiCrafterUNet.load_config(str(folder), local_files_only=True)
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"denoiser.pretrained {str(folder)!r} is no folder of a DynamiCrafterUNet: {reason}") from error
    if config.get("_class_name") != DynamiCrafterUNet.__name__:
        raise UserError(
            f"denoiser.pretrained {str(folder)!r} holds a {config.get('_class_name')}, no DynamiCrafterUNet"
        )
    if (config["in_channels"], config["out_channels"]) != (channels, channels):
        raise UserError(
            f"denoiser.pretrained {str(folder)!r} takes {config['in_channels']} latent channels and returns "
            f"{config['out_channels']}, but the latents have {channels}\nGive latents of these channels."
        )
    # The random initial weights are overwritten at once; making them must not change the random numbers of the run.
    with torch.random.fork_rng(devices=[]), without_memory():
        unet = DynamiCrafterUNet.from_config(config)
    load_weights(unet, Path(folder) / UNET_WEIGHTS)
    return unet
