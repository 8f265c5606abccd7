"""The de-tokenizer: a video diffusion model that generates a clip from its tokens.

Shape letters: B batch, F frames, C channels, H height, W width, Q tokens per clip, f c h w latent frames, channels and
grid, K condition tokens, E condition width.
"""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from divot_lightning.errors import UserError
from divot_lightning.models.detokenizer.config import DetokenizerConfig
from divot_lightning.models.detokenizer.sampling import SamplingConfig, guide
from divot_lightning.models.perceiver import PerceiverResampler
from divot_lightning.models.randomness import Randomness, normal_rows, uniform_rows
from divot_lightning.parts.denoisers import Denoiser
from divot_lightning.parts.latents import Latents
from divot_lightning.parts.objectives import Objective
from divot_lightning.parts.part import build_part, spec_of
from divot_lightning.parts.registries.kinds import DENOISERS, LATENTS, OBJECTIVES


class VideoDetokenizer(nn.Module):
    """A diffusion model that denoises clips given their tokens, and so decodes tokens to clips (Divot section 3.1.2).

    The attribute `config` records the parts as they were built, so that config and weights are enough to build the
    de-tokenizer again.

    Args:
        config: Config of the de-tokenizer, with the sizes of the tokens; see `DetokenizerConfig.for_tokens`.
    """

    def __init__(self, config: DetokenizerConfig) -> None:
        super().__init__()
        if config.num_tokens is None or config.token_dim is None:
            raise UserError(
                "the de-tokenizer needs the number and the width of its tokens\n"
                "outside of a stage, build it with config.for_tokens(tokens_per_clip, token_dim) of the tokenizer"
            )
        where = "the de-tokenizer's config"
        self.latents: Latents = build_part(config.latents, LATENTS, where)
        self.objective: Objective = build_part(config.objective, OBJECTIVES, where)
        self.objective.sampler(config.sampling.steps)  # refuses steps that it cannot sample in
        self.resampler = _condition_resampler(config)
        self.denoiser: Denoiser = build_part(config.denoiser, DENOISERS, where, **_sizes(config, self.latents))
        parts = {name: spec_of(getattr(self, name)) for name in ("latents", "objective", "denoiser")}
        self.config = replace(config, **parts)  # type: ignore[arg-type]

    @classmethod
    def from_component(cls, config: dict[str, Any], folder: Path) -> "VideoDetokenizer":
        """Build the module of a component folder, with random weights."""
        vae = folder / "vae" / "config.json"
        if vae.is_file():
            # An earlier version kept the VAE's config in a file beside the weights.
            stored = {k: v for k, v in json.loads(vae.read_text(encoding="utf-8")).items() if not k.startswith("_")}
            latents = config["latents"]
            arguments = {**latents["init_args"], "config": stored, "pretrained": None}
            config = {**config, "latents": {**latents, "init_args": arguments}}
        return cls(DetokenizerConfig(**config))

    def condition(self, tokens_BQC: Tensor) -> Tensor:
        """Turn tokens into the condition that the denoiser attends to, (B, K, E).

        Raises:
            UserError: The tokens have another number or width.
        """
        expected = (self.config.num_tokens, self.config.token_dim)
        if tuple(tokens_BQC.shape[1:]) != expected:
            raise UserError(
                f"the de-tokenizer got tokens {tuple(tokens_BQC.shape[1:])} and needs {expected}\n"
                "give tokens of the tokenizer that it was trained with"
            )
        return tokens_BQC if self.resampler is None else self.resampler(tokens_BQC)

    def loss(
        self,
        video_BFCHW: Tensor | None,
        tokens_BQC: Tensor,
        *,
        posterior: Tensor | None = None,
        terminal_timestep_prob: float = 0.0,
        condition_dropout: float = 0.0,
        null_tokens_QC: Tensor | None = None,
        generator: Randomness = None,
    ) -> Tensor:
        """Compute the denoising loss: the squared error of the prediction, weighted as the objective says.

        Args:
            video_BFCHW: Clips, float in [-1, 1]; None with `posterior`.
            tokens_BQC: Their tokens, float.
            posterior: What `Latents.posterior` gave for the clips, if it was cached.
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
        given = video_BFCHW if posterior is None else posterior
        assert given is not None
        # float32 from here on, also under autocast: bfloat16 rounds the first two noise levels to 0.
        clean = self._clean_latents(given, generator, cached=posterior is not None).float()
        noise = normal_rows(clean.shape, generator, clean.device)
        time_B = self.objective.sample_times(
            len(clean), terminal_timestep_prob, device=clean.device, generator=generator
        )
        noisy = self.objective.add_noise(clean, noise, time_B)
        prediction = self.denoiser(noisy.to(given.dtype), time_B, self.condition(tokens_BQC))
        target, weight_B = self.objective.target(clean, noise, time_B), self.objective.weight(time_B)
        if weight_B is None:
            return nn.functional.mse_loss(prediction.float(), target)
        return (weight_B * (prediction.float() - target).square().flatten(1).mean(dim=1)).mean()

    @torch.no_grad()
    def _clean_latents(self, given: Tensor, generator: Randomness, *, cached: bool) -> Tensor:
        if cached:
            return self.latents.sample(given, generator)
        self._require_size(given)
        return self.latents.encode(given, generator)

    def _require_size(self, video_BFCHW: Tensor) -> None:
        found, size = (video_BFCHW.shape[1], *video_BFCHW.shape[3:]), self.config.size
        if found != (self.config.num_frames, size, size):
            raise UserError(
                f"the clips have {found[0]} frames of {found[1]} x {found[2]}, and the de-tokenizer takes "
                f"{self.config.num_frames} of {size} x {size}\nset data.clip.frames, height and width to these"
            )

    @torch.no_grad()
    def decode(
        self,
        tokens_BQC: Tensor,
        *,
        null_tokens_QC: Tensor | None = None,
        sampling: SamplingConfig | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Decode tokens to clips with the objective's sampler, whose states are float32 also under autocast.

        Args:
            tokens_BQC: Tokens, float.
            null_tokens_QC: Tokens of an all-zero clip; needed if guidance is not 1.
            sampling: Steps and guidance; the config's by default.
            generator: Random generator on the CPU, so that a seed gives the same noise on every device.

        Returns:
            Clips (B, F, 3, H, W), float, nominally in [-1, 1].
        """
        sampling = sampling or self.config.sampling
        predict = self._guided(tokens_BQC, null_tokens_QC, sampling)
        sampler = self.objective.sampler(sampling.steps)
        shape, dtype = self._latents_shape(len(tokens_BQC)), tokens_BQC.dtype

        def standard_normal() -> Tensor:
            return torch.randn(shape, generator=generator, dtype=torch.float32).to(tokens_BQC.device)

        state = standard_normal()
        for index, time in enumerate(sampler.times):
            state = sampler.step(index, predict(state.to(dtype), time), state, standard_normal)
        return self.latents.decode(state.to(dtype), self.config.num_frames)

    def _latents_shape(self, clips: int) -> tuple[int, ...]:
        sizes = _sizes(self.config, self.latents)
        return (clips, sizes["frames"], sizes["channels"], *sizes["grid"])

    def _guided(
        self, tokens_BQC: Tensor, null_tokens_QC: Tensor | None, sampling: SamplingConfig
    ) -> Callable[[Tensor, float], Tensor]:
        """Return the prediction, float32, as a function of noisy latents and time; with guidance in one batch."""
        condition = self.condition(tokens_BQC)
        if sampling.guidance == 1.0:
            return lambda state, time: self._predict(state, time, condition)
        if null_tokens_QC is None:
            raise UserError(
                f"guidance {sampling.guidance} needs the tokens of an all-zero clip; give them or set it to 1"
            )
        both = torch.cat([condition, self.condition(null_tokens_QC[None]).expand_as(condition)])

        def predict(state: Tensor, time: float) -> Tensor:
            conditional, unconditional = self._predict(torch.cat([state, state]), time, both).chunk(2)
            return guide(conditional, unconditional, sampling.guidance, sampling.guidance_rescale)

        return predict

    def _predict(self, state: Tensor, time: float, condition_BKE: Tensor) -> Tensor:
        times = torch.full((len(state),), time, device=state.device)
        prediction: Tensor = self.denoiser(state, times, condition_BKE)
        return prediction.float()


def _condition_resampler(config: DetokenizerConfig) -> PerceiverResampler | None:
    resampler = config.condition_resampler
    if resampler is None:
        return None
    assert config.token_dim is not None
    return PerceiverResampler(
        dim=resampler.dim,
        depth=resampler.layers,
        dim_head=resampler.head_dim,
        heads=resampler.heads,
        num_queries=resampler.num_queries,
        embedding_dim=config.token_dim,
        output_dim=resampler.output_dim,
    )


def _sizes(config: DetokenizerConfig, latents: Latents) -> dict[str, Any]:
    """Return the sizes that the denoiser is supplied with.

    Raises:
        UserError: The frames do not divide into latent cells.
    """
    if config.size % latents.block_size:
        raise UserError(
            f"de-tokenizer: size {config.size} is not a multiple of the latents' {latents.block_size} pixels"
        )
    side, resampler = config.size // latents.block_size, config.condition_resampler
    return {
        "channels": latents.channels,
        "frames": latents.latent_frames(config.num_frames),
        "grid": (side, side),
        "condition_tokens": resampler.num_queries if resampler else config.num_tokens,
        "condition_dim": resampler.output_dim if resampler else config.token_dim,
    }
