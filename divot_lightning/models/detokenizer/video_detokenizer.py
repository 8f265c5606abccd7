"""The de-tokenizer: a video diffusion model that generates a clip from its tokens.

Shape letters: B batch, F frames, C channels, H height, W width, Q tokens per clip, c h w latent channels and grid,
K condition tokens, E condition width.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import AutoencoderKL
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor, nn

from divot_lightning.errors import UserError
from divot_lightning.models.activation_checkpointing import checkpoint_activations
from divot_lightning.models.detokenizer.latents import BlockDCTLatents, LatentsConfig, VAELatents, build_latents
from divot_lightning.models.detokenizer.noise_schedule import (
    NoiseScheduleConfig,
    SamplingConfig,
    build_scheduler,
    check_sampling,
    ddim_step,
    guide,
    sample_timesteps,
    training_target,
)
from divot_lightning.models.detokenizer.video_dit import VideoDiT, VideoDiTConfig
from divot_lightning.models.perceiver import PerceiverResampler
from divot_lightning.models.randomness import Randomness, uniform_rows

VAE_FOLDER = "vae"
"""Folder inside a component folder with the config of the VAE; its weights are among the component's."""


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


@dataclass(frozen=True)
class DiffusersDenoiserConfig:
    """A denoiser from `diffusers` that takes (B, c, F, h, w) latents, a time and condition tokens.

    Attributes:
        diffusers_class: Such as `UNet3DConditionModel`.
        arguments: Arguments of its constructor; channels and condition width have to fit the latents and tokens.
        gradient_checkpointing: Recompute the activations of its blocks in the backward pass: less memory, about a third
            more time, the same loss and gradients.
    """

    diffusers_class: str
    arguments: dict[str, Any] = field(default_factory=dict)
    gradient_checkpointing: bool = False


@dataclass
class DetokenizerConfig:
    """Config of the de-tokenizer.

    Attributes:
        latents: The latents that the diffusion works on.
        denoiser: The network: our small transformer (toy), or a model of `diffusers`.
        condition_resampler: Perceiver in front of the cross-attention; with None it attends to the tokens themselves.
        noise_schedule: The diffusion's schedule and prediction type.
        sampling: Defaults of `decode`.
        num_frames: Frames F of a clip; 16 at 8 per second in the paper.
        size: Height and width in pixels; 256 in the paper.
        num_tokens: Tokens Q of a clip; must equal the tokenizer's.
        token_dim: Width C of a token; must equal the tokenizer's.
    """

    latents: LatentsConfig = field(default_factory=LatentsConfig)
    denoiser: VideoDiTConfig | DiffusersDenoiserConfig = field(default_factory=VideoDiTConfig)
    condition_resampler: ConditionResamplerConfig | None = None
    noise_schedule: NoiseScheduleConfig = field(default_factory=NoiseScheduleConfig)
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    num_frames: int = 16
    size: int = 256
    num_tokens: int = 64
    token_dim: int = 256

    def __post_init__(self) -> None:
        """Accept nested configs as the dictionaries that `asdict` returns."""
        self.latents = _restore(self.latents, LatentsConfig)
        self.condition_resampler = _restore(self.condition_resampler, ConditionResamplerConfig)
        self.noise_schedule = _restore(self.noise_schedule, NoiseScheduleConfig)
        self.sampling = _restore(self.sampling, SamplingConfig)
        foreign = isinstance(self.denoiser, dict) and "diffusers_class" in self.denoiser
        self.denoiser = _restore(self.denoiser, DiffusersDenoiserConfig if foreign else VideoDiTConfig)


def _restore(value: Any, config_class: type) -> Any:
    return config_class(**value) if isinstance(value, dict) else value


