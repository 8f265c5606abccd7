"""A tokenizer learns from captions alone, and only the tokenizer is exported."""

from dataclasses import replace

import pytest
import torch
from lightning import Trainer
from torch.utils.data import DataLoader

from divot_lightning.checkpoint.module_tensors import sort_tensors
from divot_lightning.errors import UserError
from divot_lightning.models.tokenizer.bottleneck import BottleneckConfig
from divot_lightning.models.video_llm.model import VideoLLM
from divot_lightning.parts.segments import Clips, Text
from divot_lightning.training.stages.captioning_pretraining import CaptioningPretraining, NoHead
from divot_optimizers.adamw import AdamWOptimizer

CAPTIONS = ("a red circle moves left", "blue square right")


@pytest.fixture
def batches(clips, stage):
    """Clips with captions to write."""
    segments = [[Clips(1, "read"), Text(caption, learn=True)] for caption in CAPTIONS]
    sequences = stage.sequence_collator().lay_out(segments)
    return [batch | {"segments": segments, "sequences": sequences} for batch in clips]


@pytest.fixture
def stage(tokenizer_config, make_config):
    """A tiny stage."""
    return CaptioningPretraining(tokenizer_config, make_config(), AdamWOptimizer(lr=1e-2, warmup_steps=1))


def test_the_caption_loss_falls_and_reaches_the_whole_tokenizer(stage, batches, tmp_path):
    stage.configure_model()
    before = {name: value.clone() for name, value in stage.tokenizer.state_dict().items()}
    first = stage._losses(batches[0])["text_loss"].mean.item()
    trainer = Trainer(
        accelerator="cpu", max_steps=30, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, default_root_dir=tmp_path,
    )  # fmt: skip
    trainer.fit(stage, DataLoader(batches[:1] * 30, batch_size=None))
    assert stage._losses(batches[0])["text_loss"].mean.item() < 0.7 * first
    trained = dict(stage.tokenizer.named_parameters())
    unmoved = [name for name, value in before.items() if name in trained and torch.equal(value, trained[name])]
    assert not unmoved


def test_only_the_tokenizer_is_exported(stage):
    stage.configure_model()
    assert list(stage.exported_components()) == ["tokenizer"]
    assert stage.used_components() == {}


def test_tokens_that_the_language_model_does_not_take_are_refused(tokenizer_config, make_config):
    with pytest.raises(UserError, match=r"llm.num_queries is 5 .* gives 3 tokens of width 8"):
        CaptioningPretraining(tokenizer_config, replace(make_config(), num_queries=5), AdamWOptimizer()).build()


def test_cached_features_are_refused(stage, batches):
    stage.configure_model()
    batch = {name: value for name, value in batches[0].items() if name != "video"}
    with pytest.raises(UserError, match="on pixels"):
        stage.training_step(batch, 0)


def test_a_frozen_language_model_from_a_folder_is_in_no_checkpoint(tokenizer_config, make_config, tmp_path):
    config = make_config()
    untrained = VideoLLM(config, NoHead)
    untrained.causal_lm.save_pretrained(tmp_path / "llm")
    untrained.text_tokenizer.save_pretrained(tmp_path / "llm")
    pretrained = replace(config, language_model=str(tmp_path / "llm"), language_model_config=None, text_tokenizer=None)
    for frozen in (True, False):
        llm = replace(pretrained, freeze_language_model=frozen)
        stage = CaptioningPretraining(tokenizer_config, llm, AdamWOptimizer())
        stage.configure_model()
        names = [name for name in sort_tensors(stage).weights if name.startswith("video_llm.language_model")]
        assert bool(names) is not frozen


def test_the_bottleneck_acts_in_training_alone_and_its_kl_loss_is_counted(tokenizer_config, make_config, batches):
    torch.manual_seed(0)
    config = replace(tokenizer_config, bottleneck=BottleneckConfig(kl_weight=0.5, noise=2.0))
    stage = CaptioningPretraining(config, make_config(), AdamWOptimizer())
    stage.configure_model()
    training, validation = stage._losses(batches[0], perturbed=True), stage._losses(batches[0])
    assert {name: part.count for name, part in training.items()} == stage.loss_counts(batches[0])
    assert training["kl_loss"].weight == 0.5
    assert set(validation) == {"text_loss"}
    assert torch.equal(validation["text_loss"].mean, stage._losses(batches[0])["text_loss"].mean)
    assert not torch.equal(validation["text_loss"].mean, training["text_loss"].mean)
