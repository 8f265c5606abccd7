"""Tokenizer pretraining: tokenizer and de-tokenizer together (Divot section 3.1, arXiv:2412.04432)."""

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from torch import Tensor, nn

from divot_lightning.models.detokenizer.config import DetokenizerConfig
from divot_lightning.models.detokenizer.representation_alignment import (
    RepresentationAlignment,
    RepresentationAlignmentConfig,
    captured_output,
)
from divot_lightning.models.detokenizer.video_detokenizer import VideoDetokenizer
from divot_lightning.models.pixels import to_unit_range
from divot_lightning.models.tokenizer.config import TokenizerConfig
from divot_lightning.models.tokenizer.video_tokenizer import VideoTokenizer
from divot_lightning.parts.batch import Batch, num_real_samples
from divot_lightning.parts.optimizers import TrainingOptimizer
from divot_lightning.parts.vision_encoders import VisionEncoder
from divot_lightning.training.global_mean import LossPart
from divot_lightning.training.stages.detokenizer_stage import validation_losses
from divot_lightning.training.stages.stage import Stage, batch_generators


class TokenizerPretraining(Stage):
    """Learns tokens because a video diffusion model must denoise the clip from them.

    There is no condition dropout, on purpose (appendix A.1): the diffusion model must never learn to ignore the tokens.

    Args:
        tokenizer: The tokenizer.
        detokenizer: The de-tokenizer; number and width of its tokens are derived from the tokenizer.
        optimizer: Optimizer settings.
        terminal_timestep_prob: Fraction of each batch that is moved to the last, pure-noise step of the diffusion.
            There the tokens are the network's only information, so that they are learned soonest. 0, uniform times,
            is the paper's way.
        terminal_timestep_prob_end: The same for the second half of the training; none keeps `terminal_timestep_prob`.
        repa: Align the denoiser with a frozen vision encoder (REPA); none, the paper's way, by default.
    """

    def __init__(
        self,
        tokenizer: TokenizerConfig,
        detokenizer: DetokenizerConfig,
        optimizer: TrainingOptimizer,
        terminal_timestep_prob: float = 0.0,
        terminal_timestep_prob_end: float | None = None,
        repa: RepresentationAlignmentConfig | None = None,
    ) -> None:
        super().__init__(optimizer)
        self.repa_config = repa
        self.tokenizer_config = tokenizer
        self.detokenizer_config = detokenizer
        self.terminal_timestep_prob = terminal_timestep_prob
        self.terminal_timestep_prob_end = (
            terminal_timestep_prob if terminal_timestep_prob_end is None else terminal_timestep_prob_end
        )

    def build(self) -> None:
        """Build both networks, untrained except for what comes from folders: a vision encoder, a VAE, a denoiser."""
        self.tokenizer = VideoTokenizer(self.tokenizer_config)
        tokens = self.tokenizer.config
        self.detokenizer_config = self.detokenizer_config.for_tokens(tokens.tokens_per_clip, tokens.token_dim)
        self.detokenizer = VideoDetokenizer(self.detokenizer_config)
        if self.repa_config is not None:
            self.repa = RepresentationAlignment(self.repa_config, self.detokenizer.denoiser)

    def frozen_sources(self) -> dict[str, str | Path]:
        """Return where frozen weights come from: of vision encoders, a VAE, and a denoiser that is trained in part."""
        sources = vision_source("tokenizer.vision", self.tokenizer.vision)
        if self.repa_config is not None:
            sources |= vision_source("repa.vision", self.repa.vision)
        for name in ("latents", "denoiser"):
            source = getattr(self.detokenizer, name).source
            if source is not None:
                sources[f"detokenizer.{name}"] = source
        return sources

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the denoising loss of clips given their own tokens."""
        self.check_sync("train", batch, batch_idx)
        video = to_unit_range(batch["video"])
        second_half = 2 * self.global_step >= self.trainer.estimated_stepping_batches
        prob = self.terminal_timestep_prob_end if second_half else self.terminal_timestep_prob
        generators = batch_generators(batch, "train")
        tokens, divergence = self.tokenizer.bottleneck.perturb(self.tokenizer(video), batch_generators(batch, "tokens"))
        with self._captured_block() as hidden:
            loss = self.detokenizer.loss(video, tokens, terminal_timestep_prob=prob, generator=generators)
        parts = {"loss": LossPart(loss, num_real_samples(batch)), **kl_part(divergence, self.tokenizer, batch)}
        if self.repa_config is not None:
            parts["repa_loss"] = LossPart(self.repa(hidden[0], video), num_real_samples(batch), self.repa_config.weight)
        return self.training_loss(parts, batch)

    def _captured_block(self) -> AbstractContextManager[list[Tensor]]:
        if self.repa_config is None:
            return nullcontext([])
        return captured_output(self.detokenizer.denoiser.get_submodule(self.repa_config.block))

    def loss_counts(self, batch: Batch) -> dict[str, int]:
        """Count clips."""
        repa = {} if self.repa_config is None else {"repa_loss": num_real_samples(batch)}
        return {"loss": num_real_samples(batch), **kl_count(self.tokenizer_config, batch), **repa}

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Log the loss at uniform times, and the loss at pure noise, where only the tokens help."""
        self.check_sync("validation", batch, batch_idx)
        video = to_unit_range(batch["video"])
        self.log_validation(validation_losses(self.detokenizer, video, self.tokenizer(video), batch, batch_idx))

    def exported_components(self) -> dict[str, nn.Module]:
        """Return tokenizer and de-tokenizer."""
        return {"tokenizer": self.tokenizer, "detokenizer": self.detokenizer}

    def used_components(self) -> dict[str, Path]:
        """Return nothing: this is the first stage."""
        return {}


def vision_source(name: str, vision: VisionEncoder) -> dict[str, str | Path]:
    """Return where a frozen vision encoder comes from, by its name in the stage; nothing for one that is trained."""
    return {name: vision.source} if vision.frozen and vision.source is not None else {}


def kl_part(divergence: Tensor | None, tokenizer: VideoTokenizer, batch: Batch) -> dict[str, LossPart]:
    """Return the KL loss of a tokenizer whose bottleneck has one; see `TokenBottleneck.perturb`."""
    if divergence is None:
        return {}
    return {"kl_loss": LossPart(divergence, num_real_samples(batch), tokenizer.bottleneck.config.kl_weight)}


def kl_count(tokenizer: TokenizerConfig, batch: Batch) -> dict[str, int]:
    """Count the clips of the KL loss, if the tokenizer has one."""
    return {"kl_loss": num_real_samples(batch)} if tokenizer.bottleneck.kl_weight else {}
