"""De-tokenizer refinement: the video diffusion model alone, with condition dropout (Divot appendix A.1)."""

import functools
from pathlib import Path

import torch
from torch import Tensor, nn

from divot_lightning.checkpoint.components import load_component, read_settings
from divot_lightning.checkpoint.run_components import find_component
from divot_lightning.models.detokenizer.config import DetokenizerConfig
from divot_lightning.models.detokenizer.video_detokenizer import VideoDetokenizer
from divot_lightning.models.tokenizer.config import TokenizerConfig
from divot_lightning.models.tokenizer.video_tokenizer import VideoTokenizer
from divot_lightning.parts.batch import Batch
from divot_lightning.parts.optimizers import TrainingOptimizer
from divot_lightning.training.global_mean import LossPart
from divot_lightning.training.stages.stage import Stage, batch_generators, num_real_samples
from divot_lightning.training.stages.tokenizer_pretraining import clips_of, validation_losses


class DetokenizerRefinement(Stage):
    """Refines the de-tokenizer for a frozen tokenizer and prepares it for classifier-free guidance.

    The data may hold cached tokens and latents in place of videos (`divot data encode --detokenizer`).

    Args:
        previous: Run folder of tokenizer pretraining.
        optimizer: Optimizer settings.
        condition_dropout: Fraction of clips whose tokens are replaced by those of an all-zero (mid-grey) clip; 5 % in
            the paper.
        terminal_timestep_prob: See `TokenizerPretraining`; 0 in the paper.
    """

    frozen = ("tokenizer",)

    def __init__(
        self,
        previous: str,
        optimizer: TrainingOptimizer,
        condition_dropout: float = 0.05,
        terminal_timestep_prob: float = 0.0,
    ) -> None:
        super().__init__(optimizer)
        self.tokenizer_folder = find_component(previous, "tokenizer")
        self.detokenizer_folder = find_component(previous, "detokenizer")
        self.latents_folder = self.detokenizer_folder
        tokenizer = read_settings(self.tokenizer_folder, VideoTokenizer, TokenizerConfig)
        detokenizer_config = read_settings(self.detokenizer_folder, VideoDetokenizer, DetokenizerConfig)
        detokenizer_config.for_tokens(tokenizer.tokens_per_clip, tokenizer.token_dim)
        self.condition_dropout = condition_dropout
        self.terminal_timestep_prob = terminal_timestep_prob

    def build(self) -> None:
        """Load both networks from the run before."""
        self.tokenizer = load_component(self.tokenizer_folder, VideoTokenizer).requires_grad_(False)
        self.null_tokens = functools.cache(self.tokenizer.null_tokens)  # the tokenizer is frozen: once per clip size
        self.detokenizer = load_component(self.detokenizer_folder, VideoDetokenizer)

    def frozen_sources(self) -> dict[str, str | Path]:
        """Return the folders of the tokenizer, and of the de-tokenizer for what is frozen in it."""
        return {"tokenizer": self.tokenizer_folder, "detokenizer": self.detokenizer_folder}

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the denoising loss with condition dropout."""
        self.check_sync("train", batch, batch_idx)
        video, tokens = self._clips_and_tokens(batch)
        size = self.detokenizer.config.size
        with torch.no_grad():
            # As in tokenizer pretraining, or the de-tokenizer would unlearn to read few or noisy tokens.
            tokens, _ = self.tokenizer.bottleneck.perturb(tokens, batch_generators(batch, "tokens"))
        loss = self.detokenizer.loss(
            video,
            tokens,
            posterior=batch.get("latents"),
            terminal_timestep_prob=self.terminal_timestep_prob,
            condition_dropout=self.condition_dropout,
            null_tokens_QC=self.null_tokens(size, size),
            generator=batch_generators(batch, "train"),
        )
        return self.training_loss({"loss": LossPart(loss, num_real_samples(batch))}, batch)

    @torch.no_grad()
    def _clips_and_tokens(self, batch: Batch) -> tuple[Tensor | None, Tensor]:
        """Return the clips, float in [-1, 1], and their tokens; cached tokens alone if the batch has them."""
        video = clips_of(batch)
        return video, batch["tokens"] if video is None else self.tokenizer(video)

    def loss_counts(self, batch: Batch) -> dict[str, int]:
        """Count clips."""
        return {"loss": num_real_samples(batch)}

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Log the losses without dropout."""
        self.check_sync("validation", batch, batch_idx)
        video, tokens = self._clips_and_tokens(batch)
        losses = validation_losses(self.detokenizer, video, tokens, batch, batch_idx, batch.get("latents"))
        self.log_validation(losses)

    def exported_components(self) -> dict[str, nn.Module]:
        """Return the refined de-tokenizer."""
        return {"detokenizer": self.detokenizer}

    def used_components(self) -> dict[str, Path]:
        """Return the tokenizer that it was refined for."""
        return {"tokenizer": self.tokenizer_folder}
