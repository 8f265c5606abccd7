"""What is predicted for a stage, against the same stage when it is built and trained."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Trainer
from torch._C._profiler import _EventType
from torch.profiler import ProfilerActivity, profile

from divot_backbones.denoisers.diffusers_denoiser import UNet3D, Wan
from divot_backbones.denoisers.video_dit import VideoDiT
from divot_backbones.latents.block_dct import BlockDCTLatents
from divot_backbones.latents.video_vae import VideoVAELatents
from divot_backbones.objectives.ddim import VPrediction
from divot_backbones.objectives.rectified_flow import RectifiedFlow
from divot_backbones.vision.clip import ClipVision
from divot_backbones.vision.transformers_vision import TransformersVision
from divot_datamodules.toy.text_tokenizer import word_level_tokenizer
from divot_heads.gmm import GMMHead
from divot_lightning.checkpoint.components import save_component
from divot_lightning.models.block_attention import Attention
from divot_lightning.models.detokenizer.config import DetokenizerConfig
from divot_lightning.models.tokenizer.config import TokenizerConfig
from divot_lightning.models.tokenizer.video_tokenizer import VideoTokenizer
from divot_lightning.models.video_llm.model import VideoLLMConfig
from divot_lightning.parts.registries.kinds import OPTIMIZERS
from divot_lightning.parts.segments import Clips, Text
from divot_lightning.preflight.memory import ProcessLayout, checkpoint_bytes, rank_memory
from divot_lightning.preflight.needs import model_needs
from divot_lightning.training.stages.llm_pretraining import LLMPretraining
from divot_lightning.training.stages.stage import Stage
from divot_lightning.training.stages.tokenizer_pretraining import TokenizerPretraining
from divot_optimizers.adamw import AdamWOptimizer

VISION = partial(ClipVision, frozen=False, image_size=16, patch_size=4, width=32, layers=2, heads=2)
TOKENIZER = TokenizerConfig(
    vision=VISION,
    token_dim=8,
    temporal_width=16,
    temporal_layers=1,
    temporal_heads=2,
    temporal_init="random",
    pool_size=2,
    spatiotemporal_width=32,
    spatiotemporal_layers=1,
    spatiotemporal_heads=2,
    num_tokens=4,
    resampler_layers=1,
    resampler_heads=2,
    resampler_head_dim=8,
)
DETOKENIZER = DetokenizerConfig(
    latents=partial(BlockDCTLatents, block_size=4, luma_frequencies=4, chroma_frequencies=1),
    denoiser=partial(VideoDiT, width=32, layers=2, heads=2, patch_frames=4, condition_in_modulation=True),
    objective=VPrediction,
    size=16,
)


def _tokenizer_stage(folder: Path, optimizer: str) -> tuple[Stage, dict[str, Any]]:
    video = torch.zeros(4, 16, 3, 16, 16, dtype=torch.uint8)
    return TokenizerPretraining(TOKENIZER, DETOKENIZER, OPTIMIZERS.build(optimizer, {})), {"video": video}


def _checkpointed_stage(folder: Path, optimizer: str) -> tuple[Stage, dict[str, Any]]:
    _, batch = _tokenizer_stage(folder, optimizer)
    denoiser = partial(DETOKENIZER.denoiser, gradient_checkpointing=True, layers=4)
    detokenizer = replace(DETOKENIZER, denoiser=denoiser)
    return TokenizerPretraining(TOKENIZER, detokenizer, AdamWOptimizer()), batch


def _unet_stage(folder: Path, optimizer: str) -> tuple[Stage, dict[str, Any]]:
    _, batch = _tokenizer_stage(folder, optimizer)
    unet = partial(
        UNet3D,
        config={
            "down_block_types": ["CrossAttnDownBlock3D", "DownBlock3D"],
            "up_block_types": ["UpBlock3D", "CrossAttnUpBlock3D"],
            "block_out_channels": [8, 16],
            "layers_per_block": 1,
            "norm_num_groups": 4,
            "cross_attention_dim": 8,
            "attention_head_dim": 4,
        },
        gradient_checkpointing=True,
    )
    return TokenizerPretraining(TOKENIZER, replace(DETOKENIZER, denoiser=unet), AdamWOptimizer()), batch


def _pretrained_like_stage(folder: Path, optimizer: str) -> tuple[Stage, dict[str, Any]]:
    """The kinds of parts that come pretrained: a frozen SigLIP, a video VAE, and Wan with adapters."""
    siglip = {"model_type": "siglip_vision_model", "hidden_size": 32, "intermediate_size": 64, "image_size": 16}
    siglip |= {"patch_size": 4, "num_hidden_layers": 2, "num_attention_heads": 2}
    vae = {"base_dim": 6, "z_dim": 4, "dim_mult": [1, 1, 1, 1], "num_res_blocks": 1, "latents_mean": [0.0] * 4}
    vae |= {"latents_std": [1.0] * 4, "temperal_downsample": [False, True, True]}
    wan = {"num_attention_heads": 2, "attention_head_dim": 24, "freq_dim": 16, "ffn_dim": 96, "num_layers": 4}
    detokenizer = DetokenizerConfig(
        latents=partial(VideoVAELatents, "AutoencoderKLWan", config=vae, batch_size=2),
        denoiser=partial(
            Wan, config={**wan, "rope_max_seq_len": 32}, training="lora", lora_rank=4, gradient_checkpointing=True
        ),
        objective=RectifiedFlow,
        size=64,
    )
    tokenizer = replace(TOKENIZER, vision=partial(TransformersVision, config=siglip))
    video = torch.zeros(4, 16, 3, 64, 64, dtype=torch.uint8)
    return TokenizerPretraining(tokenizer, detokenizer, OPTIMIZERS.build(optimizer, {})), {"video": video}


def _llm_stage(
    folder: Path, optimizer: str, words: int = 3, attention: Attention = "sdpa"
) -> tuple[Stage, dict[str, Any]]:
    if not (folder / "run").exists():
        save_component(VideoTokenizer(TOKENIZER), folder / "run/tokenizer")
        word_level_tokenizer(["a red circle moves left"]).save_pretrained(folder / "text")
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    config = VideoLLMConfig(
        language_model_config={"model_type": "llama", **sizes},
        text_tokenizer=str(folder / "text"),
        num_queries=4,
        feature_dim=8,
        attention=attention,
    )
    text = " ".join(["red"] * words)
    segments = [[Clips(1, "read"), Text(text, True)], [Text("a circle", False), Clips(1, "generate")]] * 4
    video = torch.zeros(8, 16, 3, 16, 16, dtype=torch.uint8)
    stage = LLMPretraining(GMMHead, str(folder / "run"), config, OPTIMIZERS.build(optimizer, {}))
    return stage, {"segments": segments, "sequences": stage.sequence_collator().lay_out(segments), "video": video}


_long_rows_stage = partial(_llm_stage, words=200)
"""Rows of about 200 tokens, so that masks are a large part of the memory of so small a model."""


def _measure(stage: Stage, batch: dict[str, Any]) -> dict[str, int]:
    """Train one step for real and add up the memory of its tensors."""
    _prepare(stage)
    optimizer: Any = stage.configure_optimizers()["optimizer"]  # type: ignore[index]
    stage.training_step(batch, 0).backward()
    optimizer.step()
    leaves = getattr(optimizer, "parts", [optimizer])
    states = [value for part in leaves for state in part.state.values() for value in state.values()]
    return {
        "weights": sum(value.nbytes for value in stage.parameters()),
        "gradients": sum(value.grad.nbytes for value in stage.parameters() if value.grad is not None),
        "optimizer": sum(value.nbytes for value in states if torch.is_tensor(value) and value.ndim > 0),
    }


def _prepare(stage: Stage) -> None:
    stage.trainer = Trainer(accelerator="cpu", max_steps=10, logger=False, enable_checkpointing=False)
    stage.configure_model()
    stage.training_loss = lambda parts, batch: sum(part.mean for part in parts.values())  # type: ignore[assignment]


def _measured_peak(stage: Stage, batch: dict[str, Any], precision: str) -> int:
    """Run forward and backward pass for real; the most bytes that torch's allocator had given at once, by its log."""
    _prepare(stage)
    casts = torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16-mixed")
    if precision == "bf16-true":
        stage.to(torch.bfloat16)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as log, _default_dtype(precision):
        with casts:
            loss = stage.training_step(batch, 0)
        loss.backward()
    events = log.profiler.kineto_results.experimental_event_tree()  # type: ignore[union-attr]
    given = [event for event in _flat(events) if event.tag == _EventType.Allocation]
    given.sort(key=lambda event: event.start_time_ns)
    return max(accumulate(event.extra_fields.alloc_size for event in given))


