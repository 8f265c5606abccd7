"""De-tokenizer adaptation: the video diffusion model learns from samples of the LLM's head (Divot appendix A.2)."""

from typing import Literal

import torch
from torch import Tensor

from divot_lightning.checkpoint.components import load_component, read_settings
from divot_lightning.checkpoint.run_components import find_component
from divot_lightning.distributed.rank_sync import RankSync
from divot_lightning.errors import UserError
from divot_lightning.models.video_llm.building import sequence_collator
from divot_lightning.models.video_llm.clip_generation import clips_to_generate, generate_prompted_clips
from divot_lightning.models.video_llm.config import VideoLLMConfig
from divot_lightning.models.video_llm.model import VideoLLM
from divot_lightning.models.weights import has_masters, has_shards
from divot_lightning.parts.batch import Batch
from divot_lightning.parts.optimizers import TrainingOptimizer
from divot_lightning.parts.randomness import Randomness
from divot_lightning.parts.sequences.collator import SequenceCollator
from divot_lightning.training.stages.detokenizer_stage import DetokenizerStage
from divot_lightning.training.stages.stage import Split, batch_generators
from divot_lightning.training.stages.video_llm_step import clip_features, sequences_of

NearestPer = Literal["clip", "token"]


class DetokenizerAdaptation(DetokenizerStage):
    """Adapts the de-tokenizer to features that are sampled from a trained video LLM, which is frozen.

    The paper conditions on one sample per caption. That works if the caption determines the clip. If the caption leaves
    much open (such as the position in the toy world), a sample seldom describes the target clip, and the de-tokenizer
    would learn to ignore its condition. With several `candidates`, the sample nearest to the clip's own features is
    used: it still has the errors of the head, and it describes this clip.

    The data may hold cached tokens and latents in place of videos (`divot data encode --detokenizer`).

    Args:
        previous: Run folder of the video LLM.
        detokenizer: Run folder of the de-tokenizer to adapt.
        optimizer: Optimizer settings.
        candidates: Samples per clip; 1 in the paper.
        nearest_per: Whether the nearest candidate is chosen once per clip, or separately for each token. For a head
            that samples each token independently, any combination of its candidates' tokens is equally likely.
        temperature: Spread of the head's samples.
        condition_dropout: Fraction of clips whose tokens are replaced by those of an all-zero clip, for guidance.
        terminal_timestep_prob: See `TokenizerPretraining`; 0 in the paper.
    """

    frozen = ("tokenizer", "video_llm")

    def __init__(
        self,
        previous: str,
        detokenizer: str,
        optimizer: TrainingOptimizer,
        candidates: int = 1,
        nearest_per: NearestPer = "clip",
        temperature: float = 1.0,
        condition_dropout: float = 0.05,
        terminal_timestep_prob: float = 0.0,
    ) -> None:
        if candidates < 1:
            raise UserError(f"candidates is {candidates}; it must be at least 1 (1 is the paper's way)")
        sources = {name: find_component(previous, name) for name in ("tokenizer", "video_llm")}
        folder = find_component(detokenizer, "detokenizer")
        super().__init__(optimizer, sources, folder, condition_dropout, terminal_timestep_prob)
        self.candidates = candidates
        self.nearest_per = nearest_per
        self.temperature = temperature

    def build(self) -> None:
        """Load the three networks from the runs before."""
        super().build()
        self.video_llm = load_component(self.sources["video_llm"], VideoLLM).requires_grad_(False)
        if not has_masters():
            self.video_llm.use_stored_precision()

    def sequence_collator(self) -> SequenceCollator:
        """Return what the data need to tokenise and lay out the prompts."""
        folder = self.sources["video_llm"]
        return sequence_collator(read_settings(folder, VideoLLM, VideoLLMConfig), folder, prompt=True)

    @torch.no_grad()
    def condition(self, batch: Batch, video_BFCHW: Tensor | None, split: Split, sync: RankSync) -> Tensor:
        """Sample features for the clips to generate; of several candidates, keep the nearest to the clip's own.

        Args:
            batch: With "segments", each ending with one clip to generate, their "sequences", and the clips.
            video_BFCHW: Not used.
            split: Separates the random streams of training and validation.
            sync: Has the largest numbers of samples and of clips on any process.

        Returns:
            features_MQC, float32.
        """
        for sample in batch["segments"]:
            clips_to_generate(sample)  # refuses other samples
        prompts, count = sequences_of(batch), len(batch["segments"])
        # A head is called sample by sample. If it is sharded, all processes must call it equally often: fill up.
        missing = sync.most_samples - count if has_shards(self.video_llm) else 0
        generators: list[Randomness] = []
        for number in range(self.candidates):
            own = batch_generators(batch, f"{split} candidate {number}")
            generators.append(None if own is None else own + [torch.Generator() for _ in range(missing)])
        features_NMQC = generate_prompted_clips(
            self.video_llm, prompts.with_last_row(missing), generators, temperature=self.temperature
        )[:, :count]
        if self.candidates == 1:
            return features_NMQC[0]
        target_MQC = clip_features(batch, self.tokenizer, sync.most_clips if has_shards(self.tokenizer) else 0)
        assert target_MQC is not None
        return nearest_candidates(features_NMQC, target_MQC, self.nearest_per)


def nearest_candidates(candidates_NMQC: Tensor, target_MQC: Tensor, per: NearestPer) -> Tensor:
    """Choose among N candidates the one nearest to the target, for each clip or for each token.

    Args:
        candidates_NMQC: Candidates, float.
        target_MQC: The features to be near to, float.
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
