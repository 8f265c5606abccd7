"""Captioning pretraining of a tokenizer: Divot's baseline for diffusion (table 6, arXiv:2412.04432)."""

from pathlib import Path

from torch import Generator, Tensor, nn

from divot_lightning.errors import UserError
from divot_lightning.models.pixels import to_unit_range
from divot_lightning.models.tokenizer.config import TokenizerConfig
from divot_lightning.models.tokenizer.video_tokenizer import VideoTokenizer
from divot_lightning.models.video_llm.building import sequence_collator
from divot_lightning.models.video_llm.model import VideoLLM, VideoLLMConfig
from divot_lightning.parts.batch import Batch, num_real_samples
from divot_lightning.parts.heads import GenerationHead
from divot_lightning.parts.optimizers import TrainingOptimizer
from divot_lightning.parts.sequences.collator import SequenceCollator
from divot_lightning.training.global_mean import LossPart
from divot_lightning.training.stages.stage import Stage, batch_generators
from divot_lightning.training.stages.tokenizer_pretraining import kl_count, kl_part, vision_source
from divot_lightning.training.stages.video_llm_step import sequences_of


class NoHead(GenerationHead):
    """The head of a model that only reads clips: it has no loss and generates nothing."""

    def loss(self, hidden_BQD: Tensor, target_BQC: Tensor, mask_BQ: Tensor | None = None) -> Tensor:
        """Return zero, with a graph."""
        return 0.0 * hidden_BQD.float().sum()

    def sample(self, hidden_BQD: Tensor, *, temperature: float = 1.0, generator: Generator | None = None) -> Tensor:
        """Refuse.

        Raises:
            UserError: Always.
        """
        raise UserError("a model of captioning pretraining reads clips and generates none")


class CaptioningPretraining(Stage):
    """Learns tokens because a language model must write the clip's caption from them, without a diffusion model.

    The same tokenizer as in `TokenizerPretraining`, another objective. In the paper the language model is pretrained
    and frozen (`llm.freeze_language_model`); one without pretrained weights has to learn along.

    Args:
        tokenizer: The tokenizer.
        llm: The language model that reads the tokens. It is not exported.
        optimizer: Optimizer settings.
    """

    def __init__(self, tokenizer: TokenizerConfig, llm: VideoLLMConfig, optimizer: TrainingOptimizer) -> None:
        super().__init__(optimizer)
        self.tokenizer_config, self.llm_config = tokenizer, llm

    def build(self) -> None:
        """Build both networks, untrained except for a vision encoder and a language model that come from folders."""
        self.tokenizer = VideoTokenizer(self.tokenizer_config)
        self.video_llm = VideoLLM(self._llm_config(self.tokenizer.config), NoHead)
        self.video_llm.queries.requires_grad_(False)  # they only serve generated clips

    def frozen_sources(self) -> dict[str, str | Path]:
        """Return the sources of a frozen vision encoder and language model: checkpoints do not store them again."""
        sources, llm = vision_source("tokenizer.vision", self.tokenizer.vision), self.llm_config
        if llm.freeze_language_model and llm.language_model is not None:
            sources["video_llm.language_model"] = llm.language_model
        return sources

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the next-word loss of captions given the clips' tokens."""
        self.check_sync("train", batch, batch_idx)
        return self.training_loss(self._losses(batch, perturbed=True), batch)

    def loss_counts(self, batch: Batch) -> dict[str, int]:
        """Count the words to learn."""
        words = sequences_of(batch).num_text_targets if num_real_samples(batch) else 0
        return {"text_loss": words, **kl_count(self.tokenizer_config, batch)}

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Log the loss of the captions."""
        self.check_sync("validation", batch, batch_idx)
        self.log_validation(self._losses(batch))

    def _losses(self, batch: Batch, *, perturbed: bool = False) -> dict[str, LossPart]:
        if "video" not in batch:
            raise UserError("captioning pretraining trains the tokenizer on pixels; give it shards of videos")
        tokens_MQC, divergence = self.tokenizer(to_unit_range(batch["video"])), None
        if perturbed:
            tokens_MQC, divergence = self.tokenizer.bottleneck.perturb(tokens_MQC, batch_generators(batch, "tokens"))
        output = self.video_llm(sequences_of(batch), tokens_MQC)
        counts = int(num_real_samples(batch) > 0)
        text = LossPart(output.text_loss, counts * output.num_text_targets)
        return {"text_loss": text, **kl_part(divergence, self.tokenizer, batch)}

    def sequence_collator(self) -> SequenceCollator:
        """Return what the data need to tokenise and lay out samples."""
        tokens = self.tokenizer.config if self.is_built else self.tokenizer_config
        return sequence_collator(self._llm_config(tokens))

    def _llm_config(self, tokens: TokenizerConfig) -> VideoLLMConfig:
        return self.llm_config.for_tokenizer(tokens.tokens_per_clip, tokens.token_dim, tokens.bottleneck.sphere)

    def exported_components(self) -> dict[str, nn.Module]:
        """Return the tokenizer."""
        return {"tokenizer": self.tokenizer}

    def used_components(self) -> dict[str, Path]:
        """Return nothing: this is a first stage."""
        return {}
