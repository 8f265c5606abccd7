"""`trainer.logger: wandb` and `mlflow`: one line in a recipe shows a run at the service, also after it is resumed."""

import csv
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from divot_lightning.experiments.plan.settings_check import main as wrong_settings_of
from divot_lightning.training.config_changes import flat_settings
from tests.helpers.fake_services import FakeRun, FakeWandb, install_mlflow, install_wandb
from tests.helpers.ranks import divot_on_ranks

Divot = Callable[..., int]
Settings = dict[str, Any]
Runs = dict[str, FakeRun]
RUN = Path("runs/tiny")
SERVICES = {"wandb": install_wandb, "mlflow": install_mlflow}


@pytest.fixture
def runs(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Runs:
    """The runs at the service that the test is parametrised with."""
    return SERVICES[request.node.callspec.params["service"]](monkeypatch).runs


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> FakeWandb:
    return install_wandb(monkeypatch)


each_service = pytest.mark.parametrize("service", SERVICES)


def logged(rows: list[dict[str, Any]]) -> list[tuple[int, dict[str, float]]]:
    """The values of each row by step."""
    named = [{name: float(value) for name, value in row.items() if value != ""} for row in rows]
    return [(int(row.pop("trainer/global_step", row.pop("step", -1))), row) for row in named]


def metrics() -> list[tuple[int, dict[str, float]]]:
    with (RUN / "metrics.csv").open(newline="") as file:
        return logged(list(csv.DictReader(file)))


def assert_equal_rows(theirs: list[dict[str, Any]]) -> None:
    ours = metrics()
    assert len(ours) == len(theirs) > 0
    for (step, row), (their_step, their_row) in zip(ours, logged(theirs), strict=True):
        assert (step, row) == (their_step, pytest.approx(their_row, rel=1e-6))


@each_service
def test_one_line_logs_every_row_of_metrics_csv_under_the_name_of_the_run(
    divot: Divot, tiny: Settings, runs: Runs, service: str
) -> None:
    assert divot("fit", tiny, "--trainer.logger", service, "--trainer.val_check_interval", "3") == 0
    (run,) = runs.values()
    assert run.name == "runs/tiny"
    assert_equal_rows(run.rows)
    assert {"train/loss", "validation/loss", "speed/data_wait"} <= {name for row in run.rows for name in row}


@each_service
def test_the_service_shows_all_settings(divot: Divot, tiny: Settings, runs: Runs, service: str) -> None:
    tiny["trainer"]["logger"] = service
    assert divot("fit", tiny) == 0
    (run,) = runs.values()
    stored = yaml.safe_load((RUN / "config.yaml").read_text())
    if service == "mlflow":
        assert run.settings == {key: str(value)[:250] for key, value in flat_settings(stored).items()}
        assert run.settings["model.optimizer.lr"] == "0.01"
    else:
        assert run.settings == stored


@each_service
@pytest.mark.parametrize("with_recipe", [False, True])
def test_a_resumed_run_continues_at_the_service(
    divot: Divot, tiny: Settings, runs: Runs, service: str, with_recipe: bool
) -> None:
    tiny["trainer"]["logger"] = {"class_path": service}
    assert divot("fit", tiny) == 0
    changed = ["--trainer.max_steps", "8", "--model.optimizer.lr", "0.5"]
    assert divot("resume", str(RUN), *([tiny] if with_recipe else []), *changed) == 0
    (run,) = runs.values()
    assert_equal_rows(run.rows)
    assert logged(run.rows)[-1][0] == 7


def test_a_list_logs_to_several_services_and_each_continues(
    divot: Divot, tiny: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    both = [install(monkeypatch).runs for install in SERVICES.values()]
    assert divot("fit", tiny, "--trainer.logger", "[wandb, mlflow]") == 0
    assert divot("resume", str(RUN), "--trainer.max_steps", "8") == 0
    for runs in both:
        (run,) = runs.values()
        assert_equal_rows(run.rows)


def test_what_a_recipe_sets_stays(divot: Divot, tiny: Settings, wandb: FakeWandb) -> None:
    wandb.runs["mine"] = FakeRun("mine", "before", rows=[{"old": 1.0}])
    tiny["trainer"]["logger"] = {"class_path": "wandb", "init_args": {"name": "other", "id": "mine", "resume": "never"}}
    assert divot("fit", tiny) == 0
    assert wandb.runs["mine"].name == "other"  # not continued, since `resume` says so
    assert {"old": 1.0} not in wandb.runs["mine"].rows


def test_of_several_processes_only_the_first_builds_the_logger(tiny: Settings) -> None:
    """Two processes that create MLflow's database at the same time destroy it."""
    logger = {"class_path": "tiny_stage.LoggerOfRank", "init_args": {"save_dir": "elsewhere"}}
    tiny["trainer"] |= {"logger": logger, "devices": 2, "strategy": "ddp"}
    Path("tiny.yaml").write_text(yaml.safe_dump(tiny))
    divot_on_ranks(["fit", "--config", "tiny.yaml"], 2)
    assert [path.name for path in Path().glob("built-by-*")] == ["built-by-0"]
    assert len(metrics()) == 3


def test_a_missing_package_is_named_before_anything_is_written(
    divot: Divot, tiny: Settings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "wandb" else find_spec(name))
    assert divot("fit", tiny, "--trainer.logger", "wandb") == 2
    assert capsys.readouterr().err == "error: trainer.logger: the package wandb is not installed\npip install wandb\n"
    assert not RUN.exists()
    command = ["divot", "fit", "--config", "recipe_1.yaml", "--trainer.logger", "wandb"]
    Path("recipe_1.yaml").write_text(yaml.safe_dump(tiny))
    assert "pip install wandb" in wrong_settings_of({"train": command})["train"]


def test_a_trained_run_is_measured_without_the_package(
    divot: Divot, tiny: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as installed:
        runs = install_wandb(installed).runs
        assert divot("fit", tiny, "--trainer.logger", "wandb") == 0
    monkeypatch.setattr("lightning.pytorch.loggers.wandb._WANDB_AVAILABLE", False)
    assert divot("validate", str(RUN)) == 0
    assert len(runs) == 1


def test_a_service_that_cannot_be_used_ends_the_run_in_three_lines(
    divot: Divot, tiny: Settings, wandb: FakeWandb, capsys: pytest.CaptureFixture[str]
) -> None:
    wandb.problem = RuntimeError("No API key configured.")
    assert divot("fit", tiny, "--trainer.logger", "wandb") == 2
    assert capsys.readouterr().err == (
        "error: WandbLogger cannot start: RuntimeError: No API key configured.\n"
        "`wandb login`, or set WANDB_MODE=offline\n"
    )
    assert not RUN.exists()


def test_a_logger_that_cannot_be_built_is_reported_in_one_line(
    divot: Divot, tiny: Settings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fake = install_mlflow(monkeypatch)
    fake.problem = RuntimeError("folders are refused\nsee the manual")
    assert divot("fit", tiny, "--trainer.logger", "mlflow", "--trainer.logger.tracking_uri", "file:./mlruns") == 2
    assert capsys.readouterr().err == "error: trainer.logger cannot be built: RuntimeError: folders are refused\n"


def test_a_logger_is_added_to_those_of_the_recipe(
    divot: Divot, tiny: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    both = [install(monkeypatch).runs for install in SERVICES.values()]
    tiny["trainer"]["logger"] = ["wandb"]
    assert divot("fit", tiny, "--trainer.logger+=mlflow") == 0
    assert [len(runs) for runs in both] == [1, 1]


def test_an_unknown_name_lists_the_known_ones(divot: Divot, tiny: Settings, capsys: pytest.CaptureFixture[str]) -> None:
    assert divot("fit", tiny, "--trainer.logger", "wnadb") == 2
    assert "there is no logger 'wnadb'; allowed: wandb, mlflow, or a class path" in capsys.readouterr().err


def test_the_real_wandb_takes_it(divot: Divot, tiny: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    for words in (["fit", tiny, "--trainer.logger", "wandb"], ["resume", str(RUN), "--trainer.max_steps", "8"]):
        assert divot(*words) == 0
        wandb.finish()
    (first, second) = sorted(Path("wandb").glob("offline-run-*"))
    assert first.name.rpartition("-")[2] == second.name.rpartition("-")[2]


def test_the_real_mlflow_takes_it(divot: Divot, tiny: Settings) -> None:
    client = pytest.importorskip("mlflow.tracking").MlflowClient("sqlite:///mlflow.db")
    assert divot("fit", tiny, "--trainer.logger", "mlflow") == 0
    assert divot("resume", str(RUN), "--trainer.max_steps", "8", "--model.optimizer.lr", "0.5") == 0
    (run,) = client.search_runs([client.get_experiment_by_name("lightning_logs").experiment_id])
    assert (run.info.run_name, run.info.status, run.data.params["model.optimizer.lr"]) == (
        "runs/tiny",
        "FINISHED",
        "0.01",
    )
    history = client.get_metric_history(run.info.run_id, "train/loss")
    assert [(one.step, one.value) for one in history] == [
        (step, pytest.approx(row["train/loss"], rel=1e-6)) for step, row in metrics() if "train/loss" in row
    ]
