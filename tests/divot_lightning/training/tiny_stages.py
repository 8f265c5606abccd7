"""Tiny versions of all stages, for processes that get their settings pickled."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from divot_heads.gmm import GMMHead
from divot_lightning.parts.sequences.collator import LaysOutSamples
from divot_lightning.training.stages.captioning_pretraining import CaptioningPretraining
from divot_lightning.training.stages.detokenizer_adaptation import DetokenizerAdaptation
from divot_lightning.training.stages.detokenizer_refinement import DetokenizerRefinement
from divot_lightning.training.stages.instruction_tuning import InstructionTuning
from divot_lightning.training.stages.llm_pretraining import LLMPretraining
from divot_lightning.training.stages.tokenizer_pretraining import TokenizerPretraining
from divot_optimizers.adamw import AdamWOptimizer

OPTIMIZER = AdamWOptimizer(lr=3e-3, warmup_steps=2)


@dataclass
class Settings:
    """What a process needs to build the stages; everything can be pickled."""

    folder: Path
    tokenizer: Any
    detokenizer: Any
    llm: Any
    optimizer: Any = OPTIMIZER


def make_stage(name, settings):
    run, llm_run = str(settings.folder / "tokenizer_run"), str(settings.folder / "llm_run")
    optimizer = settings.optimizer
    makers = {
        "tokenizer": lambda: TokenizerPretraining(settings.tokenizer, settings.detokenizer, optimizer, 0.3),
        "captioning": lambda: CaptioningPretraining(settings.tokenizer, settings.llm, optimizer),
        "refinement": lambda: DetokenizerRefinement(run, optimizer, condition_dropout=0.5),
        "pretraining": lambda: LLMPretraining(GMMHead, run, settings.llm, optimizer, statistics_batches=2),
        "tuning": lambda: InstructionTuning(llm_run, optimizer, freeze=["input_projector"]),
        "adaptation": lambda: DetokenizerAdaptation(llm_run, run, optimizer, candidates=2, nearest_per="token"),
    }
    return makers[name]()


def with_sequences(stage, batch):
    """Return a batch with the token sequences that the stage wants, as the data workers add them."""
    if not isinstance(stage, LaysOutSamples):
        return batch
    return {**batch, "sequences": stage.sequence_collator().lay_out(batch["segments"])}