def _flat(events: list[Any]) -> Iterator[Any]:
    for event in events:
        yield event
        yield from _flat(event.children)


@contextmanager
def _default_dtype(precision: str) -> Iterator[None]:
    torch.set_default_dtype(torch.bfloat16 if precision == "bf16-true" else torch.float32)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("make", [_tokenizer_stage, _pretrained_like_stage, _llm_stage])
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_memory_is_as_predicted(make: Any, optimizer: str, tmp_path: Path) -> None:
    stage, batch = make(tmp_path, optimizer)
    needs = model_needs(stage, ProcessLayout(), averaged=False, max_steps=10, batches={"": batch})
    assert all(value.device.type == "meta" for value in stage.parameters())
    measured = _measure(*make(tmp_path, optimizer))
    for part in ("weights", "gradients", "optimizer"):
        assert getattr(needs.memory, part) == measured[part], part


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "bf16-true"])
@pytest.mark.parametrize("make", [_tokenizer_stage, _checkpointed_stage, _unet_stage, _llm_stage, _long_rows_stage])
def test_the_peak_of_a_step_is_within_a_tenth_of_the_measured_one(make: Any, precision: str, tmp_path: Path) -> None:
    stage, batch = make(tmp_path, "adamw")
    needs = model_needs(stage, ProcessLayout(precision=precision), averaged=False, max_steps=10, batches={"": batch})
    if precision == "bf16-true" and make not in (_llm_stage, _long_rows_stage):
        # These stages compute with float32 pixels, and nothing but autocast brings them together with such weights.
        with pytest.raises(RuntimeError, match=r"d?type"):
            _measured_peak(*make(tmp_path, "adamw"), precision)
        assert "does not train in this precision" in needs.no_activations
        assert needs.device is None
        return
    assert needs.activations[""] == pytest.approx(_measured_peak(*make(tmp_path, "adamw"), precision), rel=0.1)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_block_masks_on_cuda_need_none_of_the_memory_of_dense_masks(precision: str, tmp_path: Path) -> None:
    def activations(attention: Attention, device: str) -> int:
        stage, batch = _long_rows_stage(tmp_path, "adamw", attention=attention)
        layout = ProcessLayout(precision=precision, device=device)
        needs = model_needs(stage, layout, averaged=False, max_steps=10, batches={"": batch})
        rows, length = batch["sequences"].ids_BL.shape
        masks.append(2 * rows * length**2 * (4 if precision == "32-true" else 2))  # in both layers
        return needs.activations[""]

    masks: list[int] = []
    dense, blocks = (activations(attention, "cuda") for attention in ("sdpa", "auto"))
    assert dense - blocks == masks[0]
    assert activations("flex", "cuda") == blocks
    assert activations("auto", "cpu") == activations("sdpa", "cpu")


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_the_peak_with_parts_that_come_pretrained_is_within_a_tenth_of_the_measured_one(
    precision: str, tmp_path: Path
) -> None:
    # In bfloat16 the peak is within a 3D convolution of the VAE, whose CPU kernel takes 28 times its result.
    stage, batch = _pretrained_like_stage(tmp_path, "adamw")
    needs = model_needs(stage, ProcessLayout(precision=precision), averaged=False, max_steps=10, batches={"": batch})
    measured = _measured_peak(*_pretrained_like_stage(tmp_path, "adamw"), precision)
    assert needs.activations[""] == pytest.approx(measured, rel=0.1)


