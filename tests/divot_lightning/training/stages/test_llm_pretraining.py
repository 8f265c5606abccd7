import pytest
import torch
from lightning import Trainer
from lightning.pytorch import Callback
from torch.utils.data import DataLoader

from divot_lightning.checkpoint.components import load_component
from divot_lightning.checkpoint.run_components import find_component
from divot_lightning.errors import UserError
from divot_lightning.models.tokenizer.video_tokenizer import VideoTokenizer
from divot_lightning.models.video_llm.model import VideoLLM
from divot_lightning.training.export import ComponentExport
from divot_lightning.training.stages.llm_pretraining import LLMPretraining
from divot_optimizers.adamw import AdamWOptimizer

OPTIMIZER = AdamWOptimizer(lr=3e-3, warmup_steps=1)


def built(stage):
    stage.configure_model()
    return stage


def trainer(folder, steps, **settings):
    options = {"max_steps": steps, "accelerator": "cpu", "logger": False, "enable_progress_bar": False}
    options |= {"enable_model_summary": False, "enable_checkpointing": False, "default_root_dir": folder}
    return Trainer(**{**options, **settings})


def encoded(stage, batches):
    video = torch.cat([batch["video"] for batch in batches if "video" in batch])
    return stage.tokenizer(video.float() / 127.5 - 1)


def test_training_lowers_the_loss_and_writes_a_component(tokenizer_run, make_config, batches, loader, head, tmp_path):
    stage = built(LLMPretraining(head, str(tokenizer_run), make_config(), OPTIMIZER))
    run = trainer(tmp_path, 40, callbacks=[ComponentExport(tmp_path / "run")])
    run.fit(stage, loader)
    metrics = run.callback_metrics
    assert {"train/loss", "train/text_loss", "train/head_loss"} <= set(metrics)
    assert metrics["train/head_loss"] < 0.9
    loaded = load_component(find_component(tmp_path / "run", "video_llm"), VideoLLM)
    features = encoded(stage, batches[:1])
    first, second = stage.video_llm(batches[0]["sequences"], features), loaded(batches[0]["sequences"], features)
    torch.testing.assert_close(first.text_loss, second.text_loss)
    torch.testing.assert_close(first.head_loss, second.head_loss)
    assert find_component(tmp_path / "run", "tokenizer") == tokenizer_run / "tokenizer"


