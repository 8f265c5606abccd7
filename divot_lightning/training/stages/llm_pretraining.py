"""LLM pretraining: the next word and the features of clips are learned together (Divot section 3.2)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from divot_lightning.models.video_llm.model import VideoLLM, VideoLLMConfig
from divot_lightning.parts.heads import GenerationHead
from divot_lightning.parts.optimizers import TrainingOptimizer
from divot_lightning.training.stages.video_llm_stage import VideoLLMStage
from divot_lightning.training.stages.video_llm_step import apply_feature_statistics, feature_statistics


class LLMPretraining(VideoLLMStage):
    """Trains a video LLM and its generation head on the features of a frozen tokenizer.

    Args:
        head: The generation head; its widths come from the model.
        previous: Run folder of the tokenizer stage (or of one that used its tokenizer).
        llm: The video LLM.
        optimizer: Optimizer settings.
        text_loss_weight: Weight of the next-word loss; 1 in the paper.
        head_loss_weight: Weight of the generation head's loss; 1 in the paper.
        statistics_batches: Training batches from which mean and standard deviation of the features are measured before
            the first step; 0 leaves features as they are, as the released code does. With accumulated batches it
            counts steps.
    """

    statistics_known: torch.Tensor

    def __init__(
        self,
        head: Callable[[int, int], GenerationHead],
        previous: str,
        llm: VideoLLMConfig,
        optimizer: TrainingOptimizer,
        text_loss_weight: float = 1.0,
        head_loss_weight: float = 1.0,
        statistics_batches: int = 16,
    ) -> None:
        super().__init__(llm, previous, optimizer, text_loss_weight, head_loss_weight)
        self.head = head
        self.statistics_batches = statistics_batches
        self.register_buffer("statistics_known", torch.tensor(False))

    def build_video_llm(self) -> VideoLLM:
        """Build the video LLM, pretrained or not, and an untrained head."""
        return VideoLLM(self.llm_config, self.head)

    def frozen_sources(self) -> dict[str, str | Path]:
        """Return the folder of the tokenizer, and of a pretrained language model, frozen under adapters."""
        pretrained = self.llm_config.language_model
        return {**super().frozen_sources(), **({"video_llm.language_model": pretrained} if pretrained else {})}

    def on_fit_start(self) -> None:
        """Measure the feature statistics, once: a resumed run finds them in its checkpoint."""
        if self.statistics_batches > 0 and not self.statistics_known:
            self._measure_features()
        super().on_fit_start()

    def _measure_features(self) -> None:
        self.trainer.fit_loop.setup_data()
        batches: Any = self.trainer.train_dataloader
        count = self.statistics_batches * self.trainer.accumulate_grad_batches
        sums = feature_statistics(batches, count, self.tokenizer, self.video_llm)
        apply_feature_statistics(self.video_llm, self.trainer.strategy.reduce(sums, reduce_op="sum"))
        self.statistics_known.fill_(True)
