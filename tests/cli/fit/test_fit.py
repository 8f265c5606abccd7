"""`divot fit`: what a run folder holds afterwards, what wins, what is shown."""

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from divot_lightning.checkpoint.folders import newest_checkpoint
from divot_lightning.training.recipe_files import find_recipe, recipe_names, recipes_dir
from divot_lightning.training.reporting.run_logging import CsvMetrics
from tests.helpers.faults import limited_file_size
from tests.helpers.jobs import Job

Divot = Callable[..., int]
Settings = dict[str, Any]
RUN = Path("runs/tiny")


def _rows(run: Path = RUN) -> list[dict[str, str]]:
    with (run / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_run_folder_holds_config_metrics_checkpoints_and_components(divot: Divot, tiny: Settings) -> None:
    assert divot("fit", tiny) == 0
    assert yaml.safe_load((RUN / "config.yaml").read_text())["model"]["init_args"]["optimizer"]["lr"] == 0.01
    assert [row["step"] for row in _rows()] == ["1", "3", "5"]
    assert all(float(row["train/loss"]) >= 0 for row in _rows())
    assert list((RUN / "tensorboard").glob("events*"))
    assert (RUN / "layer" / "model.safetensors").is_file()
    assert (RUN / "finished.json").is_file()


def test_a_logger_of_the_recipe_gets_the_settings_and_the_same_rows_as_metrics_csv(
    divot: Divot, tiny: Settings
) -> None:
    tiny["trainer"]["logger"] = {
        "class_path": "lightning.pytorch.loggers.CSVLogger",
        "init_args": {"save_dir": "elsewhere", "name": "", "version": ""},
    }
    assert divot("fit", tiny) == 0
    given, stored = (yaml.safe_load(path.read_text()) for path in (Path("elsewhere/hparams.yaml"), RUN / "config.yaml"))
    assert given == stored
    theirs = _rows(Path("elsewhere"))
    assert [(row["step"], float(row["train/loss"])) for row in theirs] == [
        (row["step"], pytest.approx(float(row["train/loss"]), rel=1e-6)) for row in _rows()
    ]
    assert list((RUN / "tensorboard").glob("events*"))


def test_a_run_of_no_steps_exports_untrained_components(divot: Divot, tiny: Settings) -> None:
    assert divot("fit", tiny, "--trainer.max_steps", "0") == 0
    assert (RUN / "layer/model.safetensors").is_file()
    assert (RUN / "config.yaml").is_file()
    assert divot("resume", str(RUN)) == 0


def test_samples_that_an_earlier_attempt_skipped_are_forgotten(divot: Divot, tiny: Settings) -> None:
    """A wrong `data.train` is put right, and the same folder is used again."""
    listed = RUN / "skipped" / "skipped-train-0.jsonl"
    listed.parent.mkdir(parents=True)
    listed.write_text('{"split": "train", "reason": "missing_media"}')
    assert divot("fit", tiny) == 0
    assert not listed.exists()


def test_only_the_newest_checkpoint_is_kept(divot: Divot, tiny: Settings) -> None:
    assert divot("fit", tiny) == 0
    assert [path.name for path in (RUN / "checkpoints").glob("step_*")] == ["step_00000006"]
    assert newest_checkpoint(RUN) == RUN / "checkpoints/step_00000006"


def test_keep_all_keeps_every_checkpoint(divot: Divot, tiny: Settings) -> None:
    assert divot("fit", tiny, "--checkpoint.keep_all", "true", "--checkpoint.every_steps", "2") == 0
    names = sorted(path.name for path in (RUN / "checkpoints").glob("step_*"))
    assert names == ["step_00000002", "step_00000004", "step_00000006"]


def test_command_line_wins_over_recipe_and_later_recipe_over_earlier(divot: Divot, tiny: Settings) -> None:
    later = {"trainer": {"max_steps": 2}, "model": {"init_args": {"width": 4, "optimizer": {"lr": 0.5}}}}
    assert divot("fit", tiny, later, "--model.optimizer.lr", "0.25") == 0
    saved = yaml.safe_load((RUN / "config.yaml").read_text())
    assert saved["model"]["init_args"]["optimizer"] == {"lr": 0.25, "betas": [0.9, 0.99]}
    assert saved["trainer"]["max_steps"] == 2


@pytest.mark.parametrize("name", ["gmm", "GMMHead", "divot_heads.gmm.GMMHead"])
def test_a_head_goes_by_short_name_class_name_and_path(divot: Divot, tiny: Settings, name: str) -> None:
    assert divot("fit", tiny, "--model.head", name, "--model.head.num_components", "3") == 0
    head = yaml.safe_load((RUN / "config.yaml").read_text())["model"]["init_args"]["head"]
    assert head["class_path"] == "divot_heads.gmm.GMMHead"
    assert head["init_args"]["num_components"] == 3


def test_a_recipe_may_name_a_head_by_its_short_name(divot: Divot, tiny: Settings) -> None:
    tiny["model"]["init_args"]["head"] = "mse"
    assert divot("fit", tiny) == 0


def test_print_config_shows_the_resolved_settings_and_trains_nothing(
    divot: Divot, tiny: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        divot("fit", tiny, "--trainer.max_steps", "99", "--print_config")
    assert stop.value.code == 0
    assert yaml.safe_load(capsys.readouterr().out)["trainer"]["max_steps"] == 99
    assert not RUN.exists()


def test_the_bar_counts_to_max_steps_on_an_endless_stream(
    divot: Divot, tiny: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    assert divot("fit", tiny) == 0
    shown = capsys.readouterr().err
    assert "6/6" in shown
    assert "step/s" in shown


def test_the_bar_can_be_switched_off(divot: Divot, tiny: Settings, capsys: pytest.CaptureFixture[str]) -> None:
    assert divot("fit", tiny, "--trainer.enable_progress_bar", "false") == 0
    assert "6/6" not in capsys.readouterr().err


def test_help_is_short_and_lists_the_recipes(divot: Divot, capsys: pytest.CaptureFixture[str]) -> None:
    assert divot("fit", "--help") == 0
    shown = capsys.readouterr().out
    assert len(shown.splitlines()) < 40
    assert "toy/tokenizer_pretraining" in shown


def test_same_seed_same_losses(divot: Divot, tiny: Settings) -> None:
    assert divot("fit", tiny, "--run", "a") == 0
    assert divot("fit", tiny, "--run", "b") == 0
    assert divot("fit", tiny, "--run", "c", "--seed_everything", "7") == 0
    losses = [[row["train/loss"] for row in _rows(Path(run))] for run in "abc"]
    assert losses[0] == losses[1] != losses[2]


def test_validate_and_test_measure_the_newest_checkpoint_and_write_nothing(
    divot: Divot, tiny: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    assert divot("fit", tiny) == 0
    before = sorted(RUN.rglob("*"))
    assert divot("validate", str(RUN)) == 0
    assert "validation/loss" in capsys.readouterr().out
    assert divot("test", str(RUN)) == 0
    assert "test/loss" in capsys.readouterr().out
    assert sorted(RUN.rglob("*")) == before


def test_measuring_without_data_is_refused(divot: Divot, tiny: Settings, capsys: pytest.CaptureFixture[str]) -> None:
    tiny["data"]["class_path"] = "tiny_stage.TrainingDataOnly"
    assert divot("fit", tiny) == 0
    for command, data in (("validate", "validation"), ("test", "test")):
        assert divot(command, str(RUN)) == 2
        told = capsys.readouterr().err
        assert f"has no {data} data, so nothing was measured\ngive some: --data.{data} DATA" in told


def test_validation_losses_stand_in_the_metrics(divot: Divot, tiny: Settings) -> None:
    assert divot("fit", tiny, "--trainer.val_check_interval", "3") == 0
    assert [row["step"] for row in _rows() if row["validation/loss"]] == ["2", "5"]


def test_two_processes_write_one_run_folder(divot: Divot, tiny: Settings, tmp_path: Path) -> None:
    (tmp_path / "two.yaml").write_text(yaml.safe_dump(tiny))
    words = ("fit", "--config", "two.yaml", "--trainer.devices", "2")
    environment = {"PYTHONPATH": str(Path(__file__).parents[1])}
    with Job.divot(*words, cwd=tmp_path, environment=environment, forked="first") as job:
        assert job.wait(300) == 0, job.output
    assert [row["step"] for row in _rows()] == ["1", "3", "5"]
    assert (RUN / "finished.json").is_file()


def test_metrics_written_before_a_step_survive_it_and_later_ones_do_not(tmp_path: Path) -> None:
    first = CsvMetrics(tmp_path)
    first.log_metrics({"epoch": 0, "loss": 1.0}, 1)
    first.log_metrics({"epoch": 0, "loss": 0.5, "accuracy": 0.25}, 5)
    again = CsvMetrics(tmp_path)
    again.resume(4, None)
    again.log_metrics({"epoch": 0, "loss": 0.75}, 4)
    assert _rows(tmp_path) == [
        {"step": "1", "epoch": "0", "loss": "1", "accuracy": ""},
        {"step": "4", "epoch": "0", "loss": "0.75", "accuracy": ""},
    ]


def test_shipped_recipes_are_found_with_and_without_folder_and_suffix() -> None:
    expected = recipes_dir() / "toy/llm_pretraining.yaml"
    assert "toy/llm_pretraining" in recipe_names()
    for name in ("toy/llm_pretraining", "toy/llm_pretraining.yaml", "recipes/toy/llm_pretraining.yaml"):
        assert find_recipe(name).resolve() == expected.resolve()


def test_rows_that_a_full_disk_did_not_take_follow_when_there_is_room(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    metrics = CsvMetrics(tmp_path)
    metrics.log_metrics({"loss": 1.0}, 0)
    with limited_file_size(20):
        metrics.log_metrics({"loss": 2.0}, 1)
        metrics.log_metrics({"loss": 3.0, "new": 1.0}, 2)
    assert capsys.readouterr().err.count("cannot be written for now") == 1
    assert len((tmp_path / "metrics.csv").read_text().splitlines()) == 2, "what was there stays"
    metrics.log_metrics({"loss": 4.0}, 3)
    rows = list(csv.DictReader((tmp_path / "metrics.csv").open()))
    assert [float(row["loss"]) for row in rows] == [1.0, 2.0, 3.0, 4.0]
