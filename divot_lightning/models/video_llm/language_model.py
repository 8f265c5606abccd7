"""Load, build and adapt the causal language model of the video LLM: text tokenizer, marker tokens, weights, LoRA.

The model is any unmodified transformers ``AutoModelForCausalLM`` with full or sliding-window attention.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from divot_lightning.errors import UserError
from divot_lightning.models.weight_dtypes import merging_in_float32
from divot_lightning.models.weights import (
    fill,
    fill_from_first,
    full_shape,
    gathered,
    has_masters,
    is_sharding,
    weight_files,
    without_memory,
)

Attention: TypeAlias = Literal["sdpa", "eager"]

logger = logging.getLogger(__name__)

_ROUTERS = {"router", "gate"}
"""Names of layers that choose experts; they are small, and adapters are unusual in them."""

TARGET_MODULES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
"""All linear layers in the blocks of Llama, Mistral and Qwen."""


@dataclass
class LoRAConfig:
    """Low-rank adapters; the defaults are those of the released Divot training configuration.

    Besides the adapters, the rows of the marker tokens (``<vid>`` and the others) in the embedding and in the output
    layer are trained.

    Attributes:
        rank: Rank of the adapters.
        alpha: The adapters' output is scaled by alpha / rank.
        dropout: Dropout on the adapters' input.
        target_modules: Names of the linear layers that get an adapter. The default is all those of Llama, Mistral and
            Qwen. If another model has more layers, a warning names them when the adapters are added.
        train_norms: Train the normalisation layers in full.
        train_embeddings: Train the whole embedding and output layer, as the released code does, and not only the rows
            of the marker tokens.
    """

    rank: int = 32
    alpha: int = 32
    dropout: float = 0.05
    target_modules: list[str] = field(default_factory=lambda: list(TARGET_MODULES))
    train_norms: bool = True
    train_embeddings: bool = False


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
    try:
        model = AutoModelForCausalLM.from_pretrained(
            folder, attn_implementation=attention, local_files_only=True, trust_remote_code=False, dtype="auto"
        )
    except (OSError, ValueError) as error:
        raise UserError(
            f"language_model={folder!r} cannot be loaded as a transformers causal language model.\n{_reason(error)}"
        ) from error
    rows = len(word_embeddings(model))
    if vocabulary > rows:
        model.resize_token_embeddings(vocabulary, mean_resizing=False)
    initialise_new_rows(model, sorted({*new_ids, *range(rows, vocabulary)}))
    return check_language_model(model)


def _load_sharded(folder: str, vocabulary: int, new_ids: list[int], attention: Attention) -> PreTrainedModel:
    """Load pretrained weights tensor by tensor into ZeRO-3 shards; otherwise the same as `load_language_model`."""
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise UserError(f"language_model={folder!r} cannot be loaded: {str(error).splitlines()[0]}") from error
    rows = config.vocab_size
    config.vocab_size = max(vocabulary, rows)
    with torch.random.fork_rng(devices=[]), without_memory():
        # The dtype of sharded weights cannot be changed later, so it is decided here.
        dtype = {} if has_masters() else {"dtype": torch.float32}
        model = AutoModelForCausalLM.from_config(
            config, attn_implementation=attention, trust_remote_code=False, **dtype
        )
    files = weight_files(Path(folder))
    if not files or fill(model, files).missing:
        # The files name the weights differently and only transformers can translate: rank 0 loads the whole model.
        first = torch.distributed.get_rank() == 0
        whole = _load_whole(folder) if first else None
        fill_from_first(model, whole)
    initialise_new_rows(model, sorted({*new_ids, *range(rows, vocabulary)}))
    return check_language_model(model)


def _load_whole(folder: str) -> PreTrainedModel:
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
        folder, local_files_only=True, trust_remote_code=False
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
    """
    if "vocab_size" in config:
        raise UserError(
            f"language_model_config sets vocab_size={config['vocab_size']}, but the text tokenizer decides it.\n"
            "Remove vocab_size."
        )
    special = {name: getattr(text_tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    return language_model_from_config({**config, **special, "vocab_size": vocabulary_size(text_tokenizer)}, attention)


def language_model_from_config(config: dict[str, Any], attention: Attention) -> PreTrainedModel:
    """Build a model with random weights from its complete configuration.

    Args:
        config: Keys of a transformers configuration, ``model_type`` and ``vocab_size`` among them.
        attention: Implementation of the attention.

    Returns:
        The causal language model.
    """
    try:
        full = AutoConfig.for_model(**config)
        model = AutoModelForCausalLM.from_config(full, attn_implementation=attention, trust_remote_code=False)
    except (TypeError, ValueError) as error:
        raise UserError(
            f"language_model_config with model_type={config.get('model_type')!r} gives no causal language model.\n"
            f"{_reason(error)}"
        ) from error
    return check_language_model(model)


def _reason(error: Exception) -> str:
    message = (str(error).splitlines() or [""])[0]
    if "scaled_dot_product_attention" in message:
        return "It has no attention of the kind 'sdpa'; set llm.attention to eager."
    return f"{type(error).__name__}: {message}"


def check_language_model(model: PreTrainedModel) -> PreTrainedModel:
    """Refuse models that change the logits after their output layer, because we apply only that layer.

    Args:
        model: A causal language model.

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


def add_lora(model: PreTrainedModel, lora: LoRAConfig, marker_ids: list[int]) -> PeftModel:
    """Freeze the model and add adapters to it.

    Args:
        model: A causal language model.
        lora: Config of the adapters.
        marker_ids: Ids of the tokens whose rows are trained.

    Returns:
        The PEFT model around it.
    """
    names = [_module_name(model, layer) for layer in (model.get_input_embeddings(), model.get_output_embeddings())]
    saved = ["norm"] * lora.train_norms + names * lora.train_embeddings
    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=list(lora.target_modules),
        modules_to_save=saved or None,
        trainable_token_indices=None if lora.train_embeddings else dict.fromkeys(names, marker_ids),
        ensure_weight_tying=lora.train_embeddings and bool(model.config.tie_word_embeddings),
        task_type="CAUSAL_LM",
    )
    try:
        # PEFT copies these weights; of the layers that get adapters it only reads the shapes.
        with gathered(_copied_weights(model, names, lora)):
            adapted = get_peft_model(model, config)
    except ValueError as error:
        raise UserError(
            f"LoRA with target_modules={lora.target_modules} does not fit {model.config.model_type!r}: "
            f"{str(error).splitlines()[0]}"
        ) from error
    unchanged = layers_without_adapters(adapted)
    if unchanged and tuple(lora.target_modules) == TARGET_MODULES:
        logger.warning(
            "LoRA: the default target_modules leave these layers of %r without adapters: %s; name them in "
            "lora.target_modules",
            model.config.model_type,
            ", ".join(unchanged),
        )
    return adapted


def layers_without_adapters(model: PeftModel) -> list[str]:
    """Return the names of layers in a model's blocks whose matrices are not trained and have no adapter.

    Args:
        model: From ``add_lora``.

    Returns:
        Names within the blocks, such as "qkv_proj"; routers and the layers of the embeddings are left out.
    """
    base = unwrap(model)
    embeddings = set(base.get_input_embeddings().modules()) | set(base.get_output_embeddings().modules())
    adapted = {part for layer in model.modules() if isinstance(layer, BaseTunerLayer) for part in layer.modules()}
    found: set[str] = set()
    for name, module in base.named_modules():
        if module in embeddings or module in adapted or isinstance(module, nn.Embedding):
            continue
        for key, value in module.named_parameters(recurse=False):
            if len(full_shape(value)) > 1 and not value.requires_grad and not _ROUTERS & set(name.split(".")):
                kind = name.rpartition(".")[2]
                found.add(kind if key == "weight" else f"{kind}.{key}")
    return sorted(found)


def _copied_weights(model: PreTrainedModel, embeddings: list[str], lora: LoRAConfig) -> list[Tensor]:
    """Return the weights that PEFT copies: embeddings and, if they are trained, normalisation layers."""
    return [
        parameter
        for name, parameter in model.named_parameters()
        if any(part in embeddings or (lora.train_norms and part.endswith("norm")) for part in name.split("."))
    ]


def merge_lora(model: nn.Module) -> nn.Module:
    """Merge adapters and trained rows into the weights, in float32; see `divot_lightning.models.weight_dtypes`.

    Args:
        model: From ``add_lora``.

    Returns:
        The transformers model without adapters.
    """
    assert isinstance(model, PeftModel)
    for layer in model.modules():
        if isinstance(layer, BaseTunerLayer):
            with gathered(layer.parameters(), write=True), merging_in_float32(layer):
                layer.merge()
    unload: Any = model.unload
    return unload()


def _module_name(model: nn.Module, searched: nn.Module) -> str:
    return next(name for name, module in model.named_modules() if module is searched).rpartition(".")[2]


def word_embeddings(model: PreTrainedModel) -> Tensor:
    """Return the input embeddings of a model without adapters.

    Args:
        model: A causal language model.

    Returns:
        weight_VD.
    """
    return model.get_input_embeddings().get_parameter("weight")


def unwrap(model: nn.Module) -> Any:
    """Return the transformers model inside a PEFT wrapper, with its adapters.

    Args:
        model: With or without the PEFT wrapper.

    Returns:
        The transformers model.
    """
    return model.get_base_model() if isinstance(model, PeftModel) else model
