from dataclasses import replace

import pytest
import torch
from lightning import Trainer
from torch.utils.data import DataLoader

from divot_lightning.checkpoint.components import load_component, save_component
from divot_lightning.checkpoint.run_components import find_component
from divot_lightning.errors import UserError
from divot_lightning.models.detokenizer.video_detokenizer import VideoDetokenizer
from divot_lightning.models.tokenizer.bottleneck import BottleneckConfig
from divot_lightning.models.tokenizer.video_tokenizer import VideoTokenizer
from divot_lightning.training.export import ComponentExport
from divot_lightning.training.stages.detokenizer_refinement import DetokenizerRefinement
from divot_optimizers.adamw import AdamWOptimizer
from divot_optimizers.muon import MuonOptimizer

OPTIMIZER = AdamWOptimizer(lr=3e-3, warmup_steps=1)


def built(stage):
    stage.configure_model()
    return stage


def trainer(steps, **settings):
    options = {"max_steps": steps, "accelerator": "cpu", "logger": False, "enable_progress_bar": False}
    options |= {"enable_model_summary": False, "enable_checkpointing": False}
    return Trainer(**{**options, **settings})


@pytest.fixture
def stage(pretraining_run):
    return built(DetokenizerRefinement(str(pretraining_run), OPTIMIZER))


def same(module, folder, kind):
    stored = load_component(folder, kind).state_dict()
    return {name: torch.equal(value, stored[name]) for name, value in module.state_dict().items()}


def test_it_starts_from_the_weights_of_the_run_before(stage, pretraining_run):
    assert all(same(stage.detokenizer, pretraining_run / "detokenizer", VideoDetokenizer).values())
    assert all(same(stage.tokenizer, pretraining_run / "tokenizer", VideoTokenizer).values())


@pytest.mark.parametrize("kind", [AdamWOptimizer, MuonOptimizer])
def test_the_detokenizer_learns_and_the_tokenizer_stays_to_the_bit(pretraining_run, clips, kind):
    settings = kind(lr=3e-3, warmup_steps=1)
    stage = built(DetokenizerRefinement(str(pretraining_run), settings))
    trainer(2).fit(stage, DataLoader(clips, batch_size=None))
    assert all(same(stage.tokenizer, pretraining_run / "tokenizer", VideoTokenizer).values())
    assert all(value.grad is None for value in stage.tokenizer.parameters())
    assert not any(same(stage.detokenizer, pretraining_run / "detokenizer", VideoDetokenizer).values())


def test_the_tokenizer_is_in_evaluation_mode_while_the_detokenizer_trains(stage, clips):
    modes = []
    stage.detokenizer.denoiser.register_forward_pre_hook(
        lambda *_: modes.append((stage.detokenizer.training, *{part.training for part in stage.tokenizer.modules()}))
    )
    trainer(1).fit(stage, DataLoader(clips, batch_size=None))
    stage.train()
    assert modes == [(True, False)]
    assert not any(part.training for part in stage.tokenizer.modules())
    stage.eval()
    assert not stage.detokenizer.training


def test_the_condition_is_dropped_for_the_tokens_of_a_grey_clip(pretraining_run, clips):
    stage = built(DetokenizerRefinement(str(pretraining_run), OPTIMIZER, condition_dropout=1.0))
    seen = []
    stage.detokenizer.denoiser.register_forward_pre_hook(lambda module, args: seen.append(args[2]))
    trainer(1).fit(stage, DataLoader(clips, batch_size=None))
    grey = torch.zeros(1, 16, 3, 8, 8)
    with torch.no_grad():
        expected = stage.tokenizer(grey)
    torch.testing.assert_close(seen[0], expected.expand_as(seen[0]))


def test_without_dropout_every_clip_keeps_its_tokens(pretraining_run, clips):
    stage = built(DetokenizerRefinement(str(pretraining_run), OPTIMIZER, condition_dropout=0.0))
    seen = []
    stage.detokenizer.denoiser.register_forward_pre_hook(lambda module, args: seen.append(args[2]))
    trainer(1).fit(stage, DataLoader(clips, batch_size=None))
    with torch.no_grad():
        expected = stage.tokenizer(clips[0]["video"] / 127.5 - 1)
    torch.testing.assert_close(seen[0], expected)


