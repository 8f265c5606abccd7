"""Instruction tuning: a pretrained video LLM learns to follow instructions (Divot section 3.3, arXiv:2412.04432)."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Literal, TypeAlias, get_args

from torch import nn

from divot_lightning.checkpoint.components import load_component, read_settings
from divot_lightning.checkpoint.run_components import find_component
from divot_lightning.errors import require_one_of
from divot_lightning.models.video_llm.building import sequence_collator
from divot_lightning.models.video_llm.config import VideoLLMConfig
from divot_lightning.models.video_llm.lora import LoRAConfig
from divot_lightning.models.video_llm.model import VideoLLM
from divot_lightning.parts.optimizers import TrainingOptimizer
from divot_lightning.parts.sequences.collator import SequenceCollator
from divot_lightning.training.stages.video_llm_stage import VideoLLMStage

Freezable: TypeAlias = Literal["head", "input_projector", "language_model", "queries"]


class InstructionTuning(VideoLLMStage):
    """Trains a pretrained video LLM further, on instructions.

    Adapters of the pretraining are merged into the weights, and new ones with the same settings are added.

    Args:
        previous: Run folder of the LLM pretraining.
        optimizer: Optimizer settings.
        freeze: Modules that are not trained. In the released configurations comprehension tuning freezes the head and
            generation tuning the input projector.
        lora: Adapters; None takes the settings of the pretraining, without adapters if it had none.
        max_length: Longest training sequence in tokens; None as in the pretraining. The paper's: 1650.
        packing: Let samples of a batch share rows, which changes no loss; None as in the pretraining.
        text_loss_weight: Weight of the next-word loss; 1 in the paper.
        head_loss_weight: Weight of the generation head's loss; 1 in the paper.
    """

    def __init__(
        self,
        previous: str,
        optimizer: TrainingOptimizer,
        freeze: list[Freezable] | None = None,
        lora: LoRAConfig | None = None,
        max_length: int | None = None,
        packing: bool | None = None,
        text_loss_weight: float = 1.0,
        head_loss_weight: float = 1.0,
    ) -> None:
        for name in freeze or []:
            require_one_of(get_args(Freezable), freeze=name)
        folder = find_component(previous, "video_llm")
        config = read_settings(folder, VideoLLM, VideoLLMConfig)
        if max_length is not None:
            config = replace(config, max_length=max_length)
        if packing is not None:
            config = replace(config, packing=packing)
        super().__init__(config, previous, optimizer, text_loss_weight, head_loss_weight)
        self.video_llm_folder = folder
        self.freeze_names = freeze or []
        self.lora = lora

    def build_video_llm(self) -> VideoLLM:
        """Load the video LLM, merge its adapters into the weights, add new ones and freeze modules."""
        video_llm = load_component(self.video_llm_folder, VideoLLM)
        adapters = self.lora or video_llm.config.lora
        video_llm.merge_lora()
        if adapters is not None:
            video_llm.add_lora(adapters)
        video_llm.set_layout(max_length=self.llm_config.max_length, packing=self.llm_config.packing)
        for name in self.freeze_names:
            module: nn.Module = getattr(video_llm, name)
            module.requires_grad_(False)
        return video_llm

    def sequence_collator(self) -> SequenceCollator:
        """Return what the data need to tokenise and lay out samples."""
        return sequence_collator(self.llm_config, self.video_llm_folder)

    def frozen_sources(self) -> dict[str, str | Path]:
        """Return the folders of the tokenizer, and of the pretraining for frozen modules."""
        return {**super().frozen_sources(), "video_llm": self.video_llm_folder}
