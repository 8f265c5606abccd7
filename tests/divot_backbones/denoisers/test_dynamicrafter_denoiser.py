"""DynamiCrafter's U-Net as a part: from a recipe, from a folder, and trained under ZeRO."""

import pytest
import torch
from lightning import LightningModule, Trainer
from torch import nn
from torch.utils.data import DataLoader

from divot_backbones.denoisers.dynamicrafter.denoiser import DynamiCrafter
from divot_lightning.deepspeed_zero.strategy import DivotDeepSpeedStrategy
from divot_lightning.errors import UserError
from divot_lightning.parts.part import build_part, spec_of
from divot_lightning.parts.registries.kinds import DENOISERS
from divot_lightning.testing import run_distributed
from divot_lightning.testing.denoiser_conformance import DenoiserConformance
from tests.divot_backbones.denoisers.test_dynamicrafter_unet import TINY


class TestDynamiCrafter(DenoiserConformance):
    def make_denoiser(self, **sizes):
        config = {**TINY, "cross_attention_dim": sizes["condition_dim"], "context_split": 2}
        return DynamiCrafter(**sizes, config=config)


class TestDynamiCrafterWithOneBranchAndLoRA(DenoiserConformance):
    def make_denoiser(self, **sizes):
        config = {**TINY, "context_split": None, "frame_stride": None, "input_attention_heads": 0}
        return DynamiCrafter(**sizes, config=config, training="lora", lora_rank=2)


SIZES = {"channels": 4, "frames": 3, "grid": (4, 6), "condition_tokens": 5, "condition_dim": 6}


def denoiser(seed=0, **changes):
    torch.manual_seed(seed)
    part = DENOISERS.build("dynamicrafter", {"config": dict(TINY)}, **{**SIZES, **changes})
    for parameter in part.parameters():
        parameter.data.normal_(std=0.2)
    return part.eval()


def inputs(width=6):
    generator = torch.Generator().manual_seed(0)
    latents, condition = torch.randn(2, 3, 4, 4, 6, generator=generator), torch.randn(2, 5, width, generator=generator)
    return latents, torch.tensor([7, 930]), condition


@torch.no_grad()
def test_part_is_the_unet_with_frames_before_channels():
    part, (latents, time, condition) = denoiser(), inputs()
    assert isinstance(part, DynamiCrafter)
    expected = part.model(latents.transpose(1, 2), time, condition).sample.transpose(1, 2)
    torch.testing.assert_close(part(latents, time, condition), expected)


@torch.no_grad()
def test_recorded_settings_build_the_same_part_again():
    part = denoiser(condition_dim=9)
    again = build_part(spec_of(part), DENOISERS, "the test", **{**SIZES, "condition_dim": 9})
    again.load_state_dict(part.state_dict())
    torch.testing.assert_close(again.eval()(*inputs(9)), part(*inputs(9)))


@torch.no_grad()
def test_training_starts_from_a_folder_and_needs_it_only_once(tmp_path):
    source = denoiser()
    source.model.save_pretrained(tmp_path / "unet")
    part = DENOISERS.build("dynamicrafter", {"pretrained": str(tmp_path / "unet")}, **SIZES).eval()
    torch.testing.assert_close(part(*inputs()), source(*inputs()))
    (tmp_path / "unet").rename(tmp_path / "moved")
    build_part(spec_of(part), DENOISERS, "the test", **SIZES).load_state_dict(part.state_dict())


@pytest.mark.parametrize(
    ("settings", "sizes", "message"),
    [
        ({"config": TINY}, {"condition_tokens": 3}, "reads 3 condition tokens, and of 3 none is left"),
        ({"config": TINY}, {"grid": (3, 6)}, "do not divide into the"),
        ({"config": {**TINY, "width": 3}}, {}, "width"),
    ],
)
def test_settings_that_do_not_fit_are_refused_when_it_is_built(settings, sizes, message):
    with pytest.raises(UserError, match=message):
        DENOISERS.build("dynamicrafter", settings, **{**SIZES, **sizes})


def test_lora_reaches_both_branches_and_cross_attention_training_nothing_else():
    settings = {"config": dict(TINY), "lora_rank": 2}
    lora = DENOISERS.build("dynamicrafter", {**settings, "training": "lora"}, **SIZES)
    trained = {name for name, value in lora.named_parameters() if value.requires_grad}
    assert any("second.to_k.lora_A" in name for name in trained)
    assert all("lora" in name for name in trained)
    cross = DENOISERS.build("dynamicrafter", {**settings, "training": "cross_attention"}, **SIZES)
    trained = {name for name, value in cross.named_parameters() if value.requires_grad}
    assert any(name.endswith("attn2.gate") for name in trained)
    assert all("spatial_transformer" in name and ".attn2." in name for name in trained)


class Training(LightningModule):
    """Trains a tiny denoiser, all of whose weights have gradients from the first step."""

    def configure_model(self):
        if not hasattr(self, "denoiser"):
            torch.manual_seed(4)
            # ZeRO takes its time for each parameter: transformers in the middle alone, with both branches and gates
            config = {**TINY, "attention_levels": ()}
            self.denoiser = DynamiCrafter(**SIZES, config=config, gradient_checkpointing=True)
            for layer in self.denoiser.modules():
                if isinstance(layer, nn.Linear | nn.Conv2d | nn.Conv3d):
                    layer.reset_parameters()

    def training_step(self, batch, batch_index):
        latents, time, condition = batch
        return (self.denoiser(latents, time, condition) - latents.flip(1)).square().mean()

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=1e-2)


def train(strategy):
    latents, time, condition = inputs()
    batch = (latents, time, condition)
    module = Training()
    trainer = Trainer(
        accelerator="cpu",
        devices=1 if strategy == "auto" else 2,
        strategy=strategy,
        max_steps=3,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )
    losses = []
    step = module.training_step
    module.training_step = lambda *args: (losses.append(step(*args)), losses[-1])[1]
    trainer.fit(module, DataLoader([batch] * 3, batch_size=None))
    return [loss.item() for loss in losses]


def train_under_zero(rank, stages):
    # Nothing is small enough to stay whole, so that stage 3 shards the gates, too.
    options = {"persistence_elements": 0, "bucket_elements": 10_000}
    return [train(DivotDeepSpeedStrategy(stage=stage, **options)) for stage in stages]


def test_zero_1_2_and_3_train_as_one_process():
    alone = train("auto")
    assert alone[-1] < alone[0]
    for losses in run_distributed(train_under_zero, 2, (1, 2, 3), timeout=300):
        for each in losses:
            assert each == pytest.approx(alone, rel=1e-5)
