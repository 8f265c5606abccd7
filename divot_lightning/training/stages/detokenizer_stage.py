"""What refinement and adaptation share: a de-tokenizer that learns to decode the tokens it is given."""

import functools
from pathlib import Path

import torch
from torch import Tensor, nn

from divot_lightning.checkpoint.components import load_component, read_settings
from divot_lightning.distributed.rank_sync import RankSync
from divot_lightning.errors import UserError
from divot_lightning.models.detokenizer.config import DetokenizerConfig
from divot_lightning.models.detokenizer.video_detokenizer import VideoDetokenizer
from divot_lightning.models.pixels import to_unit_range
from divot_lightning.models.tokenizer.config import TokenizerConfig
from divot_lightning.models.tokenizer.video_tokenizer import VideoTokenizer
from divot_lightning.parts.batch import Batch, num_real_samples
from divot_lightning.parts.optimizers import TrainingOptimizer
from divot_lightning.parts.randomness import Randomness
from divot_lightning.training.global_mean import LossPart
from divot_lightning.training.stages.stage import Split, Stage, batch_generators


class DetokenizerStage(Stage):
    """Trains a de-tokenizer for a frozen tokenizer, with condition dropout.

    The data may hold cached tokens and latents in place of videos (`divot data encode --detokenizer`).

    Args:
        optimizer: Optimizer settings.
        sources: Folders of the frozen components by name, with "tokenizer".
        detokenizer: Folder of the de-tokenizer.
        condition_dropout: Fraction of clips whose tokens are replaced by those of an all-zero clip.
        terminal_timestep_prob: See `TokenizerPretraining`.
    """

    frozen: tuple[str, ...] = ("tokenizer",)

    def __init__(
        self,
        optimizer: TrainingOptimizer,
        sources: dict[str, Path],
        detokenizer: Path,
        condition_dropout: float,
        terminal_timestep_prob: float,
    ) -> None:
        super().__init__(optimizer)
        self.sources, self.tokenizer_folder = sources, sources["tokenizer"]
        self.latents_folder = self.detokenizer_folder = detokenizer
        tokenizer = read_settings(self.tokenizer_folder, VideoTokenizer, TokenizerConfig)
        settings = read_settings(detokenizer, VideoDetokenizer, DetokenizerConfig)
        settings.for_tokens(tokenizer.tokens_per_clip, tokenizer.token_dim)  # refuses another tokenizer's
        self.condition_dropout = condition_dropout
        self.terminal_timestep_prob = terminal_timestep_prob

    def build(self) -> None:
        """Load both networks from the runs before."""
        self.tokenizer = load_component(self.tokenizer_folder, VideoTokenizer).requires_grad_(False)
        self.null_tokens = functools.cache(self.tokenizer.null_tokens)  # the tokenizer is frozen: once per clip size
        self.detokenizer = load_component(self.detokenizer_folder, VideoDetokenizer)

    def frozen_sources(self) -> dict[str, str | Path]:
        """Return the folders of the frozen components, and of the de-tokenizer for what is frozen in it."""
        return {**self.sources, "detokenizer": self.detokenizer_folder}

    def condition(self, batch: Batch, video_BFCHW: Tensor | None, split: Split, sync: RankSync) -> Tensor:
        """Return the tokens of a batch that the de-tokenizer decodes.

        Args:
            batch: The batch.
            video_BFCHW: Its clips, float in [-1, 1]; None if it has cached latents in their place.
            split: Of the data.
            sync: Has the largest numbers of samples and of clips on any process.

        Returns:
            tokens_BQC, without gradient.
        """
        raise TypeError(f"{type(self).__name__} has no condition()")

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the denoising loss with condition dropout."""
        sync = self.check_sync("train", batch, batch_idx)
        video, size = clips_of(batch), self.detokenizer.config.size
        loss = self.detokenizer.loss(
            video,
            self.condition(batch, video, "train", sync),
            posterior=batch.get("latents"),
            terminal_timestep_prob=self.terminal_timestep_prob,
            condition_dropout=self.condition_dropout,
            null_tokens_QC=self.null_tokens(size, size),
            generator=batch_generators(batch, "train"),
        )
        return self.training_loss({"loss": LossPart(loss, num_real_samples(batch))}, batch)

    def loss_counts(self, batch: Batch) -> dict[str, int]:
        """Count clips."""
        return {"loss": num_real_samples(batch)}

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Log the losses without dropout."""
        sync = self.check_sync("validation", batch, batch_idx)
        video = clips_of(batch)
        tokens = self.condition(batch, video, "validation", sync)
        self.log_validation(validation_losses(self.detokenizer, video, tokens, batch, batch_idx))

    def exported_components(self) -> dict[str, nn.Module]:
        """Return the de-tokenizer."""
        return {"detokenizer": self.detokenizer}

    def used_components(self) -> dict[str, Path]:
        """Return the folders of the components that it was trained for."""
        return self.sources


def clips_of(batch: Batch) -> Tensor | None:
    """Return the clips of a batch for a de-tokenizer, float in [-1, 1]; None if it has cached latents in their place.

    Raises:
        UserError: It has neither.
    """
    if "latents" in batch:
        return None
    if "video" not in batch:
        raise UserError(
            f"the samples hold cached features alone, as {batch['key'][0]!r} does, and this stage trains on pixels, or "
            "on latents beside the features\ngive it the shards that the features were made from, or run "
            "`divot data encode` with --detokenizer"
        )
    return to_unit_range(batch["video"])


def validation_losses(
    detokenizer: VideoDetokenizer, video_BFCHW: Tensor | None, tokens_BQC: Tensor, batch: Batch, batch_idx: int
) -> dict[str, LossPart]:
    """Compute a de-tokenizer's validation losses, with the same noise at every validation; see its `loss`."""
    losses = {}
    for name, prob in (("loss", 0.0), ("loss_at_pure_noise", 1.0)):
        generators: Randomness = batch_generators(batch, "validation")
        if generators is None:
            generators = torch.Generator(tokens_BQC.device).manual_seed(batch_idx)
        posterior = batch.get("latents")
        loss = detokenizer.loss(
            video_BFCHW, tokens_BQC, posterior=posterior, terminal_timestep_prob=prob, generator=generators
        )
        losses[name] = LossPart(loss, num_real_samples(batch))
    return losses
