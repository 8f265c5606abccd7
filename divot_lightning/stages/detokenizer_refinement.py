"""De-tokenizer refinement: the video diffusion model alone, with condition dropout (Divot appendix A.1)."""

from pathlib import Path
from typing import Any

import torch
from lightning import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn

from divot_lightning.components import find_component, load_component
from divot_lightning.models.detokenizer import VideoDetokenizer
from divot_lightning.models.pixels import to_unit_range
from divot_lightning.models.tokenizer import VideoTokenizer
from divot_lightning.stages.optimization import OptimizerSettings, configure_optimizer
from divot_lightning.stages.tokenizer_pretraining import check_token_sizes, log_validation


class DetokenizerRefinement(LightningModule):
    """Refines the de-tokenizer for a frozen tokenizer and prepares it for classifier-free guidance.

    Args:
        previous: Run folder of tokenizer pretraining.
        optimizer: Optimizer settings.
        condition_dropout: Share of clips whose tokens are replaced by those of an all-zero (mid-grey) clip; 5 % in the
            paper.
        terminal_share: See `TokenizerPretraining`; 0 is the paper's way.
    """

    def __init__(
        self,
        previous: str,
        optimizer: OptimizerSettings,
        condition_dropout: float = 0.05,
        terminal_share: float = 0.0,
    ) -> None:
        super().__init__()
        self.tokenizer_folder = find_component(previous, "tokenizer")
        tokenizer = load_component(self.tokenizer_folder, VideoTokenizer)
        self.detokenizer = load_component(find_component(previous, "detokenizer"), VideoDetokenizer)
        check_token_sizes(tokenizer.config, self.detokenizer.config)
        self.tokenizer = tokenizer.requires_grad_(False).eval()
        self.optimizer_settings = optimizer
        self.condition_dropout = condition_dropout
        self.terminal_share = terminal_share

    def train(self, mode: bool = True) -> "DetokenizerRefinement":
        """Switches the de-tokenizer; the frozen tokenizer stays in evaluation mode."""
        super().train(mode)
        self.tokenizer.eval()
        return self

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """Returns the denoising loss with condition dropout."""
        video = to_unit_range(batch["video"])
        with torch.no_grad():
            tokens = self.tokenizer(video)
            null_tokens = self.tokenizer.null_tokens(*video.shape[-2:])
        loss = self.detokenizer.loss(
            video,
            tokens,
            terminal_share=self.terminal_share,
            condition_dropout=self.condition_dropout,
            null_tokens_QC=null_tokens,
        )
        self.log("train/loss", loss, prog_bar=True, batch_size=len(video))
        return loss

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """Logs the losses without dropout."""
        video = to_unit_range(batch["video"])
        log_validation(self, self.detokenizer, video, self.tokenizer(video), batch_idx)

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """Builds optimizer and schedule."""
        return configure_optimizer(self, self.optimizer_settings, int(self.trainer.estimated_stepping_batches))

    def exported_components(self) -> dict[str, nn.Module]:
        """Returns the refined de-tokenizer."""
        return {"detokenizer": self.detokenizer}

    def used_components(self) -> dict[str, Path]:
        """Returns the tokenizer that it was refined for."""
        return {"tokenizer": self.tokenizer_folder}
