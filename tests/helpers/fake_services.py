"""Stand-ins for the packages wandb and mlflow, as far as Lightning's loggers use them; they keep what they get."""

import sys
from dataclasses import dataclass, field
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest


@dataclass
class FakeRun:
    """One run at a service."""

    id: str
    name: str
    settings: dict[str, Any] = field(default_factory=dict)
    rows: list[dict[str, float]] = field(default_factory=list)


class FakeWandb:
    """W&B: `init` with the id of a run continues it if `resume` is "allow", otherwise it overwrites it."""

    def __init__(self) -> None:
        self.runs: dict[str, FakeRun] = {}
        self.problem: Exception | None = None

    def init(self, name: str | None, id: str | None, resume: str | None) -> Any:
        if self.problem:
            raise self.problem
        id = id or f"run{len(self.runs)}"
        if id not in self.runs or resume != "allow":
            self.runs[id] = FakeRun(id, name or "")
        run = self.runs[id]
        config = SimpleNamespace(update=lambda new, allow_val_change: run.settings.update(new))
        return SimpleNamespace(id=id, config=config, log=run.rows.append)


class FakeMlflow:
    """MLflow: a parameter keeps its value, and another value is an error."""

    def __init__(self) -> None:
        self.runs: dict[str, FakeRun] = {}
        self.problem: Exception | None = None

    def client(self, uri: str) -> "FakeMlflow":
        if self.problem:
            raise self.problem
        assert uri == "sqlite:///mlflow.db"  # a folder, Lightning's default, is refused by MLflow 3
        return self

    def get_experiment_by_name(self, name: str) -> Any:
        return SimpleNamespace(lifecycle_stage="active", experiment_id=name)

    def create_run(self, experiment_id: str, tags: dict[str, str]) -> Any:
        run = FakeRun(f"run{len(self.runs)}", tags["mlflow.runName"])
        self.runs[run.id] = run
        return self.get_run(run.id)

    def get_run(self, run_id: str) -> Any:
        info = SimpleNamespace(run_id=run_id, experiment_id="0")
        return SimpleNamespace(info=info, data=SimpleNamespace(params=self.runs[run_id].settings))

    def log_batch(self, run_id: str, params: Any = (), metrics: Any = ()) -> None:
        run = self.runs[run_id]
        for one in params:
            if run.settings.setdefault(one.key, one.value) != one.value:
                raise ValueError(f"Changing param values is not allowed: {one.key}")
        if metrics:
            run.rows.append({"trainer/global_step": metrics[0].step, **{one.key: one.value for one in metrics}})

    def set_terminated(self, run_id: str, status: str) -> None:
        assert status == "FINISHED"


def install_wandb(monkeypatch: pytest.MonkeyPatch) -> FakeWandb:
    """Put the stand-in in place of the package for this test."""
    fake = FakeWandb()

    def init(  # jsonargparse reads from it which settings the logger passes on
        name: str | None = None,
        project: str | None = None,
        dir: str | None = None,
        id: str | None = None,
        resume: str | None = None,
        anonymous: str | None = None,
    ) -> Any:
        return fake.init(name, id, resume)

    _module(monkeypatch, "wandb", init=init, run=None)
    _module(monkeypatch, "wandb.sdk")
    _module(monkeypatch, "wandb.sdk.lib", RunDisabled=int)
    _module(monkeypatch, "wandb.wandb_run", Run=int)
    monkeypatch.setattr("lightning.pytorch.loggers.wandb._WANDB_AVAILABLE", True)
    return fake


def install_mlflow(monkeypatch: pytest.MonkeyPatch) -> FakeMlflow:
    """Put the stand-in in place of the package for this test."""
    fake = FakeMlflow()
    context = _module(monkeypatch, "mlflow.tracking.context", resolve_tags=lambda tags: tags)
    _module(monkeypatch, "mlflow", set_tracking_uri=lambda uri: None)
    _module(monkeypatch, "mlflow.tracking", MlflowClient=fake.client, context=context)
    _module(monkeypatch, "mlflow.entities", Param=SimpleNamespace, Metric=SimpleNamespace)
    _module(monkeypatch, "mlflow.utils")
    _module(monkeypatch, "mlflow.utils.mlflow_tags", MLFLOW_RUN_NAME="mlflow.runName")
    monkeypatch.setattr("lightning.pytorch.loggers.mlflow._MLFLOW_AVAILABLE", True)
    return fake


def _module(monkeypatch: pytest.MonkeyPatch, name: str, **attributes: Any) -> ModuleType:
    module = ModuleType(name)
    module.__spec__ = ModuleSpec(name, None)
    module.__dict__.update(attributes)
    monkeypatch.setitem(sys.modules, name, module)
    return module
