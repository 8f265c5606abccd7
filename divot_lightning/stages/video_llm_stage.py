"""What both stages of the video LLM do alike: steps, optimiser, checkpoints without the frozen tokenizer, exports."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from lightning import LightningModule
from torch import Tensor, nn

from divot_lightning.models.video_llm import VideoLLM, VideoLLMOutput
from divot_lightning.stages.optimization import OptimizerSettings, configure_optimizer
from divot_lightning.stages.video_llm_step import (
    add_frozen,
    check_widths,
    clip_features,
    drop_frozen,
    find_drawing_part,
    load_frozen_tokenizer,
    loss_record,
    video_llm_step,
)


class VideoLLMStage(LightningModule):
    """Trains a video LLM on the features of a frozen tokenizer.

    Args:
        video_llm: The model to train.
        previous: Run folder that trained or used the tokenizer.
        optimizer: Optimiser settings.
        text_loss_weight: Weight of the next-word loss.
        head_loss_weight: Weight of the generation head's loss.
    """

    def __init__(
        self,
        video_llm: VideoLLM,
        previous: str,
        optimizer: OptimizerSettings,
        text_loss_weight: float,
        head_loss_weight: float,
    ) -> None:
        super().__init__()
        self.previous = previous
        self.tokenizer, self.tokenizer_folder = load_frozen_tokenizer(previous)
        check_widths(self.tokenizer, video_llm)
        self.video_llm = video_llm
        self.optimizer_settings = optimizer
        self.weights = {"text_loss_weight": text_loss_weight, "head_loss_weight": head_loss_weight}

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """Computes the loss of a batch.

        Args:
            batch: "segments", "key", and "video" or "features".
            batch_idx: Not used.

        Returns:
            The weighted loss.
        """
        loss, output = self._step(batch)
        for name, (value, count) in loss_record("train", loss, output, len(batch["segments"])).items():
            if count:
                self.log(name, value, batch_size=count, prog_bar=True)
        return loss

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """Logs the losses of a validation batch, averaged over samples, targets and clips; arguments as above."""
        loss, output = self._step(batch)
        for name, (value, count) in loss_record("validation", loss, output, len(batch["segments"])).items():
            # Processes must log the same names, or they would wait for each other for ever.
            if count or self.trainer.world_size > 1:
                self.log(name, value, batch_size=count, sync_dist=True, prog_bar=True)

    def _step(self, batch: dict[str, Any]) -> tuple[Tensor, VideoLLMOutput]:
        return video_llm_step(self.video_llm, batch, clip_features(batch, self.tokenizer), **self.weights)

    def transfer_batch_to_device(
        self, batch: dict[str, Any], device: torch.device, dataloader_idx: int
    ) -> dict[str, Any]:
        """Moves the tensors of a batch; segments stay as they are."""
        return {name: value.to(device) if isinstance(value, Tensor) else value for name, value in batch.items()}

    def configure_optimizers(self) -> Any:
        """Gives the optimiser and its schedule."""
        return configure_optimizer(self, self.optimizer_settings, int(self.trainer.estimated_stepping_batches))

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Leaves the frozen tokenizer out."""
        drop_frozen(checkpoint)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Takes the frozen tokenizer from its run."""
        add_frozen(checkpoint, self.tokenizer)

    def exported_components(self) -> dict[str, nn.Module]:
        """Gives what this stage trained."""
        return {"video_llm": self.video_llm}

    def used_components(self) -> dict[str, Path]:
        """Gives the frozen tokenizer, and the de-tokenizer that belongs to it, which draws what is generated."""
        return {"tokenizer": self.tokenizer_folder, **find_drawing_part(self.previous, self.tokenizer_folder)}
