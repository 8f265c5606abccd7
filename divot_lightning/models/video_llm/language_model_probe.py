"""Test a causal language model before it is trained: does our loss fit it, and does it obey our masks?

We apply the output layer ourselves and pass our own masks. A model that scales its logits, has an output head of
several layers or accepts only 2D masks would silently train on something else. `probe_checks` detects it.
"""

from collections.abc import Generator
from contextlib import contextmanager
from copy import deepcopy

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from divot_lightning.errors import UserError, first_line
from divot_lightning.models.video_llm.probe_checks import find_misfit
from divot_lightning.models.weights import has_shards
from divot_lightning.parts.sequences.layout import GenerationMode


def probe_language_model(model: PreTrainedModel, generation_mode: GenerationMode) -> None:
    """Refuse a language model that does not fit our loss or our masks.

    The model is run with its present weights, without gradient, in evaluation mode; random states and training mode are
    restored afterwards. If the weights are sharded over ranks (ZeRO stage 3), a small model with the same config and
    random weights is tested instead; it has just enough layers to contain each type of layer. A model on the meta
    device (preflight) is not tested.

    Args:
        model: A causal language model without adapters.
        generation_mode: Decides whether queries attend to each other.

    Raises:
        UserError: The model does not fit; the message names its type and the reason.
    """
    if any(parameter.is_meta for parameter in model.parameters()):
        return
    with torch.no_grad(), torch.random.fork_rng(range(torch.cuda.device_count())):
        probed = _with_few_layers(model) if has_shards(model) else model
        with evaluation_mode(probed):
            try:
                misfit = find_misfit(probed, generation_mode)
            except UserError:
                raise
            except Exception as error:
                misfit = f"it fails on embeddings with one of our masks: {type(error).__name__}: {first_line(error)}"
    if misfit is not None:
        raise UserError(
            f"The language model {model.config.model_type!r} (attention: {model.config._attn_implementation}) does not "
            f"fit:\n{misfit}.\nChoose a decoder with full or sliding-window attention, such as Llama, Mistral, Qwen or "
            "Gemma 3."
        )


@contextmanager
def evaluation_mode(model: nn.Module) -> Generator[None, None, None]:
    """Keep all modules in evaluation mode within the block, and restore the mode of each afterwards."""
    before = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in before.items():
            module.training = training


def _with_few_layers(model: PreTrainedModel) -> PreTrainedModel:
    """Build a small, unsharded model that replaces a sharded one in the tests."""
    config = deepcopy(model.config)
    kinds = list(getattr(config, "layer_types", None) or ())
    layers = max([2, *(kinds.index(kind) + 1 for kind in set(kinds))])
    config.num_hidden_layers = min(layers, config.num_hidden_layers)
    if kinds:
        config.layer_types = kinds[: config.num_hidden_layers]
    with next(model.parameters()).device:
        return AutoModelForCausalLM.from_config(
            config, attn_implementation=model.config._attn_implementation, dtype=torch.float32
        )
