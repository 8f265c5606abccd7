"""De-tokenizer adaptation: the video diffusion model learns from samples of the LLM's head (Divot appendix A.2)."""

import functools
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from divot_lightning.checkpoint.components import load_component, read_settings
from divot_lightning.checkpoint.run_components import find_component
from divot_lightning.distributed.rank_sync import RankSync
from divot_lightning.errors import UserError
from divot_lightning.models.detokenizer.video_detokenizer import DetokenizerConfig, VideoDetokenizer
from divot_lightning.models.tokenizer.video_tokenizer import TokenizerConfig, VideoTokenizer
from divot_lightning.models.video_llm.building import sequence_collator
from divot_lightning.models.video_llm.clip_generation import clips_to_generate, generate_prompted_clips
from divot_lightning.models.video_llm.config import VideoLLMConfig
from divot_lightning.models.video_llm.model import VideoLLM
from divot_lightning.models.weights import has_masters, has_shards
from divot_lightning.parts.batch import Batch
from divot_lightning.parts.optimizers import TrainingOptimizer
from divot_lightning.parts.randomness import Randomness
from divot_lightning.parts.sequences.collator import SequenceCollator
from divot_lightning.training.global_mean import LossPart
from divot_lightning.training.stages.stage import Stage, batch_generators, num_real_samples
from divot_lightning.training.stages.tokenizer_pretraining import clips_of, validation_losses
from divot_lightning.training.stages.video_llm_step import clip_features, sequences_of

NearestPer = Literal["clip", "token"]


class DetokenizerAdaptation(Stage):
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
        super().__init__(optimizer)
        if candidates < 1:
            raise UserError(f"candidates is {candidates}; it must be at least 1 (1 is the paper's way)")
        self.sources = {
            "tokenizer": find_component(previous, "tokenizer"),
            "video_llm": find_component(previous, "video_llm"),
        }
        self.tokenizer_folder = self.sources["tokenizer"]
        self.latents_folder = self.detokenizer_folder = find_component(detokenizer, "detokenizer")
        tokenizer = read_settings(self.tokenizer_folder, VideoTokenizer, TokenizerConfig)
        detokenizer_config = read_settings(self.detokenizer_folder, VideoDetokenizer, DetokenizerConfig)
        detokenizer_config.for_tokens(tokenizer.tokens_per_clip, tokenizer.token_dim)
        self.candidates = candidates
        self.nearest_per = nearest_per
        self.temperature = temperature
        self.condition_dropout = condition_dropout
        self.terminal_timestep_prob = terminal_timestep_prob

    def build(self) -> None:
        """Load the three networks from the runs before."""
        self.tokenizer = load_component(self.tokenizer_folder, VideoTokenizer).requires_grad_(False)
        self.null_tokens = functools.cache(self.tokenizer.null_tokens)  # the tokenizer is frozen: once per clip size
        self.video_llm = load_component(self.sources["video_llm"], VideoLLM).requires_grad_(False)
        if not has_masters():
            self.video_llm.use_stored_precision()
        self.detokenizer = load_component(self.detokenizer_folder, VideoDetokenizer)

    def sequence_collator(self) -> SequenceCollator:
        """Return what the data need to tokenise and lay out the prompts."""
        folder = self.sources["video_llm"]
        return sequence_collator(read_settings(folder, VideoLLM, VideoLLMConfig), folder, prompt=True)

    def frozen_sources(self) -> dict[str, str | Path]:
        """Return the folders of tokenizer and video LLM, and of the de-tokenizer for what is frozen in it."""
        return {**self.sources, "detokenizer": self.detokenizer_folder}

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the denoising loss of clips given features sampled for their captions."""
        sync = self.check_sync("train", batch, batch_idx)
        size = self.detokenizer.config.size
        loss = self.detokenizer.loss(
            clips_of(batch),
            self.sampled_features(batch, "train", sync),
            posterior=batch.get("latents"),
            terminal_timestep_prob=self.terminal_timestep_prob,
            condition_dropout=self.condition_dropout,
            null_tokens_QC=self.null_tokens(size, size),
            generator=batch_generators(batch, "train"),
        )
        return self.training_loss({"loss": LossPart(loss, num_real_samples(batch))}, batch)

    @torch.no_grad()
    def sampled_features(self, batch: Batch, purpose: str, sync: RankSync) -> Tensor:
        """Sample features for the clips to generate; of several candidates, keep the nearest to the clip's own.

        Args:
            batch: With "segments", each ending with one clip to generate, their "sequences", and the clips.
            purpose: Name that separates this random stream from others, such as "train".
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
            own = batch_generators(batch, f"{purpose} candidate {number}")
            generators.append(None if own is None else own + [torch.Generator() for _ in range(missing)])
        features_NMQC = generate_prompted_clips(
            self.video_llm, prompts.with_last_row(missing), generators, temperature=self.temperature
        )[:, :count]
        if self.candidates == 1:
            return features_NMQC[0]
        target_MQC = clip_features(batch, self.tokenizer, sync.most_clips if has_shards(self.tokenizer) else 0)
        assert target_MQC is not None
        return nearest_candidates(features_NMQC, target_MQC, self.nearest_per)

    def loss_counts(self, batch: Batch) -> dict[str, int]:
        """Count clips."""
        return {"loss": num_real_samples(batch)}

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Log the losses with sampled features, without dropout."""
        sync = self.check_sync("validation", batch, batch_idx)
        video, features = clips_of(batch), self.sampled_features(batch, "validation", sync)
        losses = validation_losses(self.detokenizer, video, features, batch, batch_idx, batch.get("latents"))
        self.log_validation(losses)

    def exported_components(self) -> dict[str, nn.Module]:
        """Return the adapted de-tokenizer."""
        return {"detokenizer": self.detokenizer}

    def used_components(self) -> dict[str, Path]:
        """Return the tokenizer and the video LLM that it was adapted to."""
        return self.sources


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
