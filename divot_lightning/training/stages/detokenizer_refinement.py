"""De-tokenizer refinement: the video diffusion model alone, with condition dropout (Divot appendix A.1)."""

import torch
from torch import Tensor

from divot_lightning.checkpoint.run_components import find_component
from divot_lightning.distributed.rank_sync import RankSync
from divot_lightning.parts.batch import Batch
from divot_lightning.parts.optimizers import TrainingOptimizer
from divot_lightning.training.stages.detokenizer_stage import DetokenizerStage
from divot_lightning.training.stages.stage import Split, batch_generators


class DetokenizerRefinement(DetokenizerStage):
    """Refines the de-tokenizer for a frozen tokenizer and prepares it for classifier-free guidance.

    The data may hold cached tokens and latents in place of videos (`divot data encode --detokenizer`).

    Args:
        previous: Run folder of tokenizer pretraining.
        optimizer: Optimizer settings.
        condition_dropout: Fraction of clips whose tokens are replaced by those of an all-zero (mid-grey) clip; 5 % in
            the paper.
        terminal_timestep_prob: See `TokenizerPretraining`; 0 in the paper.
    """

    def __init__(
        self,
        previous: str,
        optimizer: TrainingOptimizer,
        condition_dropout: float = 0.05,
        terminal_timestep_prob: float = 0.0,
    ) -> None:
        tokenizer, detokenizer = (find_component(previous, name) for name in ("tokenizer", "detokenizer"))
        super().__init__(optimizer, {"tokenizer": tokenizer}, detokenizer, condition_dropout, terminal_timestep_prob)

    @torch.no_grad()
    def condition(self, batch: Batch, video_BFCHW: Tensor | None, split: Split, sync: RankSync) -> Tensor:
        """Return the tokens of the clips, cached or computed; in training perturbed as in tokenizer pretraining."""
        tokens_BQC = batch["tokens"] if video_BFCHW is None else self.tokenizer(video_BFCHW)
        if split == "train":  # or the de-tokenizer would unlearn to read few or noisy tokens
            tokens_BQC, _ = self.tokenizer.bottleneck.perturb(tokens_BQC, batch_generators(batch, "tokens"))
        return tokens_BQC
