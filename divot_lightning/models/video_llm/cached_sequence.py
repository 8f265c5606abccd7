"""Prompts with cached keys and values, which a video LLM continues position by position.

Letters: B samples, L prompt length, S keys in the cache, T appended positions, M clips, Q tokens per clip, D LLM width,
C feature width.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from transformers import DynamicCache

from divot_lightning.models.video_llm.attention_mask import TokenPositions, query_blocks, transformers_mask
from divot_lightning.parts.sequences.rows import SequenceBatch
from divot_lightning.parts.sequences.tokens import TokenKind

if TYPE_CHECKING:
    from divot_lightning.models.video_llm.model import VideoLLM


class CachedSequence:
    """A batch of prompts with cached keys and values, so that each further position costs one small step.

    Prompts are padded on the right. In the cache further positions follow the padding, but their position ids continue
    those of their own prompt.

    Args:
        video_llm: The model.
        batch: The prompts.
        features_MQC: Normalised features of their clips, float.
        num_common: Positions at which all prompts begin alike; they are computed once, for the first prompt.
        num_kept: Last positions of each prompt, behind those that are alike, whose hidden states are kept.

    Attributes:
        kept_BKD: Hidden states at the last K = ``num_kept`` positions of the prompts.
        last_hidden_BD: Hidden states at the last positions, also after more were appended.
    """

    def __init__(
        self,
        video_llm: VideoLLM,
        batch: SequenceBatch,
        features_MQC: Tensor,
        *,
        num_common: int = 0,
        num_kept: int = 1,
    ) -> None:
        self.video_llm = video_llm
        self.cache = DynamicCache()
        device = features_MQC.device
        valid_BL = (batch.token_kind_BL != TokenKind.PAD).to(device)
        self.lengths_B = valid_BL.sum(dim=1)
        positions = TokenPositions(
            order=torch.where(valid_BL, batch.position_ids_BL.to(device), -1),
            sample=batch.samples_BL.to(device),
            block=query_blocks(batch.token_kind_BL, batch.clips_BL, video_llm.config.generation_mode).to(device),
        )
        if num_common:
            first = batch.part(slice(1), slice(num_common))
            self.keys = TokenPositions(*(values_BL[:1, :num_common] for values_BL in positions))
            self._run(video_llm.embed(first, features_MQC), self.keys)
            self.cache.batch_repeat_interleave(len(valid_BL))
        self.keys = positions
        embeds_BLD = video_llm.embed(batch.part(slice(None), slice(num_common, None)), features_MQC)
        hidden_BLD = self._run(embeds_BLD, TokenPositions(*(values_BL[:, num_common:] for values_BL in positions)))
        columns_BK = self.lengths_B[:, None] - num_common - num_kept + torch.arange(num_kept, device=device)
        self.kept_BKD = hidden_BLD[torch.arange(len(hidden_BLD), device=device)[:, None], columns_BK]
        self.last_hidden_BD = self.kept_BKD[:, -1]

    def append(self, embeds_BD: Tensor) -> Tensor:
        """Append one position to every sequence.

        Args:
            embeds_BD: Input embeddings at this position.

        Returns:
            hidden_BD, the hidden states at this position.
        """
        return self.extend(embeds_BD[:, None])[:, 0]

    def append_tokens(self, *tokens: int) -> None:
        """Append the same tokens to every sequence."""
        words = self.video_llm.causal_lm.get_input_embeddings()
        ids_1T = torch.tensor([tokens], device=self.lengths_B.device)
        self.extend(words(ids_1T).expand(len(self.lengths_B), -1, -1))

    def extend(self, embeds_BTD: Tensor, *, block: int = -1) -> Tensor:
        """Append several positions to every sequence in one step.

        Args:
            embeds_BTD: Input embeddings of T positions.
            block: Number of the positions' block, see ``query_blocks``; no earlier positions have it, unless it is -1.

        Returns:
            hidden_BTD, the hidden states there.
        """
        steps_T = torch.arange(embeds_BTD.shape[1], device=self.lengths_B.device)
        order_BT = self.lengths_B[:, None] + steps_T
        rows_B1 = torch.arange(len(order_BT), device=order_BT.device)[:, None]
        new = TokenPositions(order_BT, rows_B1.expand_as(order_BT), torch.full_like(order_BT, block))
        self.lengths_B = self.lengths_B + len(steps_T)
        self.keys = TokenPositions(*(torch.cat(pair, dim=1) for pair in zip(self.keys, new, strict=True)))
        hidden_BTD = self._run(embeds_BTD, new)
        self.last_hidden_BD = hidden_BTD[:, -1]
        return hidden_BTD

    def _run(self, embeds_BLD: Tensor, queries: TokenPositions) -> Tensor:
        causal_lm = self.video_llm.causal_lm
        mask = transformers_mask(causal_lm.config, queries, self.keys, embeds_BLD.dtype)
        return causal_lm.base_model(
            inputs_embeds=embeds_BLD,
            attention_mask=mask,
            position_ids=queries.order.clamp(min=0),
            past_key_values=self.cache,
            use_cache=True,
        ).last_hidden_state
