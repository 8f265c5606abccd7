"""Check the length of sequences against the positions that a language model was trained on."""

import logging

from torch import nn
from transformers import PreTrainedModel

from divot_lightning.errors import UserError

logger = logging.getLogger(__name__)


def check_positions(model: PreTrainedModel, max_length: int | None) -> None:
    """Refuse sequences longer than a model's learned positions; warn if it was merely not trained on such lengths.

    Args:
        model: The causal language model, with or without adapters.
        max_length: Longest training sequence in tokens; None for no limit.

    Raises:
        UserError: The model has no position for the last token.
    """
    known = getattr(model.config, "max_position_embeddings", None)
    if max_length is None or known is None or max_length <= known:
        return
    too_long = (
        f"max_length is {max_length}, but the language model {model.config.model_type!r} has "
        f"max_position_embeddings={known}"
    )
    if _has_learned_positions(model, known):
        raise UserError(f"{too_long} and has no positions beyond.\nSet max_length to at most {known}.")
    logger.warning("%s; it was not trained on positions beyond, so its results there may be poor", too_long)


def _has_learned_positions(model: PreTrainedModel, known: int) -> bool:
    """Return whether there is a table with a row per position; some models have one or two more rows than positions."""
    words = set(model.get_input_embeddings().modules())
    rows = [
        module.num_embeddings for module in model.modules() if isinstance(module, nn.Embedding) and module not in words
    ]
    rows += [buffer.shape[-2] for name, buffer in model.named_buffers() if "pos" in name and buffer.ndim >= 2]
    return any(known <= count <= known + 2 for count in rows)
