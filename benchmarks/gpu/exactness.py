"""Numbers that must agree before any speed counts: precisions, layouts of rows, compiled code.

Each check gives the largest difference of losses and of gradients, relative to the largest value of the reference.
"""

import tempfile
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from divot_datamodules.toy.text_tokenizer import word_level_tokenizer
from divot_heads.gmm import GMMHead
from divot_lightning.models.video_llm.config import VideoLLMConfig
from divot_lightning.models.video_llm.model import VideoLLM
from divot_lightning.parts.registries.kinds import HEADS
from divot_lightning.parts.segments import Clips, Segment, Text

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
    """Compare packed rows with one sample a row, and a mask with the causal flag."""
    model, samples, features = _example(device, "query_bidirectional")
    apart = _run(model, samples, features)
    model.set_layout(max_length=256, packing=True)
    found = {"packed rows, beside a row for each sample": difference(_run(model, samples, features), apart)}
    model, samples, features = _example(device, "query_causal")
    flag = _run(model, samples, features)
    model.set_layout(max_length=256, packing=True)
    return {**found, "4D mask, beside the causal flag": difference(_run(model, samples, features), flag)}


def check_compiled(device: str) -> Result:
    """Compare compiled layers of the language model with eager ones."""
    model, samples, features = _example(device, "query_bidirectional")
    reference = _run(model, samples, features)
    for layer in model.causal_lm.base_model.layers:
        layer.compile(dynamic=True)
    return {"compiled layers, beside eager ones": difference(_run(model, samples, features), reference)}


def difference(given: tuple[Tensor, Tensor], reference: tuple[Tensor, Tensor]) -> dict[str, float]:
    """Return the largest differences of loss and gradients, each relative to the largest value of the reference."""
    names = ("loss", "gradients")
    pairs = zip(names, given, reference, strict=True)
    return {name: float((value - true).abs().max() / true.abs().max()) for name, value, true in pairs}


def _example(device: str, mode: Any) -> tuple[VideoLLM, list[list[Segment]], Tensor]:
    torch.manual_seed(0)
    with torch.device(device):
        model = _video_llm(mode)
    samples: list[list[Segment]] = [
        [Clips(2, "read"), Text("a red circle", learn=True)],
        [Text("a red circle moves up", learn=False), Clips(1, "generate", learn=True)],
    ]
    return model, samples, torch.randn(3, TOKENS, WIDTH, device=device)


def _video_llm(mode: Any) -> VideoLLM:
    with tempfile.TemporaryDirectory() as folder:
        word_level_tokenizer(WORDS).save_pretrained(folder)
        sizes = {"hidden_size": HIDDEN, "intermediate_size": 512, "num_hidden_layers": 2, "num_attention_heads": 4}
        config = VideoLLMConfig(
            language_model_config={"model_type": "llama", "num_key_value_heads": 2, **sizes},
            text_tokenizer=folder,
            num_queries=TOKENS,
            feature_dim=WIDTH,
            generation_mode=mode,
        )
        return VideoLLM(config, GMMHead).train()


def _run(model: VideoLLM, samples: list[list[Segment]], features: Tensor) -> tuple[Tensor, Tensor]:
    def loss() -> Tensor:
        output = model(model.sequences(samples), features)
        return output.text_loss + output.head_loss

    return _loss_and_gradients(model, loss)


def _loss_and_gradients(module: nn.Module, loss: Callable[[], Tensor]) -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)  # heads that draw noise draw the same
    module.zero_grad(set_to_none=True)
    value = loss()
    value.backward()
    gradients = [parameter.grad.flatten() for parameter in module.parameters() if parameter.grad is not None]
    return value.detach().float().flatten(), torch.cat(gradients).float()
