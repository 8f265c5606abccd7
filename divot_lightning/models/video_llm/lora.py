"""Low-rank adapters (LoRA, arXiv:2106.09685) on the causal language model of the video LLM."""

from __future__ import annotations

import logging
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from divot_lightning.errors import UserError, first_line
from divot_lightning.models.weight_dtypes import merging_in_float32
from divot_lightning.models.weights import full_shape, gathered

if TYPE_CHECKING:
    from peft import LoraConfig, PeftModel

logger = logging.getLogger(__name__)

_ROUTERS = {"router", "gate"}
"""Names of layers that choose experts; they are small, and adapters are unusual in them."""


@dataclass
class LoRAConfig:
    """Low-rank adapters; the defaults are those of the released Divot training configuration.

    Besides the adapters, the rows of the marker tokens (``<vid>`` and the others) in the embedding and in the output
    layer are trained.

    Attributes:
        rank: Rank of the adapters.
        alpha: The adapters' output is scaled by alpha / rank.
        dropout: Dropout on the adapters' input.
        target_modules: Names of the linear layers that get an adapter; None is all linear layers in the model's blocks.
            In Llama, Mistral and Qwen these are the released q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj and
            down_proj. The log names them, and a warning names matrices that cannot have an adapter.
        train_norms: Train the normalisation layers in full.
        train_embeddings: Train the whole embedding and output layer, as the released code does, and not only the rows
            of the marker tokens.
    """

    rank: int = 32
    alpha: int = 32
    dropout: float = 0.05
    target_modules: list[str] | None = None
    train_norms: bool = True
    train_embeddings: bool = False


def add_lora(model: PreTrainedModel, lora: LoRAConfig, marker_ids: list[int]) -> PeftModel:
    """Freeze the model and add adapters to it.

    Args:
        model: A causal language model.
        lora: Config of the adapters.
        marker_ids: Ids of the tokens whose rows are trained.

    Returns:
        The PEFT model around it.

    Raises:
        UserError: The target modules do not fit the model.
    """
    from peft import get_peft_model  # not above: a model without adapters does not need peft

    names = [_module_name(model, layer) for layer in (model.get_input_embeddings(), model.get_output_embeddings())]
    targets = lora.target_modules if lora.target_modules is not None else linear_layers(model)
    config = _peft_config(lora, targets, names, marker_ids, tied=bool(model.config.tie_word_embeddings))
    try:
        # PEFT copies these weights; of the layers that get adapters it only reads the shapes.
        with gathered(_copied_weights(model, names, lora)), warnings.catch_warnings():
            # PEFT reads an attribute that transformers has renamed, which nobody who uses this can change.
            warnings.filterwarnings("ignore", ".*is_gradient_checkpointing.* is deprecated", FutureWarning)
            adapted = get_peft_model(model, config)
    except ValueError as error:
        raise UserError(
            f"LoRA with target_modules={targets} does not fit {model.config.model_type!r}: {first_line(error)}"
        ) from error
    _share_copies(adapted)
    if lora.target_modules is None:
        _log_layers(adapted, model.config.model_type, targets)
    return adapted


def _peft_config(
    lora: LoRAConfig, targets: list[str], embeddings: list[str], marker_ids: list[int], *, tied: bool
) -> LoraConfig:
    """Return PEFT's config; the embedding layers are trained whole, or only the rows of the marker tokens."""
    from peft import LoraConfig

    return LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=list(targets),
        modules_to_save=["norm"] * lora.train_norms + embeddings * lora.train_embeddings or None,
        trainable_token_indices=None if lora.train_embeddings else dict.fromkeys(embeddings, marker_ids),
        ensure_weight_tying=lora.train_embeddings and tied,
        task_type="CAUSAL_LM",
    )


def _log_layers(adapted: PeftModel, model_type: str, targets: list[str]) -> None:
    """Log which layers have adapters, and which have none although their weights are matrices."""
    logger.info("LoRA: layers of %r with adapters: %s", model_type, ", ".join(targets))
    if unchanged := layers_without_adapters(adapted):
        logger.warning(
            "LoRA: these matrices of %r are no linear layers, so they have no adapters and are not trained: %s",
            model_type,
            ", ".join(unchanged),
        )


def linear_layers(model: PreTrainedModel) -> list[str]:
    """Return the names of the linear layers in a model's blocks, in their order.

    Args:
        model: A causal language model without adapters.

    Returns:
        Names within the blocks, such as "q_proj"; routers of experts and the output layer are left out.
    """
    output = model.get_output_embeddings()
    names = [
        name.rpartition(".")[2]
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and module is not output and not _ROUTERS & set(name.split("."))
    ]
    return list(dict.fromkeys(names))


def layers_without_adapters(model: PeftModel) -> list[str]:
    """Return the names of layers in a model's blocks whose matrices are not trained and have no adapter.

    Args:
        model: From ``add_lora``.

    Returns:
        Names within the blocks, such as "qkv_proj"; routers and the layers of the embeddings are left out.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

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


def _share_copies(model: PeftModel) -> None:
    """Let PEFT keep a layer that is trained in full once.

    It trains a copy, and keeps the layer as it was to be able to switch adapters off, which is never done here.
    """
    from peft.utils import ModulesToSaveWrapper

    for wrapper in [each for each in model.modules() if isinstance(each, ModulesToSaveWrapper)]:
        (trained,) = wrapper.modules_to_save.values()
        # Registered anew, so after the trained layer: by the first of its names a tensor is stored and read.
        del wrapper.original_module
        wrapper.original_module = trained


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
    from peft import PeftModel
    from peft.tuners.tuners_utils import BaseTunerLayer

    assert isinstance(model, PeftModel)
    for layer in model.modules():
        if isinstance(layer, BaseTunerLayer):
            with gathered(layer.parameters(), write=True), merging_in_float32(layer):
                layer.merge()
    unload: Any = model.unload
    return unload()


def _module_name(model: nn.Module, searched: nn.Module) -> str:
    return next(name for name, module in model.named_modules() if module is searched).rpartition(".")[2]


def unwrap(model: nn.Module) -> Any:
    """Return the transformers model inside a PEFT wrapper, with its adapters.

    Args:
        model: With or without the PEFT wrapper.

    Returns:
        The transformers model.
    """
    inner: Any = getattr(model, "get_base_model", None)  # of a PEFT wrapper
    return model if inner is None else inner()
