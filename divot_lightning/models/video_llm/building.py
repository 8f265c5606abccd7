"""Build the parts of a video LLM, from its config or from a component folder.

Letters: Q queries per clip, D LLM width, V vocabulary, S query positions of the batch.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, PreTrainedModel

from divot_lightning.errors import UserError
from divot_lightning.io.hub import pretrained_folder
from divot_lightning.models.block_attention import Attention
from divot_lightning.models.video_llm.config import VideoLLMConfig
from divot_lightning.models.video_llm.language_model import (
    build_untrained_language_model,
    language_model_from_config,
    load_language_model,
    vocabulary_size,
    word_embeddings,
)
from divot_lightning.models.weights import gathered
from divot_lightning.parts.sequences.collator import SequenceCollator
from divot_lightning.parts.sequences.layout import SequenceLayout
from divot_lightning.parts.sequences.text_tokenizer import load_text_tokenizer


def build_language_model(config: VideoLLMConfig, folder: Path | None) -> tuple[Any, PreTrainedModel]:
    """Build the text tokenizer and the language model: stored, pretrained, or with random weights.

    Args:
        config: Config of the video LLM.
        folder: Component folder of a stored video LLM, whose weights are loaded later; else None.

    Returns:
        The transformers tokenizer and the transformers model.

    Raises:
        UserError: The config names no language model, or two.
    """
    if folder is not None:
        tokenizer, _ = load_text_tokenizer(text_tokenizer_folder(config, folder))
        # A model that was trained with flex on CUDA may be used elsewhere.
        attention: Attention = "auto" if config.attention == "flex" else config.attention
        return tokenizer, language_model_from_config(_stored_config(folder), attention)
    if (config.language_model is None) == (config.language_model_config is None):
        raise UserError(
            f"language_model={config.language_model!r} and language_model_config={config.language_model_config!r}:\n"
            "set exactly one of them, a folder with weights or the configuration of a model to train from scratch."
        )
    tokenizer, new_ids = load_text_tokenizer(text_tokenizer_folder(config, folder))
    if config.language_model is not None:
        vocabulary = vocabulary_size(tokenizer)
        model = load_language_model(_pretrained(config), vocabulary, new_ids, config.attention)
        if config.initial_values == "released":
            triple_output_rows(model, new_ids)
        return tokenizer, model
    return tokenizer, build_untrained_language_model(config.language_model_config or {}, tokenizer, config.attention)


def triple_output_rows(model: PreTrainedModel, new_ids: list[int]) -> None:
    """Multiply the output rows of new tokens by 3, as released; a layer that shares the embeddings' weight stays."""
    output = model.get_output_embeddings().get_parameter("weight")
    if output is not word_embeddings(model):
        with torch.no_grad(), gathered([output], write=True):
            output[new_ids] *= 3.0


def text_tokenizer_folder(config: VideoLLMConfig, folder: Path | None) -> str:
    """Return the folder of a video LLM's text tokenizer; arguments as for `build_language_model`.

    Raises:
        UserError: The config names no text tokenizer for a language model without weights.
    """
    if folder is not None:
        return str(folder / "text_tokenizer")
    if config.text_tokenizer is not None:
        return config.text_tokenizer
    if config.language_model is None:
        raise UserError("text_tokenizer=None: a language model trained from scratch needs a text tokenizer's folder.")
    return _pretrained(config)


def _pretrained(config: VideoLLMConfig) -> str:
    assert config.language_model is not None
    return pretrained_folder(config.language_model, config.revision, "llm.language_model")


def sequence_collator(config: VideoLLMConfig, folder: Path | None = None, *, prompt: bool = False) -> SequenceCollator:
    """Return what the data need to lay out samples for a video LLM, without building it.

    Args:
        config: Config of the video LLM, with the sizes of the tokenizer's tokens.
        folder: Component folder of a stored video LLM; else None.
        prompt: Whether samples are prompts that clips are generated from; they are of any length, one in a row.
    """
    if prompt:
        layout = SequenceLayout(config.feature_shape[0], config.generation_mode)
        return SequenceCollator(text_tokenizer_folder(config, folder), layout, config.feature_shape, prompt=True)
    width = language_model_width(config, folder) if config.packing else None
    return SequenceCollator(text_tokenizer_folder(config, folder), config.layout(width), config.feature_shape)


def language_model_width(config: VideoLLMConfig, folder: Path | None) -> int:
    """Return D from the language model's configuration alone; arguments as for `build_language_model`."""
    if folder is None and config.language_model is not None:
        full = AutoConfig.from_pretrained(_pretrained(config), local_files_only=True, trust_remote_code=False)
    else:
        full = AutoConfig.for_model(**(_stored_config(folder) if folder else config.language_model_config or {}))
    return int(full.hidden_size)


def _stored_config(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "language_model" / "config.json").read_text(encoding="utf-8"))


class LearnableQueries(nn.Module):
    """The learnable inputs at the positions where the features of a clip are predicted.

    They are a module of their own, so that the hooks of ZeRO-3 run when they are looked up.

    Args:
        initial_QD: Initial values, float.
    """

    def __init__(self, initial_QD: Tensor) -> None:
        super().__init__()
        self.weight_QD = nn.Parameter(initial_QD)

    def forward(self, query_index_S: Tensor) -> Tensor:
        """Return the queries with some indices (int64, 0 to Q - 1), as (S, D)."""
        return self.weight_QD[query_index_S]


def initial_queries(causal_lm: PreTrainedModel, num_queries: int, *, spread: bool = True) -> Tensor:
    """Sample initial queries around the mean word embedding, with the standard deviation of the word embeddings.

    So the queries differ from each other from the start. They replace outputs of the embedding layer, so they have the
    scale of its outputs: models of the Gemma family multiply embeddings by the square root of D.

    Args:
        causal_lm: The language model.
        num_queries: Number of queries Q.
        spread: Sample them; without it, all are the mean, as released.

    Returns:
        queries_QD, float32.
    """
    weight = word_embeddings(causal_lm)
    with gathered([weight]):
        weight_VD = weight.detach().float()
        queries_QD = weight_VD.mean(dim=0).expand(num_queries, -1).clone()
        if spread:
            noise_QD = torch.randn(num_queries, weight_VD.shape[1], device=weight_VD.device)
            queries_QD += weight_VD.std(dim=0) * noise_QD
        scale = _embedding_scale(causal_lm.get_input_embeddings(), weight)
        return queries_QD if scale == 1.0 else scale * queries_QD


def _embedding_scale(embedding: nn.Module, weight_VD: Tensor) -> float:
    """Return the factor by which an embedding layer multiplies its rows; 1 if it does not change them."""
    if weight_VD.is_meta:
        return 1.0
    with torch.no_grad():
        rows_VD = weight_VD[:8]
        outputs_VD = embedding(torch.arange(len(rows_VD), device=weight_VD.device))
        if torch.equal(outputs_VD, rows_VD) or not rows_VD.any():
            return 1.0
        return float(outputs_VD.float().norm() / rows_VD.float().norm())
