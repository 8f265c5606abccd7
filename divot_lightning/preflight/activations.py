"""Count the activation memory of a training step by running it on torch's meta device, which needs no memory."""

import contextlib
from collections.abc import Iterator, Mapping
from types import MethodType
from typing import Any
from unittest.mock import patch

import torch
from lightning import LightningModule
from torch import Tensor
from torch.autograd.graph import _engine_run_backward
from torch.nn import functional
from torch.nn.attention.flex_attention import BlockMask
from torch.utils._pytree import tree_map_only
from transformers import AttentionInterface, masking_utils
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from divot_lightning.deepspeed_zero.strategy import float32_buffers, half_of, restore_buffers
from divot_lightning.models.block_attention import SDPA_OR_FLEX, takes_block_masks
from divot_lightning.models.clip_encoding import CLIPS_AT_ONCE
from divot_lightning.models.pixels import to_unit_range
from divot_lightning.models.tokenizer.video_tokenizer import VideoTokenizer
from divot_lightning.models.video_llm import attention_mask
from divot_lightning.models.weight_dtypes import HALF
from divot_lightning.preflight.live_memory import LiveMemory
from divot_lightning.preflight.memory import ProcessLayout
from divot_lightning.preflight.meta_autocast import MetaAutocast
from divot_lightning.training.global_mean import LossPart
from divot_lightning.training.stages import video_llm_step


def activation_bytes(stage: LightningModule, batch: dict[str, Any], layout: ProcessLayout) -> int:
    """Return the most bytes that forward and backward pass hold at once, in the layout's precision.

    Neither parameters nor their gradients count. Of the temporary memory within an operation only that of 3D
    convolutions on a CPU counts, which is large (`cpu_conv3d_windows`); workspaces of cuDNN do not. Activations that
    are recomputed in the backward pass count there. Attention is counted as in memory-saving kernels: inputs, output
    and a dense mask, but no matrix of scores.

    Args:
        stage: On the meta device, see `divot_lightning.preflight.shapes`. It is cast to the layout's precision.
        batch: The batch of one process, on any device.
        layout: Decides precision, device and whether DeepSpeed trains.
    """
    stored, lower, default = _dtypes(layout)
    if stored is not None:
        _lower(stage, stored, keep_buffers=layout.zero_stage > 0)
    autocast = MetaAutocast(layout.device, lower)
    within = {"within": cpu_conv3d_windows} if layout.device == "cpu" else {}
    memory = LiveMemory("meta", [*stage.parameters(), *stage.buffers()], **within)
    with (
        _gradients_dropped(stage),
        memory,
        _without_values(stage, autocast),
        _attention(autocast, torch.device(layout.device)),
        _equal_calls_once(layout.device),
        autocast,
        _default_dtype(default),
    ):
        loss: Any = stage.training_step(_to_meta(batch, stored), 0)
        autocast.forget_weights()
        _backward(loss)
        autocast.forget_weights()
    return memory.peak


def _dtypes(layout: ProcessLayout) -> tuple[torch.dtype | None, torch.dtype | None, torch.dtype]:
    """Return the half precision of weights and inputs, that of autocast (None for neither), and torch's default."""
    half = half_of(layout.precision)
    if half is None:
        return None, None, torch.float32
    casts = layout.zero_stage > 0 or layout.precision.endswith("mixed")
    stored = half if layout.parameter_bytes == half.itemsize else None
    return stored, half if casts else None, torch.float32 if casts else half


def _lower(stage: LightningModule, half: torch.dtype, *, keep_buffers: bool) -> None:
    buffers = float32_buffers(stage) if keep_buffers else []
    stage.to(half)
    restore_buffers(buffers)


def cpu_conv3d_windows(func: Any, args: Any, result: Any) -> int:
    """Return the bytes that torch's CPU kernel takes within a 3D convolution in half precision; 0 for all else.

    Where the processor has no instructions for bfloat16, the kernel writes out the window of the input that belongs to
    each position of the output, for all clips together, and multiplies these by the weights.

    Args:
        func: The operation.
        args: Its arguments: input and weight first, or after the output's gradient in the backward pass.
        result: What it returned.
    """
    packet = getattr(func, "overloadpacket", None)
    if packet is torch.ops.aten.convolution:
        given, weight, output, is_transposed = args[0], args[1], result, args[6]
    elif packet is torch.ops.aten.convolution_backward:
        output, given, weight, is_transposed = args[0], args[1], args[2], args[7]
    else:
        return 0
    window = weight.shape[2:].numel()
    if given.ndim != 5 or given.dtype not in HALF or window == 1 or is_transposed or _has_fast_half():
        return 0
    return int(output.shape[0] * output.shape[2:].numel() * weight.shape[1] * window * given.itemsize)