def test_the_papers_dropout_is_the_default_and_validation_has_none(stage, clips, monkeypatch):
    seen, loss = [], VideoDetokenizer.loss

    def watched(self, video, tokens, **settings):
        seen.append((self.training, settings.get("condition_dropout", 0.0)))
        return loss(self, video, tokens, **settings)

    monkeypatch.setattr(VideoDetokenizer, "loss", watched)
    trainer(1, num_sanity_val_steps=0).fit(stage, *[DataLoader(clips[:1], batch_size=None)] * 2)
    assert seen == [(True, 0.05), (False, 0.0), (False, 0.0)]


def test_null_tokens_are_those_of_an_all_zero_clip(stage):
    given = torch.randn(3, 16, 3, 8, 8)
    null = stage.tokenizer.null_tokens(8, 8)
    assert null.shape == (3, 8)
    torch.testing.assert_close(null, stage.tokenizer(torch.zeros_like(given))[1])


def test_null_tokens_are_encoded_once_per_run_with_the_same_bits(stage, clips, monkeypatch):
    encoded, given, loss = [], [], VideoDetokenizer.loss
    stage.tokenizer.register_forward_pre_hook(lambda _, args: encoded.append(bool(args[0].any())))

    def watched(self, video, tokens, **settings):
        given.append(settings.get("null_tokens_QC"))
        return loss(self, video, tokens, **settings)

    monkeypatch.setattr(VideoDetokenizer, "loss", watched)
    trainer(len(clips)).fit(stage, DataLoader(clips, batch_size=None))
    assert encoded.count(False) == 1
    assert encoded.count(True) == len(given) == len(clips) > 1
    assert all(torch.equal(null, stage.tokenizer.null_tokens(8, 8)) for null in given)


def test_the_run_exports_its_detokenizer_and_records_the_tokenizer(stage, pretraining_run, clips, tmp_path):
    run = tmp_path / "refined"
    trainer(1, callbacks=[ComponentExport(run)]).fit(stage, DataLoader(clips, batch_size=None))
    assert find_component(run, "tokenizer") == pretraining_run / "tokenizer"
    assert find_component(run, "detokenizer") == run / "detokenizer"
    assert all(same(stage.detokenizer, run / "detokenizer", VideoDetokenizer).values())
    assert set(stage.exported_components()) == {"detokenizer"}


def test_a_refined_run_can_be_refined_again(stage, pretraining_run, clips, tmp_path):
    run = tmp_path / "refined"
    trainer(1, callbacks=[ComponentExport(run)]).fit(stage, DataLoader(clips, batch_size=None))
    again = built(DetokenizerRefinement(str(run), OPTIMIZER))
    assert all(same(again.detokenizer, run / "detokenizer", VideoDetokenizer).values())
    assert again.used_components() == {"tokenizer": pretraining_run / "tokenizer"}


def test_parts_that_do_not_fit_are_refused(pretraining_run, detokenizer_config):
    detokenizer_config.num_tokens = 5
    save_component(VideoDetokenizer(detokenizer_config), pretraining_run / "detokenizer")
    with pytest.raises(UserError, match=r"detokenizer\.num_tokens is 5, and the tokenizer gives 3 tokens of width 8"):
        DetokenizerRefinement(str(pretraining_run), OPTIMIZER)


def test_a_run_without_a_detokenizer_is_refused(tokenizer_run):
    with pytest.raises(UserError, match="has no detokenizer; it has: tokenizer"):
        DetokenizerRefinement(str(tokenizer_run), OPTIMIZER)


def test_refinement_continues_with_few_tokens_and_validates_with_all(
    tmp_path, tokenizer_config, detokenizer_config, clips
):
    torch.manual_seed(0)
    tokenizer = replace(tokenizer_config, bottleneck=BottleneckConfig(nested_dropout="uniform"))
    save_component(VideoTokenizer(tokenizer), tmp_path / "elastic/tokenizer")
    save_component(VideoDetokenizer(detokenizer_config), tmp_path / "elastic/detokenizer")
    stage = built(DetokenizerRefinement(str(tmp_path / "elastic"), OPTIMIZER, condition_dropout=0.0))
    kept = {True: [], False: []}
    stage.detokenizer.denoiser.register_forward_pre_hook(
        lambda module, args: kept[module.training].append((args[2] != 0).all(dim=-1).sum(dim=1).tolist())
    )
    loaders = DataLoader(clips, batch_size=None), DataLoader(clips[:1], batch_size=None)
    trainer(3, max_epochs=1).fit(stage, *loaders)
    assert min(map(min, kept[True])) < 3
    assert {tuple(counts) for counts in kept[False]} == {(3, 3)}
