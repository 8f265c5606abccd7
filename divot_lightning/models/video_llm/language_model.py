"""Load or build the causal language model of the video LLM.

The model is any unmodified transformers ``AutoModelForCausalLM`` with full or sliding-window attention.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from divot_lightning.errors import UserError, did_you_mean, first_line
from divot_lightning.models.block_attention import Attention, requested_implementation, use_attention
from divot_lightning.models.weights import (
    fill,
    fill_from_first,
    gathered,
    has_masters,
    is_sharding,
    stored_tensors,
    weight_files,
    without_values,
)


def load_language_model(folder: str, vocabulary: int, new_ids: list[int], attention: Attention) -> PreTrainedModel:
    """Load pretrained weights in their stored dtype; rows of new tokens become the mean of the existing rows.

    Args:
        folder: A transformers model folder.
        vocabulary: Number of embedding rows that the text tokenizer needs.
        new_ids: Ids of tokens that the model was not trained on.
        attention: Implementation of the attention.

    Returns:
        The causal language model.
    """
    if is_sharding():
        return _load_sharded(folder, vocabulary, new_ids, attention)
    model = _load_whole(folder, attn_implementation=requested_implementation(attention), dtype="auto")
    rows = len(word_embeddings(model))
    if vocabulary > rows:
        model.resize_token_embeddings(vocabulary, mean_resizing=False)
    initialise_new_rows(model, sorted({*new_ids, *range(rows, vocabulary)}))
    return check_language_model(model, attention)


def _load_sharded(folder: str, vocabulary: int, new_ids: list[int], attention: Attention) -> PreTrainedModel:
    """Load pretrained weights tensor by tensor into ZeRO-3 shards; otherwise the same as `load_language_model`."""
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise UserError(f"language_model={folder!r} cannot be loaded: {first_line(error)}") from error
    rows = config.vocab_size
    config.vocab_size = max(vocabulary, rows)
    with torch.random.fork_rng(devices=[]), without_values():
        # The dtype of sharded weights cannot be changed later, so it is decided here.
        dtype = {} if has_masters() else {"dtype": torch.float32}
        model = AutoModelForCausalLM.from_config(
            config, attn_implementation=requested_implementation(attention), trust_remote_code=False, **dtype
        )
    stored = stored_tensors(weight_files(Path(folder)))
    if not stored or fill(model, stored).missing:
        # The files name the weights differently and only transformers can translate.
        fill_from_first(model, partial(_load_whole, folder))
    initialise_new_rows(model, sorted({*new_ids, *range(rows, vocabulary)}))
    return check_language_model(model, attention)


def _load_whole(folder: str, **settings: Any) -> PreTrainedModel:
    """Load a folder; refuse one that lacks a weight, since transformers would fill it with random numbers."""
    try:
        model, report = AutoModelForCausalLM.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False, output_loading_info=True, **settings
        )
    except (OSError, ValueError, RuntimeError, SafetensorError, UnpicklingError) as error:
        raise UserError(
            f"language_model={folder!r} cannot be loaded as a transformers causal language model.\n{_reason(error)}"
        ) from error
    missing = sorted(report["missing_keys"])
    if missing:
        raise UserError(
            f"language_model={folder!r} lacks {len(missing)} weights of a {type(model).__name__}, such as "
            f"{missing[0]!r}.\nGive the whole folder of a causal language model."
        )
    return model


def build_untrained_language_model(
    config: dict[str, Any], text_tokenizer: Any, attention: Attention
) -> PreTrainedModel:
    """Build a model with random weights from its configuration; the text tokenizer decides the vocabulary.

    Args:
        config: Keys of a transformers configuration, ``model_type`` among them.
        text_tokenizer: From ``load_text_tokenizer``.
        attention: Implementation of the attention.

    Returns:
        The causal language model.

    Raises:
        UserError: The configuration sets the size of the vocabulary.
    """
    if "vocab_size" in config:
        raise UserError(
            f"language_model_config sets vocab_size={config['vocab_size']}, but the text tokenizer decides it.\n"
            "Remove vocab_size."
        )
    _refuse_unknown(config)
    special = {name: getattr(text_tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    return language_model_from_config({**config, **special, "vocab_size": vocabulary_size(text_tokenizer)}, attention)


def _refuse_unknown(config: dict[str, Any]) -> None:
    """Refuse keys that a model type does not have: transformers keeps them, and builds with its own values."""
    full = _config(config)
    known = AutoConfig.for_model(full.model_type)
    # Older names, which transformers translates, leave no attribute of that name.
    unknown = [name for name in config if hasattr(full, name) and not hasattr(known, name)]
    if unknown:
        hint = did_you_mean(unknown[0], known.to_dict())
        raise UserError(f"language_model_config: {unknown[0]!r} is no setting of {full.model_type!r}.{hint}")


def _config(config: dict[str, Any]) -> PreTrainedConfig:
    """Return a transformers configuration.

    Raises:
        UserError: It is not consistent.
    """
    try:
        return AutoConfig.for_model(**config)
    except Exception as error:  # each configuration has its own checks
        raise _misfit(config, error) from error


def _misfit(config: dict[str, Any], error: Exception) -> UserError:
    kind = config.get("model_type")
    return UserError(
        f"language_model_config with model_type={kind!r} gives no causal language model.\n{_reason(error)}"
    )


def language_model_from_config(config: dict[str, Any], attention: Attention) -> PreTrainedModel:
    """Build a model with random weights from its complete configuration.

    Args:
        config: Keys of a transformers configuration, ``model_type`` and ``vocab_size`` among them.
        attention: Implementation of the attention.

    Returns:
        The causal language model.
    """
    full = _config(config)
    try:
        model = AutoModelForCausalLM.from_config(
            full, attn_implementation=requested_implementation(attention), trust_remote_code=False
        )
    except Exception as error:  # each model fails in its own way on sizes that do not fit, or are too large
        raise _misfit(config, error) from error
    return check_language_model(model, attention)


def _reason(error: Exception) -> str:
    message = first_line(error)
    if "scaled_dot_product_attention" in message:
        return "It has no attention of the kind 'sdpa'; set llm.attention to auto."
    return f"{type(error).__name__}: {message}"


def check_language_model(model: PreTrainedModel, attention: Attention) -> PreTrainedModel:
    """Choose the attention; refuse models that change the logits after their output layer, which we apply ourselves.

    Args:
        model: A causal language model.
        attention: See `use_attention`.

    Returns:
        The same model.
    """
    for name in ("final_logit_softcapping", "logit_scale", "logits_scaling"):
        value = getattr(model.config, name, None)
        if value not in (None, 1, 1.0):
            raise UserError(
                f"The language model {model.config.model_type!r} sets {name}={value}: it changes its logits\n"
                "after the output layer, which is not supported. Choose a model without it (Llama, Mistral, Qwen2)."
            )
    use_attention(model, attention)
    return model


def vocabulary_size(text_tokenizer: Any) -> int:
    """Return the number of embedding rows that a text tokenizer needs (its ids may have gaps).

    Args:
        text_tokenizer: A transformers tokenizer.

    Returns:
        Greatest id + 1.
    """
    return max(text_tokenizer.get_vocab().values()) + 1


def initialise_new_rows(model: PreTrainedModel, new_ids: list[int]) -> None:
    """Set the embedding and output rows of new tokens to the mean of the other rows.

    The released code does the same for embeddings; in an untied output layer its rows are three times the mean.

    Args:
        model: A causal language model.
        new_ids: Ids of the new tokens.
    """
    if not new_ids:
        return
    for weight_VD in (word_embeddings(model), model.get_output_embeddings().get_parameter("weight")):
        with torch.no_grad(), gathered([weight_VD], write=True):
            old = torch.ones(len(weight_VD), dtype=torch.bool)
            old[new_ids] = False
            weight_VD[new_ids] = weight_VD[old].mean(dim=0)


def word_embeddings(model: PreTrainedModel) -> Tensor:
    """Return the input embeddings of a model without adapters.

    Args:
        model: A causal language model.

    Returns:
        weight_VD.
    """
    return model.get_input_embeddings().get_parameter("weight")