def _has_fast_half() -> bool:
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


@contextlib.contextmanager
def _without_values(stage: LightningModule, autocast: MetaAutocast) -> Iterator[None]:
    """Replace functions that read values, communicate with other processes or do not support the meta device."""

    def sum_losses(self: Any, parts: Mapping[str, LossPart], batch: dict[str, Any]) -> Tensor:
        return torch.stack([part.mean for part in parts.values()]).sum()

    def switch(device: str, dtype: torch.dtype | None = None, enabled: bool = True, **kwargs: Any) -> Any:
        if device == "meta":
            return autocast.switched(enabled)
        return real_autocast(device, dtype, enabled, **kwargs)

    real_autocast = torch.autocast
    with (
        patch.object(stage, "training_loss", MethodType(sum_losses, stage)),
        patch.object(torch, "autocast", switch),
        # transformers calls it for batches without a mask; their rows hold one sample each, so nothing is packed.
        patch.object(masking_utils, "find_packed_sequence_indices", lambda *args, **kwargs: None),
    ):
        yield


@contextlib.contextmanager
def _attention(autocast: MetaAutocast, device: torch.device) -> Iterator[None]:
    """Replace attention, and let models get the masks that they get on the device."""

    def attend(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, **kwargs: Any) -> Tensor:
        query, key, value = (autocast.lower(part) for part in (query, key, value))
        # Every layer makes a bool mask into one that is added to the scores, and keeps it for the backward pass.
        added = attn_mask.to(query.dtype) if attn_mask is not None else None
        return _Attention.apply(query, key, value, added)

    def sdpa_or_flex(module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Any, **kwargs: Any) -> Any:
        if isinstance(mask, BlockMask):
            return attend(query, key, value).transpose(1, 2).contiguous(), None
        return sdpa_attention_forward(module, query, key, value, mask, **kwargs)

    with (
        patch.object(functional, "scaled_dot_product_attention", attend),
        patch.dict(AttentionInterface._global_mapping, {SDPA_OR_FLEX: sdpa_or_flex}),
        patch.object(attention_mask, "takes_block_masks", lambda config, _: takes_block_masks(config, device)),
    ):
        yield


def _equal_calls_once(device: str) -> contextlib.AbstractContextManager[Any]:
    """Encode the first clips only: later clips repeat the same call, and only their tokens stay in memory."""

    def encode(tokenizer: VideoTokenizer, video_MF3HW: Tensor) -> Tensor:
        clips = tokenizer.select_frames(video_MF3HW)[: CLIPS_AT_ONCE.get(device, 1)]
        weight = next(tokenizer.parameters())
        tokens = tokenizer(to_unit_range(clips).to(weight.dtype)).float()
        return tokens.new_empty(len(video_MF3HW), *tokens.shape[1:])

    return patch.object(video_llm_step, "encode_clips", encode)


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        result = query.new_empty(*query.shape[:-1], value.shape[-1])
        ctx.save_for_backward(query, key, value, result, mask)
        return result

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        query, key, value, *_ = ctx.saved_tensors
        return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value), None


@contextlib.contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def _backward(loss: Tensor) -> None:
    # Call the engine directly: inside `Tensor.backward` a function mode such as `MetaAutocast` is switched off, but
    # activations that are recomputed in the backward pass need it.
    _engine_run_backward(
        (loss,), (torch.ones_like(loss),), False, False, (), allow_unreachable=True, accumulate_grad=True
    )


@contextlib.contextmanager
def _gradients_dropped(stage: LightningModule) -> Iterator[None]:
    """Drop the gradient of each parameter as soon as it is complete, since gradients are counted elsewhere."""

    def drop(parameter: Tensor) -> None:
        parameter.grad = None

    trained = [value for value in stage.parameters() if value.requires_grad]
    hooks = [value.register_post_accumulate_grad_hook(drop) for value in trained]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _to_meta(batch: dict[str, Any], half: torch.dtype | None) -> dict[str, Any]:
    """Move a batch to the meta device, without its sample indices.

    With them, noise would be sampled per sample, which needs generators on a real device.
    """

    def move(tensor: Tensor) -> Tensor:
        return tensor.to("meta", half if half is not None and tensor.is_floating_point() else tensor.dtype)

    return tree_map_only(Tensor, move, {name: value for name, value in batch.items() if name != "sample_index"})