def test_the_heaviest_batch_is_priced_and_an_unknown_one_makes_the_sum_unknown(tmp_path: Path) -> None:
    stage, batch = _tokenizer_stage(tmp_path, "adamw")
    one = {"video": batch["video"][:1]}
    needs = model_needs(stage, ProcessLayout(), averaged=False, max_steps=10, batches={"one": one, "four": batch})
    assert needs.heaviest == "four"
    assert needs.activations["four"] == pytest.approx(4 * needs.activations["one"], rel=0.1)
    assert needs.device == needs.memory.device + needs.activations["four"]
    stage, _ = _tokenizer_stage(tmp_path, "adamw")
    needs = model_needs(stage, ProcessLayout(), averaged=False, max_steps=10, batches={"one": one, "none": {}})
    assert needs.heaviest is needs.device is None
    assert "KeyError" in needs.no_activations


def test_a_stage_that_reads_values_is_reported_without_activations(tmp_path: Path) -> None:
    class Reading(TokenizerPretraining):
        def training_step(self, batch: dict[str, Any], batch_idx: int) -> torch.Tensor:
            return super().training_step(batch, batch_idx) * next(self.parameters()).sum().item()

    stage = Reading(TOKENIZER, DETOKENIZER, AdamWOptimizer())
    batch = {"video": torch.zeros(1, 16, 3, 16, 16, dtype=torch.uint8)}
    needs = model_needs(stage, ProcessLayout(), averaged=False, max_steps=10, batches={"": batch})
    assert needs.device is None
    assert "RuntimeError" in needs.no_activations


def test_zero_shares_out_what_its_stage_names() -> None:
    whole = [rank_memory(800, 80, 1600, ProcessLayout(4, zero_stage=stage, bucket_elements=0)) for stage in (1, 2, 3)]
    assert [memory.weights for memory in whole] == [3520, 3520, 880]
    assert [memory.gradients for memory in whole] == [3200, 800, 800]
    assert {memory.optimizer for memory in whole} == {4 * (800 + 1600) // 4}
    offloaded = rank_memory(
        800,
        80,
        1600,
        ProcessLayout(4, zero_stage=3, offload_optimizer=True, offload_parameters=True, bucket_elements=0),
    )
    assert (offloaded.weights, offloaded.optimizer, offloaded.host) == (0, 0, 880 + 2400)


def test_half_precision_halves_what_is_not_kept_in_float32() -> None:
    assert rank_memory(100, 0, 200, ProcessLayout(precision="bf16-true")).optimizer == 400
    assert rank_memory(100, 0, 200, ProcessLayout(precision="bf16-mixed")).weights == 400
    zero = ProcessLayout(precision="bf16-mixed", zero_stage=2)
    assert rank_memory(100, 0, 200, zero).weights == 200
    assert rank_memory(100, 0, 200, zero, averaged=True).optimizer == 4 * (100 + 200 + 100)
    assert checkpoint_bytes(100, 10, 7, 200, zero) == 4 * 300 + 2 * 10 + 7
