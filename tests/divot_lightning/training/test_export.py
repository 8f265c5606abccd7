import json
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from lightning import LightningModule, Trainer
from lightning.pytorch import Callback
from lightning.pytorch.trainer.states import TrainerStatus
from torch import nn
from torch.utils.data import DataLoader

from divot_lightning.checkpoint.components import load_component, save_component
from divot_lightning.checkpoint.run_components import find_component, read_record
from divot_lightning.checkpoint.weight_average import WeightAverage
from divot_lightning.training.export import ComponentExport


@dataclass
class PartConfig:
    width: int = 2


class Part(nn.Module):
    def __init__(self, config: PartConfig) -> None:
        super().__init__()
        self.config = config
        self.layer = nn.Linear(config.width, 1)


@pytest.fixture(autouse=True)
def trust_the_parts_of_this_file(monkeypatch):
    monkeypatch.setenv("DIVOT_TRUSTED_PACKAGES", "tests")


class Plain(LightningModule):
    """Trains a part and hands nothing on."""

    def __init__(self):
        super().__init__()
        self.part = Part(PartConfig())

    def training_step(self, batch, batch_idx):
        return self.part.layer(batch).square().mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Stage(Plain):
    def __init__(self, used: dict[str, Path] | None = None):
        super().__init__()
        self.used = used or {}

    def exported_components(self):
        return {"part": self.part}

    def used_components(self):
        return self.used


class Break(Callback):
    def __init__(self, error, at=2):
        self.error, self.at = error, at

    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step == self.at:
            raise self.error


def fit(stage, run, *callbacks, steps=3):
    data = [torch.randn(4, 2) for _ in range(steps)]
    options = {"logger": False, "enable_progress_bar": False, "enable_checkpointing": False}
    trainer = Trainer(
        max_steps=steps,
        accelerator="cpu",
        enable_model_summary=False,
        callbacks=[ComponentExport(run), *callbacks],
        **options,
    )
    trainer.fit(stage, DataLoader(data, batch_size=None))


def test_a_finished_run_holds_the_trained_weights_and_says_so(tmp_path):
    stage = Stage()
    fit(stage, tmp_path / "runs" / "a")
    loaded = load_component(find_component(tmp_path / "runs" / "a", "part"), Part)
    assert torch.equal(loaded.layer.weight, stage.part.layer.weight)
    finished = json.loads((tmp_path / "runs" / "a" / "finished.json").read_text())
    assert (finished["stage"], finished["steps"]) == ("Stage", 3)
    assert finished["versions"]["torch"] == torch.__version__
    assert 0 <= finished["seconds_since_start_or_resume"] < 60
    assert finished["steps_since_start_or_resume"] == 3


class Watch(Callback):
    """Averages the weights of a stage by hand."""

    def on_train_start(self, trainer, stage):
        self.average = stage.part.layer.weight.detach().clone()

    def on_train_batch_end(self, trainer, stage, *_):
        decay = min(0.5, (1 + trainer.global_step) / (10 + trainer.global_step))
        self.average = decay * self.average + (1 - decay) * stage.part.layer.weight.detach()


@pytest.mark.parametrize("use", [True, False])
def test_averaged_weights_are_exported_if_they_are_used_and_finished_json_says_so(tmp_path, use):
    stage, watch = Stage(), Watch()
    fit(stage, tmp_path, WeightAverage(decay=0.5, use=use), watch, steps=8)
    loaded = load_component(tmp_path / "part", Part)
    trained = stage.part.layer.weight.detach()
    assert not torch.allclose(watch.average, trained)
    torch.testing.assert_close(loaded.layer.weight.detach(), watch.average if use else trained)
    finished = json.loads((tmp_path / "finished.json").read_text())
    assert finished["weights"] == ("averaged" if use else "trained")


def test_what_it_used_is_recorded(tmp_path):
    save_component(Part(PartConfig()), tmp_path / "first" / "other")
    fit(Stage({"other": tmp_path / "first" / "other"}), tmp_path / "second")
    assert find_component(tmp_path / "second", "other") == tmp_path / "first" / "other"
    assert read_record(tmp_path / "second")["other"]["folder"] == "../first/other"


@pytest.mark.parametrize("error", [RuntimeError("loss is nan"), KeyboardInterrupt()])
def test_a_run_that_breaks_off_leaves_no_mark_and_no_component(tmp_path, error):
    with pytest.raises((RuntimeError, KeyboardInterrupt, SystemExit)):
        fit(Stage(), tmp_path / "run", Break(error))
    assert not (tmp_path / "run" / "finished.json").exists()
    assert not (tmp_path / "run" / "part").exists()


def test_the_mark_is_written_last(tmp_path):
    with pytest.raises(FileNotFoundError):
        fit(Stage({"other": tmp_path / "is_gone"}), tmp_path / "run")
    assert not (tmp_path / "run" / "finished.json").exists()


def test_training_on_replaces_the_component(tmp_path):
    stage = Stage()
    fit(stage, tmp_path)
    first = stage.part.layer.weight.detach().clone()
    fit(stage, tmp_path, steps=1)
    loaded = load_component(tmp_path / "part", Part)
    assert not torch.equal(loaded.layer.weight, first)
    assert torch.equal(loaded.layer.weight, stage.part.layer.weight)
    assert json.loads((tmp_path / "finished.json").read_text())["steps"] == 1


def test_a_module_that_hands_nothing_on_is_left_alone(tmp_path):
    fit(Plain(), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_run_that_was_interrupted_is_not_finished(tmp_path):
    trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    trainer.state.status = TrainerStatus.INTERRUPTED
    ComponentExport(tmp_path / "run").on_fit_end(trainer, Stage())
    assert not (tmp_path / "run").exists()
