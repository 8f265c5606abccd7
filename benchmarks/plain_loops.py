"""Training loops as one would write them without this library, for `training_step.py` to compare with.

`PlainVideoLLM` is the language model of `transformers` with a projector, queries and a head around it. It pads each
batch to its longest sample on the right, so that the causal flag suffices where no query attends to a later one, and
computes logits at the targets alone. `plain_steps` trains the modules of a stage without Lightning.

Letters: B samples, L padded length, Q tokens per clip, D LLM width, C feature width, K components, N tokens.
"""

import copy
import math
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from divot_heads.gmm import GMMHead
from divot_lightning.models.pixels import to_unit_range
from divot_lightning.models.randomness import sample_generators
from divot_lightning.models.video_llm.model import VideoLLM
from divot_lightning.parts.sequences.rows import SequenceBatch
from divot_lightning.parts.sequences.tokens import TokenKind
from divot_lightning.training.stages.detokenizer_refinement import DetokenizerRefinement

CHUNK = 64
"""Tokens of the mixture's loss that are computed at a time, and again in the backward pass."""


@dataclass
class PaddedBatch:
    """What a collate function returns; the features of all clips are in the order of their positions."""

    ids_BL: Tensor
    labels_BL: Tensor
    read_BL: Tensor
    query_BL: Tensor

    @classmethod
    def of(cls, rows: SequenceBatch, device: str) -> "PaddedBatch":
        """Take the tokens of rows with one sample each."""
        kinds = rows.token_kind_BL
        values = (rows.ids_BL, rows.labels_BL, kinds == TokenKind.READ, kinds == TokenKind.QUERY)
        return cls(*(value.to(device) for value in values))


class PlainVideoLLM(nn.Module):
    """A video LLM with the weights of one of ours, for samples that generate at most one clip."""

    def __init__(self, video_llm: VideoLLM) -> None:
        super().__init__()
        self.llm = copy.deepcopy(video_llm.causal_lm)
        self.llm.set_attn_implementation("sdpa")
        self.projector = copy.deepcopy(video_llm.input_projector)
        self.queries = nn.Parameter(video_llm.queries.weight_QD.detach().clone())
        self.head = copy.deepcopy(video_llm.head.proj)
        self.components = video_llm.head.num_components if isinstance(video_llm.head, GMMHead) else None

    def forward(self, batch: PaddedBatch, features_MQC: Tensor) -> Tensor:
        """Return the sum of both losses."""
        embeds_BLD = self.llm.get_input_embeddings()(batch.ids_BL)
        reading = bool(batch.read_BL.any())
        features = features_MQC if reading else features_MQC[:0]
        projected = self.projector(torch.cat([features.flatten(0, 1), features_MQC[0, :1]]))
        embeds_BLD = embeds_BLD.masked_scatter(batch.read_BL[..., None], projected[:-1])
        queries = self.queries.repeat(len(batch.ids_BL), 1)
        embeds_BLD = embeds_BLD.masked_scatter(batch.query_BL[..., None], queries)
        hidden_BLD = self._hidden(embeds_BLD, batch)
        loss = self._text_loss(hidden_BLD, batch.labels_BL) + 0.0 * projected[-1].sum()
        if reading:
            return loss + 0.0 * self._unused_head(hidden_BLD)  # so that the optimizer sees it in every step
        return loss + self._head_loss(hidden_BLD[batch.query_BL], features_MQC.flatten(0, 1))

    def _hidden(self, embeds_BLD: Tensor, batch: PaddedBatch) -> Tensor:
        mask = None if batch.read_BL.any() else _mask(batch.query_BL)
        return self.llm.base_model(inputs_embeds=embeds_BLD, attention_mask=mask, use_cache=False).last_hidden_state

    def _unused_head(self, hidden_BLD: Tensor) -> Tensor:
        return self.head(hidden_BLD[0, :1]).sum()

    def _text_loss(self, hidden_BLD: Tensor, labels_BL: Tensor) -> Tensor:
        targets = labels_BL[:, 1:] != -100
        logits = self.llm.get_output_embeddings()(hidden_BLD[:, :-1][targets])
        return functional.cross_entropy(logits, labels_BL[:, 1:][targets])

    def _head_loss(self, hidden_ND: Tensor, target_NC: Tensor) -> Tensor:
        outputs = self.head(hidden_ND)
        if self.components is None:
            return functional.mse_loss(outputs, target_NC)
        # Chunks that fit the processor's cache are faster than all tokens at once, although they are computed twice.
        parts = zip(outputs.split(CHUNK), target_NC.split(CHUNK), strict=True)
        sums = [checkpoint(_mixture_nll, *part, self.components, use_reentrant=False) for part in parts]
        return torch.stack(sums).sum() / target_NC.numel()


def _mask(query_BL: Tensor) -> Tensor:
    """Return the causal mask in which the queries of a sample, all of one clip, attend to each other."""
    length = query_BL.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool, device=query_BL.device).tril()
    return (causal | (query_BL[:, :, None] & query_BL[:, None, :]))[:, None]


def _mixture_nll(params_NP: Tensor, target_NC: Tensor, components: int) -> Tensor:
    shape = (len(target_NC), components, target_NC.shape[1])
    means, raw, logits = params_NP.split([components * shape[2], components * shape[2], components], dim=1)
    variances = functional.softplus(raw).clamp(min=1e-5).view(shape)
    squares = (target_NC[:, None] - means.view(shape)).square() / variances
    log_prob = -0.5 * (squares + variances.log() + math.log(2 * math.pi)).sum(dim=-1)
    return -(logits.log_softmax(dim=1) + log_prob).logsumexp(dim=1).sum()


@dataclass
class Steps:
    """Processor time at which each step began, and each step's loss."""

    begun: list[float]
    losses: list[float]


def plain_steps(stage: Any, loader: Iterable[Any], optimizer: Any, schedule: Any, num_steps: int) -> Steps:
    """Train tokenizer and de-tokenizer, or the de-tokenizer alone, with the random numbers of the stages."""
    tokenizer, detokenizer, steps = stage.tokenizer, stage.detokenizer, Steps([], [])
    refine = isinstance(stage, DetokenizerRefinement)
    size = detokenizer.config.size
    null = {"null_tokens_QC": tokenizer.null_tokens(size, size)} if refine else {}
    for number, batch in zip(range(num_steps), loader, strict=False):
        steps.begun.append(time.process_time())
        second_half = not refine and 2 * number >= num_steps
        video = to_unit_range(batch["video"])
        with torch.set_grad_enabled(not refine):
            tokens = tokenizer(video)
        loss = detokenizer.loss(
            video,
            tokens,
            terminal_timestep_prob=stage.terminal_timestep_prob_end if second_half else stage.terminal_timestep_prob,
            condition_dropout=stage.condition_dropout if refine else 0.0,
            generator=sample_generators(0, "train", batch["sample_index"].tolist()),
            **null,
        )
        loss.backward()
        nn.utils.clip_grad_norm_((p for p in stage.parameters() if p.grad is not None), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        steps.losses.append(loss.item())
    return steps
