"""An attention of transformers models that takes a causal flag, a dense mask, a block mask or the numbers of samples.

Scaled dot product attention (SDPA) is fastest with nothing but the causal flag, and needs a dense mask for all else.
FlexAttention (arXiv:2412.05496) takes any rule as a function of two positions. Its block mask holds which blocks of
128 x 128 scores the rule forbids as a whole; they are not computed, and no mask is stored. It trains on CUDA only. On a
CPU, rows of samples with causal attention can bring the number of the sample at each position in place of a mask. Then
SDPA computes each sample by itself, with the causal flag.

Letters: B rows, H heads, L query positions, S key positions, E width of a head.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask, create_block_mask
from torch.utils._python_dispatch import _disable_current_modes
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.flex_attention import flex_attention_forward
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from divot_lightning.errors import UserError
from divot_lightning.models.recompilation import allow_many_versions

Attention: TypeAlias = Literal["auto", "sdpa", "eager", "flex"]

SDPA_OR_FLEX = "sdpa_or_flex_attention"
"""Name of `sdpa_or_flex` in transformers, which asks models about FlexAttention because of the second part."""

SMALLEST_HEAD = 16
"""Width of a head below which torch has no FlexAttention kernel on CUDA."""

_DROPOUTS = ("attention_dropout", "attn_pdrop", "attn_dropout")


def requested_implementation(attention: Attention) -> str | None:
    """Return what transformers is asked for when a model is built; None for the best of SDPA and eager attention."""
    return None if attention in ("auto", "flex") else attention


def use_attention(model: PreTrainedModel, attention: Attention) -> None:
    """Let a model that was built with `requested_implementation` take block masks, if it can.

    Args:
        model: A causal language model.
        attention: "auto" leaves a model that cannot as it is.

    Raises:
        UserError: "flex" was asked for, and the model or the machine lacks it.
    """
    if attention not in ("auto", "flex"):
        return
    reason = why_no_blocks(model)
    if reason is None:
        model.set_attn_implementation(SDPA_OR_FLEX)
    if attention == "auto":
        return
    if reason is None and not torch.cuda.is_available() and not next(model.parameters()).is_meta:
        reason = "there is no CUDA device, and torch trains with FlexAttention only there"
    if reason is not None:
        raise UserError(
            f"The language model {model.config.model_type!r} cannot have llm.attention=flex:\n{reason}.\n"
            "Set llm.attention to auto, which takes the best that model and device have."
        )


def why_no_blocks(model: PreTrainedModel) -> str | None:
    """Return why a model cannot be trained with block masks; None if it can."""
    config: Any = model.config
    if not (model._supports_flex_attn and model._supports_sdpa and model._can_set_attn_implementation()):
        return "transformers does not have both SDPA and FlexAttention for it"
    dropout = next((name for name in _DROPOUTS if getattr(config, name, None)), None)
    if dropout is not None:
        return f"its {dropout} is {getattr(config, dropout)}, and FlexAttention has no dropout"
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    if width < SMALLEST_HEAD:
        return f"its heads have a width of {width}, and FlexAttention needs {SMALLEST_HEAD}"
    return None


def takes_block_masks(config: Any, device: torch.device) -> bool:
    """Return whether a model on a device gets block masks.

    Args:
        config: The model's transformers configuration.
        device: Where it computes.
    """
    return bool(config._attn_implementation == SDPA_OR_FLEX) and device.type == "cuda"


def takes_sample_numbers(config: Any, device: torch.device) -> bool:
    """Return whether a model on a device takes numbers of samples as the mask of causal rows; arguments as above."""
    return bool(config._attn_implementation == SDPA_OR_FLEX) and device.type == "cpu"


def make_block_mask(
    rule: Callable[[Tensor, Tensor, Tensor], Tensor], shape: tuple[int, int, int], device: torch.device
) -> BlockMask:
    """Return the block mask of a rule.

    It is made without compiling, so a bool tensor of shape (B, L, S) exists for a moment.

    Args:
        rule: Function of row, query position and key position (integers without dimensions, under vmap) that returns
            whether the one attends to the other. Tensors that it reads are on the device.
        shape: (B, L, S).
        device: Of the mask.
    """
    allow_many_versions()
    rows, queries, keys = shape
    return create_block_mask(lambda row, head, q, k: rule(row, q, k), rows, None, queries, keys, device=device)


def sdpa_or_flex(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | BlockMask | None, **more: Any
) -> tuple[Tensor, Tensor | None]:
    """Attend with FlexAttention if there is a block mask, and with SDPA otherwise; sample by sample with numbers.

    Args:
        module: The attention layer.
        query: (B, H, L, E), float.
        key: (B, number of key heads, S, E), float.
        value: Like key.
        attention_mask: A block mask, a bool tensor (B, 1, L, S), the numbers of samples, int64 (B, 1, 1, L), or None
            for causal attention.
        more: What transformers gives to an attention, such as dropout and scaling.

    Returns:
        (B, L, H, E), and what transformers' attention returns besides.
    """
    if isinstance(attention_mask, Tensor) and attention_mask.dtype == torch.int64:
        return _sdpa_by_sample(module, query, key, value, attention_mask, **more), None
    if not isinstance(attention_mask, BlockMask):
        return sdpa_attention_forward(module, query, key, value, attention_mask, **more)
    query, key, value = _in_one_dtype(query, key, value)
    if torch.compiler.is_compiling():
        return flex_attention_forward(module, query, key, value, attention_mask, **more)
    # torch compiles nothing while a dispatch mode is active, such as a counter of operations. FlexAttention would
    # compute all scores in memory instead.
    with _disable_current_modes():
        output, rest = flex_attention_forward(module, query, key, value, attention_mask, **more)
    _show_products(query, key, value, output)
    return output, rest


@torch.compiler.disable
def _sdpa_by_sample(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, sample_B11L: Tensor, **more: Any
) -> Tensor:
    """Attend causally within each sample; the result at padded positions, whose number is -1, is 0."""
    rows = []
    for numbers, *states in zip(sample_B11L[:, 0, 0].tolist(), query, key, value, strict=True):
        lengths = {number: len(list(run)) for number, run in itertools.groupby(numbers)}
        # `split` has one gradient for all parts; slices have one of the row's size each.
        pieces = zip(*(each.unsqueeze(0).split(list(lengths.values()), dim=2) for each in states), strict=True)
        parts: list[Tensor] = []
        for (number, length), piece in zip(lengths.items(), pieces, strict=True):
            if number >= 0:
                parts.append(sdpa_attention_forward(module, *piece, None, **more)[0])
            else:
                parts.append(parts[-1].new_zeros(1, length, *parts[-1].shape[2:]))
        rows.append(torch.cat(parts, dim=1))
    return torch.cat(rows)


def _in_one_dtype(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Do what autocast does for SDPA but not for FlexAttention: rotary positions leave queries and keys in float32."""
    device = value.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else value.dtype
    return query.to(dtype), key.to(dtype), value.to(dtype)


def _show_products(query: Tensor, key: Tensor, value: Tensor, output: Tensor) -> None:
    """Show the matrix products of the attention to an active counter of operations, on meta tensors.

    Like torch's counter for SDPA, it takes all L x S scores, two products forward and five backward.
    """
    if not torch._C._len_torch_dispatch_stack():
        return
    (rows, heads, length, width), keys = query.shape, key.shape[2]
    left = torch.empty(rows * heads, length, width, device="meta")
    right = torch.empty(rows * heads, width, keys, device="meta")

    def show(products: int) -> None:
        with torch.no_grad():
            for _ in range(products):
                torch.bmm(left, right)

    show(2)
    if output.requires_grad:
        output.register_hook(lambda gradient: show(5))


AttentionInterface.register(SDPA_OR_FLEX, sdpa_or_flex)
AttentionMaskInterface.register(SDPA_OR_FLEX, sdpa_mask)
