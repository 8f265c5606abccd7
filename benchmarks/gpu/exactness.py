"""Numbers that must agree before any speed counts: precisions, layouts of rows, compiled code.

Each check gives the largest difference of losses and of gradients, relative to the largest value of the reference.
"""

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.nn.attention.flex_attention import flex_attention
from transformers.integrations import flex_attention as transformers_flex

from divot_datamodules.toy.text_tokenizer import word_level_tokenizer
from divot_heads.gmm import GMMHead
from divot_lightning.models.block_attention import SDPA_OR_FLEX, Attention
from divot_lightning.models.video_llm import attention_mask
from divot_lightning.models.video_llm.config import VideoLLMConfig
from divot_lightning.models.video_llm.model import VideoLLM
from divot_lightning.parts.registries.kinds import HEADS
from divot_lightning.parts.segments import Clips, Segment, Text
from divot_lightning.parts.sequences.layout import GenerationMode

Result = dict[str, Any]

HIDDEN, WIDTH, TOKENS = 256, 64, 16
WORDS = ["a", "red", "circle", "moves", "up"]


def check_heads(device: str, clips: int, tokens: int) -> Result:
    """Compare the loss and the gradients of every installed head under bfloat16 autocast with those of float32.

    The heads compute in float32 by themselves; what differs is the rounding of their input.

    Args:
        device: Of torch.
        clips: Number of clips in the batch.
        tokens: Number of tokens of a clip.
    """
    found: Result = {}
    for name in [part.name for part in HEADS.installed()]:
        found[name] = _check_head(HEADS.load(name), device, clips, tokens)
    return found


def _check_head(head_class: Any, device: str, clips: int, tokens: int) -> dict[str, float]:
    torch.manual_seed(0)
    head = head_class(hidden_dim=HIDDEN, feature_dim=WIDTH).to(device)
    hidden = torch.randn(clips, tokens, HIDDEN, device=device)
    target = torch.randn(clips, tokens, WIDTH, device=device)
    reference = _loss_and_gradients(head, lambda: head(hidden, target))
    with torch.autocast(device, torch.bfloat16):
        return difference(_loss_and_gradients(head, lambda: head(hidden.bfloat16(), target)), reference)


def check_rows(device: str) -> Result:
    """Compare packed rows with one sample a row, and a mask with the causal flag, in float32."""
    found: Result = {}
    pairs: list[tuple[str, GenerationMode]] = [
        ("packed rows, beside a row for each sample", "query_bidirectional"),
        ("4D mask, beside the causal flag", "query_causal"),
    ]
    for name, mode in pairs:
        model, samples, features = _example(device, mode)
        apart = _run(model, samples, features)
        model.set_layout(max_length=256, packing=True)
        found[name] = difference(_run(model, samples, features), apart)
    return found


def check_block_mask(device: str) -> Result:
    """Compare FlexAttention's block mask with the 4D mask, in packed rows with queries that see each other.

    In float32 and under bfloat16 autocast; on a CPU for the wiring alone.
    """
    models = [_packed(device, attention) for attention in ("sdpa", "auto" if device == "cpu" else "flex")]
    found: Result = {}
    for name, autocast in (("float32", False), ("bfloat16", True)):
        with torch.autocast(device, torch.bfloat16, enabled=autocast), _block_masks(device):
            reference, given = (_run(*model) for model in models)
        found[f"block mask, beside the 4D mask, {name}"] = difference(given, reference)
    return found


@contextmanager
def _block_masks(device: str) -> Iterator[None]:
    """Let a CPU take block masks, too, without compiling, which takes minutes there, and without gradients."""
    if device != "cpu":
        yield
        return
    with (
        torch.no_grad(),
        patch.object(attention_mask, "takes_block_masks", _has_block_masks),
        patch.object(transformers_flex, "compile_friendly_flex_attention", _uncompiled),
    ):
        yield


def _uncompiled(query: Tensor, key: Tensor, value: Tensor, training: bool, **more: Any) -> Any:
    return flex_attention(query, key, value, **more)


def _has_block_masks(config: Any, device: torch.device) -> bool:
    return bool(config._attn_implementation == SDPA_OR_FLEX)


def _packed(device: str, attention: Attention) -> tuple[VideoLLM, list[list[Segment]], Tensor]:
    model, samples, features = _example(device, "query_bidirectional", attention)
    model.set_layout(max_length=256, packing=True)
    return model, samples, features


def check_compiled(device: str) -> Result:
    """Compare compiled layers of the language model with eager ones."""
    model, samples, features = _example(device, "query_bidirectional")
    reference = _run(model, samples, features)
    for layer in model.causal_lm.base_model.layers:
        layer.compile(dynamic=True)
    return {"compiled layers, beside eager ones": difference(_run(model, samples, features), reference)}


def difference(given: tuple[Tensor, ...], reference: tuple[Tensor, ...]) -> dict[str, float]:
    """Return the largest differences of loss and gradients, each relative to the largest value of the reference.

    Without gradients in both, only that of the loss.
    """
    names = ("loss", "gradients")
    pairs = zip(names, given, reference, strict=False)
    return {name: float((value - true).abs().max() / true.abs().max()) for name, value, true in pairs}


def _example(
    device: str, mode: GenerationMode, attention: Attention = "sdpa"
) -> tuple[VideoLLM, list[list[Segment]], Tensor]:
    torch.manual_seed(0)
    with torch.device(device):
        model = _video_llm(mode, attention)
    samples: list[list[Segment]] = [
        [Clips(2, "read"), Text("a red circle", learn=True)],
        [Text("a red circle moves up", learn=False), Clips(1, "generate", learn=True)],
    ]
    return model, samples, torch.randn(3, TOKENS, WIDTH, device=device)


def _video_llm(mode: GenerationMode, attention: Attention) -> VideoLLM:
    with tempfile.TemporaryDirectory() as folder:
        word_level_tokenizer(WORDS).save_pretrained(folder)
        sizes = {"hidden_size": HIDDEN, "intermediate_size": 512, "num_hidden_layers": 2, "num_attention_heads": 4}
        config = VideoLLMConfig(
            language_model_config={"model_type": "llama", "num_key_value_heads": 2, **sizes},
            text_tokenizer=folder,
            num_queries=TOKENS,
            feature_dim=WIDTH,
            generation_mode=mode,
            attention=attention,
        )
        return VideoLLM(config, GMMHead).train()


def _run(model: VideoLLM, samples: list[list[Segment]], features: Tensor) -> tuple[Tensor, ...]:
    def loss() -> Tensor:
        output = model(model.sequences(samples), features)
        return output.text_loss + output.head_loss

    return _loss_and_gradients(model, loss)


def _loss_and_gradients(module: nn.Module, loss: Callable[[], Tensor]) -> tuple[Tensor, ...]:
    torch.manual_seed(1)  # heads that draw noise draw the same
    module.zero_grad(set_to_none=True)
    value = loss()
    if not value.requires_grad:
        return (value.float().flatten(),)
    value.backward()
    gradients = [parameter.grad.flatten() for parameter in module.parameters() if parameter.grad is not None]
    return value.detach().float().flatten(), torch.cat(gradients).float()