def test_features_are_normalised_by_the_statistics_of_the_first_batches(
    tokenizer_run, make_config, batches, loader, head, tmp_path
):
    stage = built(LLMPretraining(head, str(tokenizer_run), make_config(), OPTIMIZER, statistics_batches=2))
    trainer(tmp_path, 1).fit(stage, loader)
    features = encoded(stage, batches[:2]).flatten(0, 1)
    torch.testing.assert_close(stage.video_llm.feature_mean_C, features.mean(dim=0), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(stage.video_llm.feature_std_C, features.std(dim=0, correction=0), atol=1e-5, rtol=1e-4)


def test_without_statistics_features_stay_as_they_are(tokenizer_run, make_config, loader, head, tmp_path):
    stage = built(LLMPretraining(head, str(tokenizer_run), make_config(), OPTIMIZER, statistics_batches=0))
    trainer(tmp_path, 1).fit(stage, loader)
    assert stage.video_llm.feature_mean_C.eq(0).all()
    assert stage.video_llm.feature_std_C.eq(1).all()


def test_a_resumed_run_keeps_its_statistics_and_continues_as_if_never_stopped(
    tokenizer_run, make_config, batches, head, tmp_path, monkeypatch
):
    loader = DataLoader(batches[:1] * 4, batch_size=None)  # equal batches: their order is the data module's matter

    def stage():
        torch.manual_seed(3)
        return built(LLMPretraining(head, str(tokenizer_run), make_config(), OPTIMIZER, statistics_batches=2))

    class SaveAfterFirstEpoch(Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            if trainer.current_epoch == 0:
                trainer.save_checkpoint(tmp_path / "first.ckpt")

    whole, resumed = stage(), stage()
    trainer(tmp_path, 8, max_epochs=-1, callbacks=[SaveAfterFirstEpoch()]).fit(whole, loader)
    with monkeypatch.context() as patch:
        patch.setattr(
            "divot_lightning.training.stages.llm_pretraining.feature_statistics", lambda *_: pytest.fail("again")
        )
        trainer(tmp_path, 8, max_epochs=-1).fit(resumed, loader, ckpt_path=tmp_path / "first.ckpt")
    for name, value in whole.state_dict().items():
        torch.testing.assert_close(resumed.state_dict()[name], value, msg=name)


def test_cached_features_train_as_the_videos_do(tokenizer_run, make_config, batches, head):
    stage = built(LLMPretraining(head, str(tokenizer_run), make_config(), OPTIMIZER))
    stage.log = lambda *args, **kwargs: None
    cached = {name: batches[0][name] for name in ("segments", "sequences")} | {"features": encoded(stage, batches[:1])}
    torch.testing.assert_close(stage.training_step(cached, 0), stage.training_step(batches[0], 0))


def test_the_loss_weights_weigh(tokenizer_run, make_config, batches, head):
    stage = built(LLMPretraining(head, str(tokenizer_run), make_config(), OPTIMIZER, 2.0, 0.5))
    stage.log = lambda *args, **kwargs: None
    parts = stage.video_llm(batches[0]["sequences"], encoded(stage, batches[:1]))
    expected = 2.0 * parts.text_loss + 0.5 * parts.head_loss
    torch.testing.assert_close(stage.training_step(batches[0], 0), expected)


def test_the_tokenizer_stays_frozen(tokenizer_run, make_config, loader, head, tmp_path):
    stage = built(LLMPretraining(head, str(tokenizer_run), make_config(), OPTIMIZER))
    trainer(tmp_path, 2).fit(stage, loader)
    stored = load_component(tokenizer_run / "tokenizer", VideoTokenizer).state_dict()
    for name, value in stage.tokenizer.state_dict().items():
        assert torch.equal(value, stored[name])
    assert not stage.tokenizer.training


def test_validation_losses_are_means_over_targets_and_clips(
    tokenizer_run, make_config, batches, loader, head, tmp_path
):
    stage = built(LLMPretraining(head, str(tokenizer_run), make_config(), OPTIMIZER))
    run = trainer(tmp_path, 1)
    run.validate(stage, loader, verbose=False)
    assert set(run.callback_metrics) == {"validation/loss", "validation/text_loss", "validation/head_loss"}
    outputs = [
        stage.video_llm(batch["sequences"], encoded(stage, [batch]) if "video" in batch else None) for batch in batches
    ]
    targets = torch.tensor([float(output.num_text_targets) for output in outputs])
    losses = torch.stack([output.text_loss for output in outputs])
    torch.testing.assert_close(run.callback_metrics["validation/text_loss"], (losses * targets).sum() / targets.sum())
    heads = torch.stack([output.head_loss for output in outputs[:3]])
    torch.testing.assert_close(run.callback_metrics["validation/head_loss"], heads.mean())


def test_a_text_batch_does_not_log_a_head_loss(tokenizer_run, make_config, batches, head, tmp_path):
    stage = built(LLMPretraining(head, str(tokenizer_run), make_config(), OPTIMIZER, statistics_batches=0))
    run = trainer(tmp_path, 1)
    run.fit(stage, DataLoader(batches[-1:], batch_size=None))
    assert "train/head_loss" not in run.callback_metrics
    assert "train/text_loss" in run.callback_metrics


def test_a_tokenizer_of_another_size_is_refused(tokenizer_run, make_config, head):
    with pytest.raises(UserError, match=r"num_queries is 4 and .*feature_dim is 8, but .*3 tokens of width 8"):
        LLMPretraining(head, str(tokenizer_run), make_config(num_queries=4), OPTIMIZER)


def test_a_missing_previous_run_is_named(make_config, head):
    with pytest.raises(UserError, match="no_such_run"):
        LLMPretraining(head, "no_such_run", make_config(), OPTIMIZER)


def test_batches_without_clips_give_no_statistics(tokenizer_run, make_config, batches, head, tmp_path):
    stage = built(LLMPretraining(head, str(tokenizer_run), make_config(), OPTIMIZER))
    with pytest.raises(UserError, match="hold 0 features"):
        trainer(tmp_path, 1).fit(stage, DataLoader(batches[-1:], batch_size=None))
