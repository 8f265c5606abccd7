"""Compiled blocks compute what the plain ones do, under every name as before."""

import pytest
import torch
from lightning import Callback, Trainer
from lightning.pytorch import seed_everything
from torch import nn

from divot_datamodules.decoding.clip_sampling import ClipConfig
from divot_datamodules.video_text import VideoTextData
from divot_lightning.deepspeed_zero.strategy import DivotDeepSpeedStrategy
from divot_lightning.errors import UserError
from divot_lightning.testing.toy_shards import make_toy_shards
from divot_lightning.training.block_compilation import CompileBlocks, repeated_blocks
from tests.divot_lightning.training.tiny_stages import Settings, make_stage

TASKS = {"tokenizer": None, "captioning": {"caption": 1.0}, "pretraining": {"caption": 2.0, "generate": 1.0}}
QUIET = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}


class Losses(Callback):
    """Notes the loss of each step."""

    def __init__(self):
        self.seen = []

    def on_train_batch_end(self, trainer, stage, outputs, batch, index):
        self.seen.append(float(outputs["loss"]))


@pytest.fixture
def settings(tmp_path, tokenizer_config, pretraining_run, detokenizer_config, make_config):
    make_toy_shards(tmp_path / "toy", train=6, validation=2, size=16)
    language = {"model_type": "llama", "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    changes = {"language_model_config": language, "text_tokenizer": str(tmp_path / "toy" / "text_tokenizer")}
    return Settings(tmp_path, tokenizer_config, detokenizer_config, make_config(**changes))


def train(name, settings, callbacks):
    """Return the losses of three steps, and the trained stage."""
    seed_everything(5, verbose=False)
    clip = ClipConfig(height=8, width=8)
    data = VideoTextData(str(settings.folder / "toy" / "train"), batch_size=2, clip=clip, tasks=TASKS[name])
    stage, losses = make_stage(name, settings), Losses()
    trainer = Trainer(accelerator="cpu", max_steps=3, max_epochs=-1, callbacks=[losses, *callbacks], **QUIET)
    trainer.fit(stage, data)
    return losses.seen, stage


@pytest.mark.parametrize("name", list(TASKS))
def test_losses_and_names_are_those_of_the_plain_blocks(name, settings):
    plain, plain_stage = train(name, settings, [])
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    compiled, stage = train(name, settings, [CompileBlocks(backend="eager")])
    assert torch._dynamo.utils.counters["frames"]["ok"] > 0
    assert compiled == pytest.approx(plain, rel=1e-5)
    assert list(stage.state_dict()) == list(plain_stage.state_dict())


def test_every_layer_of_every_network_is_a_block(settings):
    stage = make_stage("pretraining", settings)
    stage.configure_model()
    classes = {type(block).__name__ for block in repeated_blocks(stage)}
    assert "LlamaDecoderLayer" in classes
    inside = [other for block in repeated_blocks(stage) for other in block.modules() if other is not block]
    assert not {id(block) for block in repeated_blocks(stage)} & {id(other) for other in inside}


def test_diffusers_models_name_their_blocks_themselves():
    model = nn.Module()
    model._repeated_blocks = ["Linear"]
    model.levels = nn.ModuleList([nn.ModuleDict({"layer": nn.Linear(2, 2)}), nn.ModuleDict({"layer": nn.Linear(2, 3)})])
    assert [type(block) for block in repeated_blocks(model)] == [nn.Linear, nn.Linear]


def test_zero_3_and_a_stage_without_blocks_are_refused():
    trainer = Trainer(accelerator="cpu", strategy=DivotDeepSpeedStrategy(stage=3), **QUIET)
    with pytest.raises(UserError, match="divot_zero3"):
        CompileBlocks().on_fit_start(trainer, nn.Linear(2, 2))
    with pytest.raises(UserError, match="no blocks"):
        CompileBlocks().on_fit_start(Trainer(accelerator="cpu", **QUIET), nn.Linear(2, 2))
