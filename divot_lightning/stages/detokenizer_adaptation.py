"""De-tokenizer adaptation: the video diffusion model learns from what the LLM's head samples (Divot appendix A.2)."""

from pathlib import Path
from typing import Any, Literal

import torch
from lightning import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn

from divot_lightning.components import find_component, load_component
from divot_lightning.errors import UserError
from divot_lightning.models.detokenizer import VideoDetokenizer
from divot_lightning.models.pixels import to_unit_range
from divot_lightning.models.tokenizer import VideoTokenizer
from divot_lightning.models.video_llm import VideoLLM
from divot_lightning.stages.optimization import OptimizerSettings, configure_optimizer
from divot_lightning.stages.tokenizer_pretraining import check_token_sizes, log_validation

NearestPer = Literal["clip", "token"]


class DetokenizerAdaptation(LightningModule):
    """Adapts the de-tokenizer to features that are sampled from a trained video LLM, which is frozen.

    The paper conditions on one sample per caption. That works as far as a caption decides the clip; where it leaves
    much open (the toy world's position, for one), a sample seldom means the clip that it is trained to give, and the
    de-tokenizer would learn to look away. With several `candidates` the sample nearest to the clip's own features is
    taken: it still carries the head's errors, and it means this clip.

    Args:
        previous: Run folder of the video LLM.
        detokenizer: Run folder of the de-tokenizer to adapt.
        optimizer: Optimizer settings.
        candidates: Samples drawn per clip; 1 is the paper's way.
        nearest_per: Whether the nearest candidate is chosen once for a clip or token by token. A head that draws every
            token by itself gives any combination of its candidates' tokens equally well.
        temperature: Spread of the head's samples.
        condition_dropout: Share of clips whose tokens are replaced by those of an all-zero clip, for guidance.
        terminal_share: See `TokenizerPretraining`; 0 is the paper's way.
    """

    def __init__(
        self,
        previous: str,
        detokenizer: str,
        optimizer: OptimizerSettings,
        candidates: int = 1,
        nearest_per: NearestPer = "clip",
        temperature: float = 1.0,
        condition_dropout: float = 0.05,
        terminal_share: float = 0.0,
    ) -> None:
        super().__init__()
        if candidates < 1:
            raise UserError(f"candidates is {candidates}; it must be at least 1 (1 is the paper's way)")
        self.sources = {
            "tokenizer": find_component(previous, "tokenizer"),
            "video_llm": find_component(previous, "video_llm"),
        }
        self.tokenizer = load_component(self.sources["tokenizer"], VideoTokenizer).requires_grad_(False).eval()
        self.video_llm = load_component(self.sources["video_llm"], VideoLLM).requires_grad_(False).eval()
        self.detokenizer = load_component(find_component(detokenizer, "detokenizer"), VideoDetokenizer)
        check_token_sizes(self.tokenizer.config, self.detokenizer.config)
        self.optimizer_settings = optimizer
        self.candidates = candidates
        self.nearest_per = nearest_per
        self.temperature = temperature
        self.condition_dropout = condition_dropout
        self.terminal_share = terminal_share

    def train(self, mode: bool = True) -> "DetokenizerAdaptation":
        """Switches the de-tokenizer; what is frozen stays in evaluation mode."""
        super().train(mode)
        self.tokenizer.eval()
        self.video_llm.eval()
        return self

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """Returns the denoising loss of clips given features sampled for their captions."""
        video = to_unit_range(batch["video"])
        loss = self.detokenizer.loss(
            video,
            self.sampled_features(batch, video),
            terminal_share=self.terminal_share,
            condition_dropout=self.condition_dropout,
            null_tokens_QC=self.tokenizer.null_tokens(*video.shape[-2:]),
        )
        self.log("train/loss", loss, prog_bar=True, batch_size=len(video))
        return loss

    @torch.no_grad()
    def sampled_features(self, batch: dict[str, Any], video_MFCHW: Tensor) -> Tensor:
        """Samples features for the clips to generate, (M, Q, C): of several candidates the nearest to a clip's own."""
        drawn = [
            self.video_llm.generate_features(batch["segments"], temperature=self.temperature)
            for _ in range(self.candidates)
        ]
        if self.candidates == 1:
            return drawn[0]
        return nearest_candidates(torch.stack(drawn), self.tokenizer(video_MFCHW), self.nearest_per)

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """Logs the losses with sampled features, without dropout."""
        video = to_unit_range(batch["video"])
        log_validation(self, self.detokenizer, video, self.sampled_features(batch, video), batch_idx)

    def transfer_batch_to_device(
        self, batch: dict[str, Any], device: torch.device, dataloader_idx: int
    ) -> dict[str, Any]:
        """Moves the tensors of a batch; segments stay as they are."""
        return {name: value.to(device) if isinstance(value, Tensor) else value for name, value in batch.items()}

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """Builds optimizer and schedule."""
        return configure_optimizer(self, self.optimizer_settings, int(self.trainer.estimated_stepping_batches))

    def exported_components(self) -> dict[str, nn.Module]:
        """Returns the adapted de-tokenizer."""
        return {"detokenizer": self.detokenizer}

    def used_components(self) -> dict[str, Path]:
        """Returns the tokenizer and the video LLM that it was adapted to."""
        return self.sources


def nearest_candidates(candidates_NMQC: Tensor, target_MQC: Tensor, per: NearestPer) -> Tensor:
    """Chooses among N candidates the one nearest to the target, for each clip or for each token.

    Args:
        candidates_NMQC: Candidates, float.
        target_MQC: What they are compared with, float.
        per: Whether the Q tokens of a clip are chosen together.

    Returns:
        The chosen features (M, Q, C).

    >>> candidates = torch.tensor([[[[0.0], [5.0]]], [[[3.0], [1.0]]]])
    >>> nearest_candidates(candidates, torch.zeros(1, 2, 1), "token").flatten().tolist()
    [0.0, 1.0]
    >>> nearest_candidates(candidates, torch.zeros(1, 2, 1), "clip").flatten().tolist()
    [3.0, 1.0]
    """
    distance_NMQ = (candidates_NMQC - target_MQC).square().sum(dim=-1)
    if per == "clip":
        distance_NMQ = distance_NMQ.sum(dim=-1, keepdim=True).expand_as(distance_NMQ)
    chosen_MQ = distance_NMQ.argmin(dim=0)
    return candidates_NMQC.gather(0, chosen_MQ[None, :, :, None].expand_as(candidates_NMQC[:1]))[0]
