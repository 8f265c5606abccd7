"""The checks of `language_model_probe`: a few small forward passes, each compared with what must come out.

Letters: B rows, L row length, S keys, D width, V vocabulary.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import DynamicCache, PreTrainedModel

from divot_lightning.models.block_attention import takes_block_masks
from divot_lightning.models.video_llm.attention_mask import TokenPositions, transformers_mask
from divot_lightning.models.weight_dtypes import HALF
from divot_lightning.parts.sequences.layout import GenerationMode

_LENGTH = 9
_QUERIES = (3, 4)
"""Positions of the queries of a clip in the sample "text text text query query text"."""
_FIRST, _NEIGHBOUR = 6, slice(6, _LENGTH)
"""Length of that sample, and the positions of its neighbour "text text text" in a packed row."""

_ROUNDING, _HALF_ROUNDING = 1e-3, 0.1
"""Relative differences (rms) below which two ways of computing the same result agree, after many layers in float32 and
in half precision. A model that does not fit differs by more: 0.3 and more for another mask, about 1 for another output
layer."""

_REACTION = 0.1
"""Fraction of the rounding above which a hidden state has changed. If a position does not attend to a changed input,
its hidden state does not change at all."""


def find_misfit(model: PreTrainedModel, generation_mode: GenerationMode) -> str | None:
    """Return why a model does not fit our loss or our masks; None if it fits.

    Args:
        model: In evaluation mode, on any device.
        generation_mode: Decides whether queries attend to each other.
    """
    weight_VD = model.get_input_embeddings().get_parameter("weight")
    # Ids from all over the vocabulary, because its first and last tokens are often special or unused.
    ids_L = (torch.arange(_LENGTH, device=weight_VD.device) * (len(weight_VD) // _LENGTH) + 1) % len(weight_VD)
    text_LD = model.get_input_embeddings()(ids_L[None])[0]
    hidden_LD = model.base_model(inputs_embeds=text_LD[None], attention_mask=None, use_cache=False).last_hidden_state[0]
    rounding = _HALF_ROUNDING if hidden_LD.dtype in HALF else _ROUNDING
    probe = Probe(model, text_LD, hidden_LD, rounding)
    return _loss_misfit(probe, ids_L) or _mask_misfit(probe, generation_mode) or _row_misfit(probe)


@dataclass(frozen=True)
class Probe:
    """A model, a text, and the model's hidden states for the text without a mask.

    Attributes:
        model: In evaluation mode.
        text_LD: Embeddings of the text.
        hidden_LD: The last hidden states.
        rounding: Relative difference below which two tensors agree.
    """

    model: PreTrainedModel
    text_LD: Tensor
    hidden_LD: Tensor
    rounding: float

    def differs(self, one: Tensor, other: Tensor) -> bool:
        """Return whether two tensors differ by more than rounding; a non-finite difference counts as different."""
        return not _difference(one, other) <= self.rounding

    def reacts(self, changed: Tensor, base: Tensor) -> bool:
        """Return whether hidden states have changed at all."""
        return _difference(changed, base) > _REACTION * self.rounding

    def changed_at(self, position: int) -> Tensor:
        """Return the text with another input at one position."""
        noise_D = torch.randn(self.text_LD.shape[-1], generator=torch.Generator().manual_seed(0))
        changed_LD = self.text_LD.clone()
        changed_LD[position] = 3.0 * self.text_LD.std() * noise_D.to(self.text_LD)
        return changed_LD

    def run(self, embeds_BLD: Tensor, query: TokenPositions, key: TokenPositions, **more: Any) -> Tensor:
        """Return hidden states with the mask that `may_attend` gives; all positions are (B, L), on the CPU.

        The mask has the form that it has in training; while sampling, where new positions follow, it is dense.
        """
        device = embeds_BLD.device
        as_blocks = query is key and takes_block_masks(self.model.config, device)
        query, key = (TokenPositions(*(values.to(device) for values in positions)) for positions in (query, key))
        mask = transformers_mask(self.model.config, query, key, embeds_BLD.dtype, as_blocks=as_blocks)
        return self.model.base_model(inputs_embeds=embeds_BLD, attention_mask=mask, **more).last_hidden_state


def _loss_misfit(probe: Probe, ids_L: Tensor) -> str | None:
    own = probe.model(input_ids=ids_L[None], labels=ids_L[None], use_cache=False)
    logits_LV: Tensor = probe.model.get_output_embeddings()(probe.hidden_LD).float()
    loss = float(functional.cross_entropy(logits_LV[:-1], ids_L[1:]))
    if probe.differs(logits_LV, own.logits[0]) or abs(loss - float(own.loss)) > probe.rounding * loss:
        return (
            f"its own next-word loss is {float(own.loss):.4f}, where its output layer alone gives {loss:.4f}: it "
            "computes more\nbetween its last hidden states and its logits, or between words and their embeddings"
        )
    return None


def _mask_misfit(probe: Probe, generation_mode: GenerationMode) -> str | None:
    """Compare rows that hold the same sample except for one input, as in training without packing."""
    together = generation_mode == "query_bidirectional"
    first_query, second_query = _QUERIES
    rows = [probe.text_LD, *(probe.changed_at(position) for position in (0, second_query, _FIRST - 1))]
    embeds_BLD = torch.stack(rows)[:, :_FIRST]
    block_L = torch.full((_FIRST,), -1)
    block_L[list(_QUERIES)] = 0 if together else -1
    order_L = torch.arange(_FIRST)
    positions = TokenPositions(
        *(values.expand(len(rows), -1) for values in (order_L, torch.zeros_like(order_L), block_L))
    )
    base, first, query, last = probe.run(embeds_BLD, positions, positions, use_cache=False)
    queries_attend = probe.reacts(query[first_query], base[first_query])
    findings = {
        "text before a clip attends to the clip's queries": probe.differs(query[:first_query], base[:first_query]),
        "a position attends to later ones": probe.differs(last[:-1], base[:-1]),
        "a position does not attend to earlier ones": not all(
            probe.reacts(row[-1], base[-1]) for row in (first, query)
        ),
        "queries of a clip do not attend to each other": together and not queries_attend,
        "queries attend to later ones, which this generation mode forbids": queries_attend and not together,
    }
    return _mask_message(findings)


def _row_misfit(probe: Probe) -> str | None:
    """Test packed rows, padded rows, and positions that are appended to them later, as in packing and sampling."""
    embeds_BLD = torch.stack([probe.text_LD, probe.changed_at(0), probe.text_LD, probe.text_LD])
    position_ids, key = _packed_and_padded_rows()
    cache = DynamicCache()

    def step(embeds_BLD: Tensor, query: TokenPositions, key: TokenPositions, position: Tensor) -> Tensor:
        position = position.to(embeds_BLD.device)
        return probe.run(embeds_BLD, query, key, position_ids=position, past_key_values=cache, use_cache=True)

    base, changed, text, _ = step(embeds_BLD, key, key, position_ids)
    # The padded row continues with the text's next word.
    nexts = embeds_BLD[:, _FIRST : _FIRST + 1]
    new = TokenPositions(*(torch.tensor(values)[:, None] for values in ((9, 9, 9, 6), (1, 1, 0, 0), (-1,) * 4)))
    keys = TokenPositions(*(torch.cat(pair, dim=1) for pair in zip(key, new, strict=True)))
    after = step(nexts, new, keys, torch.tensor([[3], [3], [9], [6]]))[:, 0]
    findings = {
        "samples that share a row attend to each other": probe.differs(changed[_NEIGHBOUR], base[_NEIGHBOUR])
        or probe.differs(after[1], after[0]),
        "a causal mask gives another result than no mask": probe.differs(text, probe.hidden_LD),
        "a padded row continues differently from the same row without padding": probe.differs(
            after[3], probe.hidden_LD[_FIRST]
        ),
    }
    return _mask_message(findings)


def _packed_and_padded_rows() -> tuple[Tensor, TokenPositions]:
    """Return position ids (4, L) and positions of four rows: two hold two samples, one holds one, one is padded."""
    plain, packed = torch.arange(_LENGTH), torch.cat([torch.arange(_FIRST), torch.arange(_LENGTH - _FIRST)])
    padded = torch.where(plain < _FIRST, plain, -1)
    sample = (packed != plain).long()
    order = torch.stack([plain, plain, plain, padded])
    samples = torch.stack([sample, sample, 0 * plain, padded.clamp(max=0)])
    position_ids = torch.stack([packed, packed, plain, padded.clamp(min=0)])
    return position_ids, TokenPositions(order, samples, torch.full_like(order, -1))


def _difference(one: Tensor, other: Tensor) -> float:
    return float((one.float() - other.float()).norm() / other.float().norm())


def _mask_message(findings: dict[str, bool]) -> str | None:
    wrong = [finding for finding, holds in findings.items() if holds]
    return f"it does not obey our attention masks: {wrong[0]}" if wrong else None
