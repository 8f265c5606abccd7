"""Base of both stages of the video LLM: steps and exports."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor, nn

from divot_lightning.checkpoint.components import load_component, read_settings
from divot_lightning.checkpoint.run_components import find_component
from divot_lightning.distributed.rank_sync import RankSync
from divot_lightning.models.tokenizer.config import TokenizerConfig
from divot_lightning.models.tokenizer.video_tokenizer import VideoTokenizer
from divot_lightning.models.video_llm.building import sequence_collator
from divot_lightning.models.video_llm.config import VideoLLMConfig
from divot_lightning.models.video_llm.model import VideoLLM
from divot_lightning.models.weights import has_shards
from divot_lightning.parts.batch import Batch, num_real_samples
from divot_lightning.parts.optimizers import TrainingOptimizer
from divot_lightning.parts.sequences.collator import SequenceCollator
from divot_lightning.training.global_mean import LossPart
from divot_lightning.training.stages.stage import Stage
from divot_lightning.training.stages.video_llm_step import (
    clip_features,
    find_detokenizer,
    loss_parts,
    sequences_of,
)


class VideoLLMStage(Stage):
    """Trains a video LLM on the features of a frozen tokenizer.

    Args:
        config: Settings of the model to train.
        previous: Run folder that trained or used the tokenizer.
        optimizer: Optimizer settings.
        text_loss_weight: Weight of the next-word loss.
        head_loss_weight: Weight of the generation head's loss.
    """

    frozen = ("tokenizer",)

    def __init__(
        self,
        config: VideoLLMConfig,
        previous: str,
        optimizer: TrainingOptimizer,
        text_loss_weight: float,
        head_loss_weight: float,
    ) -> None:
        super().__init__(optimizer)
        self.previous = previous
        self.tokenizer_folder = find_component(previous, "tokenizer")
        tokenizer = read_settings(self.tokenizer_folder, VideoTokenizer, TokenizerConfig)
        sphere = tokenizer.bottleneck.sphere
        self.llm_config = config.for_tokenizer(tokenizer.tokens_per_clip, tokenizer.token_dim, sphere)
        self.weights = {"text_loss_weight": text_loss_weight, "head_loss_weight": head_loss_weight}

    def build_video_llm(self) -> VideoLLM:
        """Build the model to train."""
        raise TypeError(f"{type(self).__name__} has no build_video_llm()")

    def build(self) -> None:
        """Load the frozen tokenizer and build the video LLM."""
        self.tokenizer = load_component(self.tokenizer_folder, VideoTokenizer).requires_grad_(False)
        self.video_llm = self.build_video_llm()

    def sequence_collator(self) -> SequenceCollator:
        """Return what the data need to tokenise and lay out samples."""
        return sequence_collator(self.llm_config)

    def frozen_sources(self) -> dict[str, str | Path]:
        """Return the folder of the tokenizer."""
        return {"tokenizer": self.tokenizer_folder}

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Compute the loss of a batch.

        Args:
            batch: With "sequences", and "video" or "features".
            batch_idx: Number of the batch in the epoch.

        Returns:
            The weighted loss.
        """
        return self.training_loss(self._step(batch, self.check_sync("train", batch, batch_idx)), batch)

    def loss_counts(self, batch: Batch) -> dict[str, int]:
        """Count the words to learn and the clips to generate."""
        sequences, counts = sequences_of(batch), int(num_real_samples(batch) > 0)
        return {
            "text_loss": counts * sequences.num_text_targets,
            "head_loss": counts * sequences.num_generated_clips,
        }

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Log the losses of a validation batch, averaged over targets and clips; arguments as above."""
        self.log_validation(self._step(batch, self.check_sync("validation", batch, batch_idx)))

    def _step(self, batch: Batch, sync: RankSync) -> dict[str, LossPart]:
        # If the tokenizer is sharded, all processes must run it equally often, also those without clips.
        at_least = sync.most_clips if has_shards(self.tokenizer) else 0
        features = clip_features(batch, self.tokenizer, at_least)
        return loss_parts(self.video_llm(sequences_of(batch), features), batch, **self.weights)

    def exported_components(self) -> dict[str, nn.Module]:
        """Return the video LLM."""
        return {"video_llm": self.video_llm}

    def used_components(self) -> dict[str, Path]:
        """Return the folders of the frozen tokenizer and of its de-tokenizer, which decodes generated features."""
        return {"tokenizer": self.tokenizer_folder, **find_detokenizer(self.previous, self.tokenizer_folder)}