class VideoDetokenizer(nn.Module):
    """A diffusion model that denoises clips given their tokens, and so decodes tokens to clips (Divot section 3.1.2).

    Args:
        config: Config of the de-tokenizer.
        latents: Used instead of the latents that the config describes.
    """

    def __init__(self, config: DetokenizerConfig, latents: BlockDCTLatents | VAELatents | None = None) -> None:
        super().__init__()
        self.config = config
        check_sampling(config.noise_schedule, config.sampling)
        self.latents = latents or build_latents(config.latents)
        if config.size % self.latents.block_size:
            raise UserError(
                f"de-tokenizer: size {config.size} is not a multiple of the latents' {self.latents.block_size} pixels"
            )
        self.resampler = _condition_resampler(config)
        self.denoiser = _denoiser(config, self.latents.channels, config.size // self.latents.block_size)
        self.scheduler = build_scheduler(config.noise_schedule)

    def save_extra(self, folder: Path) -> None:
        """Write the VAE's config beside the weights, so that its own folder is not needed again."""
        if isinstance(self.latents, VAELatents):
            self.latents.vae.save_config(folder / VAE_FOLDER)

    @classmethod
    def from_component(cls, config: dict[str, Any], folder: Path) -> "VideoDetokenizer":
        """Build the module of a component folder, with random weights."""
        stored = DetokenizerConfig(**config)
        if stored.latents.kind == "block_dct":
            return cls(stored)
        vae = AutoencoderKL.from_config(AutoencoderKL.load_config(folder / VAE_FOLDER))
        return cls(stored, VAELatents(vae, stored.latents.scale))

    def condition(self, tokens_BQC: Tensor) -> Tensor:
        """Turn tokens into the condition that the denoiser attends to, (B, K, E)."""
        expected = (self.config.num_tokens, self.config.token_dim)
        if tuple(tokens_BQC.shape[1:]) != expected:
            raise UserError(
                f"the de-tokenizer got tokens {tuple(tokens_BQC.shape[1:])} and needs {expected}\n"
                "set detokenizer.num_tokens and detokenizer.token_dim to the tokenizer's"
            )
        return tokens_BQC if self.resampler is None else self.resampler(tokens_BQC)

    def loss(
        self,
        video_BFCHW: Tensor,
        tokens_BQC: Tensor,
        *,
        terminal_timestep_prob: float = 0.0,
        condition_dropout: float = 0.0,
        null_tokens_QC: Tensor | None = None,
        generator: Randomness = None,
    ) -> Tensor:
        """Compute the denoising loss: the mean squared error of the prediction (v in the paper).

        Args:
            video_BFCHW: Clips, float in [-1, 1].
            tokens_BQC: Their tokens, float.
            terminal_timestep_prob: Probability that a clip is trained at the last step, which is pure noise, so that
                all information must come from the tokens.
            condition_dropout: Probability that the tokens of a clip are replaced by the null tokens.
            null_tokens_QC: Tokens of an all-zero clip; needed with dropout.
            generator: Random generator on the video's device, or one per clip on the CPU, so that a clip's loss does
                not depend on the batch that it is in.

        Returns:
            The loss, scalar float32.
        """
        if condition_dropout > 0:
            assert null_tokens_QC is not None
            dropped_B = uniform_rows(len(tokens_BQC), generator, tokens_BQC.device) < condition_dropout
            tokens_BQC = torch.where(dropped_B[:, None, None], null_tokens_QC, tokens_BQC)
        # float32 from here on, also under autocast: bfloat16 rounds the first two noise levels to 0.
        with torch.no_grad():
            clean = self.latents.encode(video_BFCHW, generator).float()
        noise = randn_tensor(clean.shape, generator=generator, device=clean.device, dtype=clean.dtype)
        steps = self.config.noise_schedule.num_steps
        timestep_B = sample_timesteps(
            len(clean), steps, terminal_timestep_prob, device=clean.device, generator=generator
        )
        noisy = self.scheduler.add_noise(clean, noise, timestep_B)
        prediction = self.denoiser(noisy.to(video_BFCHW.dtype), timestep_B, self.condition(tokens_BQC))
        target = training_target(self.scheduler, clean, noise, timestep_B)
        return nn.functional.mse_loss(prediction.float(), target)

    @torch.no_grad()
    def decode(
        self,
        tokens_BQC: Tensor,
        *,
        null_tokens_QC: Tensor | None = None,
        sampling: SamplingConfig | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Decode tokens to clips with DDIM, whose states are float32 also under autocast.

        Args:
            tokens_BQC: Tokens, float.
            null_tokens_QC: Tokens of an all-zero clip; needed if guidance is not 1.
            sampling: Steps, guidance and noise; the config's by default.
            generator: Random generator on the CPU, so that a seed gives the same noise on every device.

        Returns:
            Clips (B, F, 3, H, W), float, nominally in [-1, 1].
        """
        sampling = sampling or self.config.sampling
        check_sampling(self.config.noise_schedule, sampling)
        guided = sampling.guidance != 1.0
        if guided and null_tokens_QC is None:
            raise UserError(
                f"guidance {sampling.guidance} needs the tokens of an all-zero clip; give them or set it to 1"
            )
        condition = self.condition(tokens_BQC)
        null = self.condition(null_tokens_QC[None].expand_as(tokens_BQC)) if null_tokens_QC is not None else condition
        scheduler = build_scheduler(self.config.noise_schedule, sampling.spacing)
        scheduler.set_timesteps(sampling.steps)
        grid = self.config.size // self.latents.block_size
        shape = (len(tokens_BQC), self.config.num_frames, self.latents.channels, grid, grid)
        device, dtype = tokens_BQC.device, tokens_BQC.dtype

        def standard_normal() -> Tensor:
            return torch.randn(shape, generator=generator, dtype=torch.float32).to(device)

        state = standard_normal()
        steps = scheduler.timesteps.tolist()
        for step, following in zip(steps, [*steps[1:], None], strict=True):
            times = torch.full((len(state),), step, device=device)
            prediction = self.denoiser(state.to(dtype), times, condition).float()
            if guided:
                unconditional = self.denoiser(state.to(dtype), times, null).float()
                prediction = guide(prediction, unconditional, sampling.guidance, sampling.guidance_rescale)
            noise = standard_normal() if sampling.eta > 0 else None
            state = ddim_step(
                scheduler, prediction, state, step=step, following=following, eta=sampling.eta, noise=noise
            )
        return self.latents.decode(state.to(dtype))


class DiffusersDenoiser(nn.Module):
    """A `diffusers` video model with our order of axes: frames before channels."""

    def __init__(self, config: DiffusersDenoiserConfig) -> None:
        super().__init__()
        model_class = getattr(diffusers, config.diffusers_class, None)
        if model_class is None:
            raise UserError(f"denoiser.diffusers_class: diffusers has no {config.diffusers_class!r}")
        try:
            self.model = model_class(**config.arguments)
        except TypeError as error:
            raise UserError(f"denoiser.arguments do not fit {config.diffusers_class}: {error}") from error
        if config.gradient_checkpointing:
            checkpoint_activations(self.model)

    def forward(self, latents_BFchw: Tensor, timestep_B: Tensor, condition_BKE: Tensor) -> Tensor:
        """Return the prediction, of the latents' shape."""
        latents = latents_BFchw.transpose(1, 2)
        prediction = self.model(latents, timestep_B, encoder_hidden_states=condition_BKE, return_dict=False)[0]
        return prediction.transpose(1, 2)


def _condition_resampler(config: DetokenizerConfig) -> PerceiverResampler | None:
    resampler = config.condition_resampler
    if resampler is None:
        return None
    return PerceiverResampler(
        dim=resampler.dim,
        depth=resampler.layers,
        dim_head=resampler.head_dim,
        heads=resampler.heads,
        num_queries=resampler.num_queries,
        embedding_dim=config.token_dim,
        output_dim=resampler.output_dim,
    )


def _denoiser(config: DetokenizerConfig, channels: int, grid: int) -> nn.Module:
    if isinstance(config.denoiser, DiffusersDenoiserConfig):
        return DiffusersDenoiser(config.denoiser)
    resampler = config.condition_resampler
    return VideoDiT(
        config.denoiser,
        channels=channels,
        frames=config.num_frames,
        grid=(grid, grid),
        condition_tokens=resampler.num_queries if resampler else config.num_tokens,
        condition_dim=resampler.output_dim if resampler else config.token_dim,
    )
