"""Video diffusion models of `diffusers` as denoisers: one adapter for all, with a row per class of what differs.

Shape letters: B batch, f latent frames, c latent channels, h w latent grid, K condition tokens, E condition width.
"""

from typing import Any, ClassVar, Literal, get_args

from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor, nn

from divot_backbones.denoisers import video_models
from divot_backbones.denoisers.video_models import Inputs, LatentLayout, Sizes, VideoModel
from divot_backbones.pretrained import Origin, build_model, stored_config
from divot_lightning.errors import UserError, require_one_of
from divot_lightning.models.activation_checkpointing import checkpoint_activations
from divot_lightning.parts.denoisers import Denoiser

Training = Literal["full", "lora", "cross_attention"]
LORA_TARGETS = ["to_q", "to_k", "to_v", "to_out.0"]
"""Projections of every attention layer, named alike in all models of `diffusers`."""


class DiffusersDenoiser(Denoiser):
    """A video model of `diffusers`; subclasses name the model.

    The prediction has the latents' channels: a second half, which some models predict for the variance, is dropped.
    Where the condition's width differs from the model's, a trained linear layer projects it.
    """

    row: ClassVar[VideoModel]
    rope_scale: tuple[float, float, float] = (1.0, 1.0, 1.0)

    def __init__(
        self,
        channels: int,
        frames: int,
        grid: tuple[int, int],
        condition_tokens: int,
        condition_dim: int,
        pretrained: str | None = None,
        revision: str | None = None,
        subfolder: str | None = None,
        config: dict[str, Any] | None = None,
        training: Training = "full",
        lora_rank: int = 16,
        gradient_checkpointing: bool = False,
    ) -> None:
        """Build the model.

        Args:
            channels: Latent channels c.
            frames: Latent frames f.
            grid: Latent rows h and columns w.
            condition_tokens: Condition tokens K.
            condition_dim: Condition width E.
            pretrained: Folder of the model, or id of a hub repository.
            revision: Commit of the hub repository; needed with an id.
            subfolder: Folder inside, such as `transformer`.
            config: Arguments of the model's class, for an untrained one; instead of `pretrained`. Channels, condition
                width and sizes are derived.
            training: What is trained besides the projection of the condition: all weights, LoRA adapters of the
                attention layers, or the layers that attend to the condition.
            lora_rank: Rank of the adapters, which are scaled by 1; `lora` only.
            gradient_checkpointing: Recompute the activations of its blocks in the backward pass: less memory, about a
                third more time, the same loss and gradients.

        Raises:
            UserError: The settings contradict the sizes or each other, or the model cannot be trained that way.
        """
        super().__init__(channels, frames, grid, condition_tokens, condition_dim)
        require_one_of(get_args(Training), "denoiser.", training=training)
        self.sizes = Sizes(channels, frames, tuple(grid), condition_tokens, condition_dim)  # type: ignore[arg-type]
        origin = Origin("denoiser", pretrained, revision, subfolder, config)
        derived = self.row.sizes(self.sizes, config)
        untrained = {"in_channels": channels, "out_channels": channels, self.row.condition_key: condition_dim}
        self.model, folder = build_model(
            self.row.class_name, origin, **derived, **({} if config is None else untrained)
        )
        self._check_sizes({"in_channels": channels, **derived})
        width = int(self.model.config[self.row.condition_key])
        self.project = nn.Identity() if width == condition_dim else nn.Linear(condition_dim, width)
        pooled = self.row.pooled_key
        self.pool = nn.Linear(condition_dim, int(self.model.config[pooled])) if pooled else None
        without_origin = {"pretrained": None, "revision": None, "subfolder": None}
        self.init_args = {**self.init_args, **without_origin, "config": stored_config(self.model)}
        self.source = None if training == "full" else folder
        self._choose_trained(training, lora_rank)
        if gradient_checkpointing:
            checkpoint_activations(self.model)

    def forward(self, latents_BFchw: Tensor, time_B: Tensor, condition_BKE: Tensor) -> Tensor:
        """Return the prediction, of the latents' shape; see `Denoiser.forward`."""
        row = self.row
        inputs = Inputs(
            self.model.config,
            to_layout(latents_BFchw, row.layout),
            self.project(condition_BKE),
            self.pool(condition_BKE.mean(dim=1)) if self.pool is not None else None,
            self.sizes,
            self.rope_scale,
        )
        prediction = self.model(
            inputs.latents,
            timestep=row.time(time_B),
            encoder_hidden_states=inputs.condition_BKE,
            return_dict=False,
            **row.arguments(inputs),
        )[0]
        return row.sign * from_layout(prediction, row.layout, self.sizes)[:, :, : self.channels]

    def _check_sizes(self, derived: dict[str, Any]) -> None:
        config, name = self.model.config, self.row.class_name
        for key, value in derived.items():
            if config[key] != value:
                # The further channels hold a picture, and in some models a mask: 36 of Wan's, 32 of CogVideoX's.
                wider = key == "in_channels" and config[key] > value
                hint = "\nan image-to-video model takes a picture besides; take the text-to-video one" if wider else ""
                raise UserError(
                    f"denoiser: {key} of this {name} is {config[key]}, and the other parts need {value}{hint}"
                )
        patch = self.row.patch(config)
        sizes = (self.frames, *self.grid)
        if any(size % side for size, side in zip(sizes, patch, strict=True)):
            raise UserError(
                f"denoiser: {self.frames} frames of {self.grid[0]}x{self.grid[1]} latents do not divide into the "
                f"patches of this {name}: {patch[0]} frames of {patch[1]}x{patch[2]}\n"
                "change num_frames, size, the latents or the patch size"
            )
        steps, rows, columns = (size // side for size, side in zip(sizes, patch, strict=True))
        self.token_grid = (steps, rows, columns)

    def _choose_trained(self, training: Training, lora_rank: int) -> None:
        if training == "full":
            return
        self.model.requires_grad_(False)
        if training == "lora":
            settings = LoraConfig(r=lora_rank, lora_alpha=lora_rank, target_modules=LORA_TARGETS)
            inject_adapter_in_model(settings, self.model)
            return
        chosen = [
            parameter
            for name, parameter in self.model.named_parameters()
            if any(part in name for part in self.row.cross_attention)
            and not any(part in name for part in self.row.not_cross_attention)
        ]
        if not chosen:
            raise UserError(
                f"denoiser.training 'cross_attention': latents and condition of a {self.row.class_name} share their "
                "attention layers\nset denoiser.training to lora or full"
            )
        for parameter in chosen:
            parameter.requires_grad_(True)


class UNet3D(DiffusersDenoiser):
    """`UNet3DConditionModel` of `diffusers`."""

    row = video_models.UNET3D


class Latte(DiffusersDenoiser):
    """`LatteTransformer3DModel`: pretrained on latents of Stable Diffusion's VAE with noise as its target."""

    row = video_models.LATTE


class Wan(DiffusersDenoiser):
    """`WanTransformer3DModel`: pretrained on latents of `AutoencoderKLWan` with rectified flow."""

    row = video_models.WAN


class LTX(DiffusersDenoiser):
    """`LTXVideoTransformer3DModel`: pretrained on latents of `AutoencoderKLLTXVideo` with rectified flow."""

    row = video_models.LTX

    def __init__(
        self,
        channels: int,
        frames: int,
        grid: tuple[int, int],
        condition_tokens: int,
        condition_dim: int,
        pretrained: str | None = None,
        revision: str | None = None,
        subfolder: str | None = None,
        config: dict[str, Any] | None = None,
        training: Training = "full",
        lora_rank: int = 16,
        gradient_checkpointing: bool = False,
        rope_scale: tuple[float, float, float] = (1.0, 32.0, 32.0),
    ) -> None:
        """Build the model; see `DiffusersDenoiser`.

        Args:
            channels: Latent channels c.
            frames: Latent frames f.
            grid: Latent rows h and columns w.
            condition_tokens: Condition tokens K.
            condition_dim: Condition width E.
            pretrained: Folder of the model, or id of a hub repository.
            revision: Commit of the hub repository.
            subfolder: Folder inside.
            config: Arguments of the model's class, for an untrained one.
            training: What is trained besides the projection of the condition.
            lora_rank: Rank of the adapters.
            gradient_checkpointing: Recompute the activations of its blocks in the backward pass.
            rope_scale: Seconds per latent frame, and pixels per latent row and column: the units of its positions. Its
                own VAE has 8 frames per latent frame and cells of 32 pixels, so clips of 8 frames per second have the
                default.
        """
        sizes = (channels, frames, grid, condition_tokens, condition_dim)
        super().__init__(*sizes, pretrained, revision, subfolder, config, training, lora_rank, gradient_checkpointing)
        self.rope_scale = (rope_scale[0], rope_scale[1], rope_scale[2])


class CogVideoX(DiffusersDenoiser):
    """`CogVideoXTransformer3DModel`: pretrained on latents of `AutoencoderKLCogVideoX` with v-prediction."""

    row = video_models.COGVIDEOX


class HunyuanVideo(DiffusersDenoiser):
    """`HunyuanVideoTransformer3DModel`: pretrained on latents of `AutoencoderKLHunyuanVideo` with rectified flow."""

    row = video_models.HUNYUAN


class Mochi(DiffusersDenoiser):
    """`MochiTransformer3DModel`: pretrained on latents of `AutoencoderKLMochi` with rectified flow."""

    row = video_models.MOCHI


class Cosmos(DiffusersDenoiser):
    """`CosmosTransformer3DModel`, of which Predict2 was pretrained with rectified flow.

    Cosmos 1.0 was pretrained with another parametrisation (EDM), which no objective here has: its weights are a start
    for training only.
    """

    row = video_models.COSMOS


def to_layout(latents_BFchw: Tensor, layout: LatentLayout) -> Tensor:
    """Return latents with a model's axes; see `VideoModel`."""
    if layout == "frames_first":
        return latents_BFchw
    if layout == "channels_first":
        return latents_BFchw.transpose(1, 2)
    return latents_BFchw.permute(0, 1, 3, 4, 2).flatten(1, 3)


def from_layout(prediction: Tensor, layout: LatentLayout, sizes: Sizes) -> Tensor:
    """Return a model's prediction as (B, f, c, h, w); the inverse of `to_layout`."""
    if layout == "frames_first":
        return prediction
    if layout == "channels_first":
        return prediction.transpose(1, 2)
    return prediction.unflatten(1, (sizes.frames, *sizes.grid)).permute(0, 1, 4, 2, 3)
