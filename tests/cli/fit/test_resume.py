"""`divot resume`: starts where there is nothing, continues where a run was stopped, with what the command says."""

import csv
import json
import resource
import shlex
import shutil
import signal
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from divot_lightning.checkpoint.folders import newest_checkpoint
from divot_lightning.distributed import signals as preemption
from divot_lightning.io.files import file_sha256
from divot_lightning.training import runs as training
from tests.helpers.faults import VARIABLE, Fault, damage_file
from tests.helpers.faults import main as faults_main
from tests.helpers.ranks import divot_on_ranks

Divot = Callable[..., int]
Settings = dict[str, Any]
RUN = Path("runs/tiny")
TINY = Path(__file__).parents[1]


def _rows(run: Path = RUN) -> list[dict[str, str]]:
    with (run / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def _column(name: str, run: Path = RUN) -> dict[int, float]:
    return {int(row["step"]): float(row[name]) for row in _rows(run)}


def _tensors(run: Path) -> dict[str, torch.Tensor]:
    """All tensors of the newest checkpoint: weights and optimizer state."""
    folder = newest_checkpoint(run)
    assert folder is not None
    return {name: value for file in sorted(folder.glob("*.safetensors")) for name, value in load_file(file).items()}


def _interrupted(divot: Divot, tiny: Settings, at: int) -> None:
    assert divot("fit", tiny, "--data.interrupt_at", str(at)) == 130


@pytest.fixture(autouse=True)
def _handlers() -> Iterator[None]:
    """A process that stopped ignores further signals up to its end; this one has other tests to run."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def test_ctrl_c_saves_where_it_stopped_and_says_how_to_continue(
    divot: Divot, tiny: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    _interrupted(divot, tiny, at=5)
    assert newest_checkpoint(RUN) is not None
    assert not (RUN / "finished.json").exists()
    assert f"divot resume {RUN}" in capsys.readouterr().err


def test_another_stage_cannot_continue_a_run(divot: Divot, tiny: Settings, capsys: pytest.CaptureFixture[str]) -> None:
    assert divot("fit", tiny) == 0
    tiny["model"]["class_path"] = "tiny_stage.LongerStage"
    assert divot("resume", str(RUN), tiny, "--trainer.max_steps", "8") == 2
    message = capsys.readouterr().err.partition("error: ")[2]
    assert "was trained by tiny_stage.TinyStage, and tiny_stage.LongerStage cannot continue it" in message
    assert "Another stage is a run of its own: divot fit" in message
    assert len(message.splitlines()) <= 5


@pytest.mark.parametrize(("twice_seconds", "saved"), [(60.0, 6), (-1.0, 4)])
def test_ctrl_c_twice_at_once_counts_once_and_what_is_told_is_what_was_saved(
    divot: Divot,
    tiny: Settings,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    twice_seconds: float,
    saved: int,
) -> None:
    tiny["trainer"]["max_steps"] = 100
    monkeypatch.setattr(preemption, "TWICE_SECONDS", twice_seconds)
    monkeypatch.syspath_prepend(TINY)
    import tiny_stage

    def interrupted(stage: Any, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
        if stage.global_step == 5:
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)
        return step(stage, batch, batch_idx)

    step = tiny_stage.TinyStage.training_step
    monkeypatch.setattr(tiny_stage.TinyStage, "training_step", interrupted)
    assert divot("fit", tiny) == 130
    told = capsys.readouterr().err
    assert newest_checkpoint(RUN) == RUN / f"checkpoints/step_{saved:08d}"
    if saved == 6:
        assert "stopped by SIGINT after step 6; continue with" in told
    else:
        assert "stopped after step 5 without saving it; steps after 4 will be repeated; continue with" in told
    monkeypatch.setattr(tiny_stage.TinyStage, "training_step", step)
    assert divot("resume", str(RUN), "--trainer.max_steps", "8") == 0
    assert f"continuing after step {saved}\n" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1"])
def test_a_signal_saves_the_step_and_leaves_with_75(divot: Divot, tiny: Settings, name: str) -> None:
    assert divot("fit", tiny, "--data.interrupt_at", "3", "--data.interrupt_by", name) == 75
    stopped = json.loads((RUN / "stopped.json").read_text())
    assert (stopped["signal"], stopped["exit_code"]) == (name, 75)
    assert newest_checkpoint(RUN) == RUN / f"checkpoints/step_{stopped['step']:08d}"
    assert divot("resume", str(RUN), "--data.interrupt_at", "null") == 0
    assert not (RUN / "stopped.json").exists()


def test_a_resumed_run_ends_as_one_that_never_stopped(divot: Divot, tiny: Settings) -> None:
    tiny["trainer"]["log_every_n_steps"] = 1
    _interrupted(divot, tiny, at=3)
    assert divot("resume", str(RUN), "--data.interrupt_at", "null") == 0
    assert divot("fit", tiny, "--run", "straight") == 0
    straight = Path("straight")
    assert _column("train/loss") == _column("train/loss", straight)
    assert list(_column("train/loss")) == list(range(6))
    assert _column("train/lr") == _column("train/lr", straight)
    resumed, expected = _tensors(RUN), _tensors(straight)
    assert resumed.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(resumed[name], value, rtol=0, atol=0)


def test_one_command_starts_continues_and_says_when_it_has_finished(
    divot: Divot, tiny: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny["data"]["init_args"]["interrupt_at"] = 3
    command = ("resume", tiny, "--run", str(RUN), "--checkpoint.every_steps", "2")
    statuses = [divot(*command) for _ in range(3)]
    assert statuses[0] == 130
    assert statuses[-1] == 0
    assert "changed" not in capsys.readouterr().err
    before = {path: path.stat().st_mtime_ns for path in RUN.rglob("*")}
    assert divot(*command) == 0
    assert "is finished" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in RUN.rglob("*")} == before


def test_the_run_folder_may_be_named_first_or_by_the_recipe(divot: Divot, tiny: Settings) -> None:
    assert divot("resume", "elsewhere", tiny) == 0
    assert Path("elsewhere/finished.json").is_file()
    assert divot("resume", tiny) == 0
    assert (RUN / "finished.json").is_file()


def test_the_command_line_wins_over_the_recipe_and_the_recipe_over_the_run(
    divot: Divot, tiny: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny["trainer"]["log_every_n_steps"] = 1
    assert divot("fit", tiny, "--trainer.max_steps", "3", "--data.batch_size", "2") == 0
    changed = ("--trainer.max_steps", "8", "--model.optimizer.lr", "0.5")
    capsys.readouterr()
    recipe = {"model": {"init_args": {"optimizer": {"lr": 0.3, "betas": [0.5, 0.6]}}}, "data": tiny["data"]}
    recipe["data"]["init_args"]["batch_size"] = 3
    assert divot("resume", str(RUN), recipe, *changed) == 0
    shown = capsys.readouterr().err
    for line in (
        "model.optimizer.lr: 0.01 -> 0.5",
        "model.optimizer.betas: [0.9, 0.99] -> [0.5, 0.6]",
        "trainer.max_steps: 3 -> 8",
        "data.batch_size: 2 -> 3",
    ):
        assert f"changed {line}\n" in shown
    assert shown.count("changed ") == 4
    rates = [rate for step, rate in sorted(_column("train/lr").items()) if step >= 3]
    assert rates == pytest.approx([0.5 * (1 - step / 8) for step in range(3, 8)])
    assert {size for step, size in _column("train/batch_size").items() if step >= 3} == {3.0}
    steps = [value.item() for name, value in _tensors(RUN).items() if name.endswith("/step")]
    assert set(steps) == {8.0}  # the moments continued, they did not start again
    assert yaml.safe_load((RUN / "config.yaml").read_text())["model"]["init_args"]["optimizer"]["lr"] == 0.5
    assert yaml.safe_load((RUN / "config.0001.yaml").read_text())["model"]["init_args"]["optimizer"]["lr"] == 0.01


def test_the_command_line_wins_under_zero_as_well(divot: Divot, tiny: Settings) -> None:
    tiny["trainer"]["log_every_n_steps"] = 1
    assert divot("fit", tiny, "--trainer.max_steps", "3") == 0
    words = shlex.split(
        "--trainer.max_steps 8 --model.optimizer.lr 0.5 --trainer.strategy divot_zero2 --trainer.devices 2"
    )
    assert "changed model.optimizer.lr: 0.01 -> 0.5" in divot_on_ranks(["resume", str(RUN), *words], 2)
    rates = [rate for step, rate in sorted(_column("train/lr").items()) if step >= 3]
    assert rates == pytest.approx([0.5 * (1 - step / 8) for step in range(3, 8)])
    assert {value.item() for name, value in _tensors(RUN).items() if name.endswith("/step")} == {8.0}


def test_a_setting_that_shapes_the_model_cannot_change(
    divot: Divot, tiny: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    assert divot("fit", tiny) == 0
    words = ("--model.width", "5", "--data.clips.size", "5", "--trainer.max_steps", "8")
    assert divot("resume", str(RUN), *words) == 2
    shown = capsys.readouterr().err
    assert "layer.linear.weight" in shown
    assert "model.width: 4 -> 5" in shown
    assert len(shown[shown.index("error: ") :].splitlines()) <= 5
    assert yaml.safe_load((RUN / "config.yaml").read_text())["model"]["init_args"]["width"] == 4


def test_a_run_killed_before_its_first_checkpoint_starts_again(divot: Divot, tiny: Settings) -> None:
    _interrupted(divot, tiny, at=5)
    shutil.rmtree(RUN / "checkpoints")
    assert divot("resume", str(RUN), "--data.interrupt_at", "null") == 0
    assert list(_column("train/loss")) == [1, 3, 5]


def test_a_checkpoint_that_lacks_its_end_is_passed_over(divot: Divot, tiny: Settings) -> None:
    assert divot("fit", tiny) == 0
    whole = newest_checkpoint(RUN)
    assert whole is not None
    shutil.copytree(whole, RUN / "checkpoints/step_00000009")
    assert newest_checkpoint(RUN) == RUN / "checkpoints/step_00000009"
    (RUN / "checkpoints/step_00000009/trainer.pt").write_bytes((whole / "trainer.pt").read_bytes()[:-100])
    assert newest_checkpoint(RUN) == whole


def _cut(checkpoint: Path) -> str:
    file = checkpoint / "weights-00000.safetensors"
    damage_file(file, keep_bytes=file.stat().st_size - 1)
    return file.name


def _empty_manifest(checkpoint: Path) -> str:
    (checkpoint / "manifest.json").write_text("")
    return "manifest.json"


def _lost_file(checkpoint: Path) -> str:
    (checkpoint / "optimizer-00000.safetensors").unlink()
    return "optimizer-00000.safetensors"


def _flipped_bit(checkpoint: Path) -> str:
    damage_file(checkpoint / "trainer.pt")
    return "trainer.pt"


@pytest.mark.parametrize("damage", [_cut, _empty_manifest, _lost_file, _flipped_bit])
def test_the_only_checkpoint_being_damaged_the_run_is_refused_and_stays_as_it_is(
    divot: Divot, tiny: Settings, damage: Callable[[Path], str], capsys: pytest.CaptureFixture[str]
) -> None:
    tiny["trainer"]["log_every_n_steps"] = 1
    _interrupted(divot, tiny, at=5)
    checkpoint = newest_checkpoint(RUN)
    assert checkpoint is not None
    file, rows = damage(checkpoint), (RUN / "metrics.csv").read_text()
    capsys.readouterr()
    for command in (
        ["resume", str(RUN), "--data.interrupt_at", "null"],
        ["resume", str(RUN), tiny],
        ["validate", str(RUN)],
    ):
        assert divot(*command) == 2
        told = capsys.readouterr().err
        told = told[told.index("error: ") :]
        assert f"{checkpoint} is damaged: {file} " in told
        assert f"remove {RUN / 'checkpoints'}" in told
        assert len(told.splitlines()) <= 5
    assert (RUN / "metrics.csv").read_text() == rows
    assert rows.count("\n") > 4


def _untimed_rows() -> list[dict[str, str]]:
    """The rows of `metrics.csv` without times, which differ between two runs that do the same."""
    with (RUN / "metrics.csv").open(newline="") as file:
        return [
            {name: value for name, value in row.items() if not name.startswith("speed/")}
            for row in csv.DictReader(file)
        ]


@pytest.mark.parametrize("damage", [_cut, _empty_manifest, _lost_file])
def test_the_checkpoint_before_a_damaged_one_is_taken_and_told(
    divot: Divot, tiny: Settings, damage: Callable[[Path], str], capsys: pytest.CaptureFixture[str]
) -> None:
    tiny["trainer"]["log_every_n_steps"] = 1
    tiny["checkpoint"] = {"every_steps": 2, "keep_all": True}
    assert divot("fit", tiny, "--run", "straight") == 0
    assert divot("fit", tiny) == 0
    rows = _untimed_rows()
    (RUN / "finished.json").unlink()
    file = damage(RUN / "checkpoints/step_00000006")
    capsys.readouterr()
    assert divot("resume", str(RUN)) == 0
    told = capsys.readouterr().err
    assert f"WARNING: {RUN}/checkpoints/step_00000006 is damaged: {file} " in told
    assert f"is taken: {RUN}/checkpoints/step_00000004\n" in told
    assert "continuing after step 4" in told
    assert newest_checkpoint(RUN) == RUN / "checkpoints/step_00000006", "it is written again"
    assert _untimed_rows() == rows
    resumed, expected = _tensors(RUN), _tensors(Path("straight"))
    assert all(torch.equal(resumed[name], value) for name, value in expected.items())


def test_a_state_that_lacks_what_a_run_needs_is_named(
    divot: Divot, tiny: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    _interrupted(divot, tiny, at=5)
    folder = newest_checkpoint(RUN)
    assert folder is not None
    state = torch.load(folder / "trainer.pt", weights_only=True)
    del state["layout"]
    torch.save(state, folder / "trainer.pt")
    _record(folder / "trainer.pt")
    capsys.readouterr()
    assert divot("resume", str(RUN)) == 2
    assert f"{folder} is damaged: trainer.pt lacks 'layout'" in capsys.readouterr().err


def _record(file: Path) -> None:
    """Let the manifest have the present content of a file."""
    manifest = json.loads((file.parent / "manifest.json").read_text())
    manifest["files"][file.name] = {"bytes": file.stat().st_size, "sha256": file_sha256(file)}
    (file.parent / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    ("file", "content", "told"),
    [
        ("provenance.json", b"[", "provenance.json holds no record"),
        ("provenance.json", b"[1]", "provenance.json holds no record"),
        ("weights-00000.safetensors", b"cut", "weights-00000.safetensors cannot be read as safetensors"),
    ],
)
def test_a_recorded_file_of_another_kind_is_named_without_words_about_changed_settings(
    divot: Divot, tiny: Settings, file: str, content: bytes, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    _interrupted(divot, tiny, at=5)
    folder = newest_checkpoint(RUN)
    assert folder is not None
    (folder / file).write_bytes(content)
    _record(folder / file)
    capsys.readouterr()
    assert divot("resume", str(RUN), "--model.optimizer.lr", "0.02") == 2
    message = capsys.readouterr().err.partition("error: ")[2]
    assert message.startswith(f"{folder} is damaged: {told}")
    assert "it is the only checkpoint" in message
    assert "model.optimizer.lr" not in message
    assert len(message.splitlines()) <= 5


@pytest.mark.parametrize("content", [b"run: caf\xe9\n", b"a: [1\n"])
def test_settings_of_a_run_that_cannot_be_read_are_named(
    divot: Divot, tiny: Settings, content: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    _interrupted(divot, tiny, at=5)
    (RUN / "config.yaml").write_bytes(content)
    capsys.readouterr()
    for command in (("resume", str(RUN)), ("validate", str(RUN))):
        assert divot(*command) == 2
        assert f"{RUN}/config.yaml is no YAML" in capsys.readouterr().err


def test_one_callback_alone_needs_no_list(divot: Divot, tiny: Settings) -> None:
    tiny["trainer"]["callbacks"] = {"class_path": "lightning.pytorch.callbacks.LearningRateMonitor"}
    assert divot("fit", tiny) == 0
    assert (RUN / "finished.json").is_file()


def _fit_on_a_full_disk(recipe: Settings, *words: str) -> int:
    """Run `divot fit` while the disk is full from the checkpoint of step 4 on; return its status."""
    Path("recipe.yaml").write_text(yaml.safe_dump(recipe))
    fault = Fault("full_disk", step=4, rank=None, moment="save", bytes_left=300)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(VARIABLE, json.dumps(asdict(fault)))
        patch.setattr(training, "TrainingCLI", training.TrainingCLI)  # so that it is put back
        often = ("--checkpoint.every_steps", "2", "--trainer.log_every_n_steps", "1")
        try:
            return faults_main(["fit", "--config", "recipe.yaml", *often, *words])
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_full_disk_stops_the_run_which_continues_when_there_is_room(
    divot: Divot, tiny: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _fit_on_a_full_disk(tiny) == 2
    assert "a checkpoint could not be written" in capsys.readouterr().err
    assert newest_checkpoint(RUN) == RUN / "checkpoints/step_00000002"
    assert divot("resume", str(RUN)) == 0
    assert list(_column("train/loss")) == list(range(6))


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # TensorBoard's thread
def test_a_full_disk_is_reported_and_the_run_continues_if_told_so(
    tiny: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny["trainer"]["max_steps"] = 100
    assert _fit_on_a_full_disk(tiny, "--checkpoint.on_full_disk", "continue") == 0
    told = capsys.readouterr().err
    assert "step 4 continues without a checkpoint" in told
    assert "step 100 continues without a checkpoint" in told
    assert "metrics.csv cannot be written for now" in told
    assert newest_checkpoint(RUN) == RUN / "checkpoints/step_00000002"


def test_a_finished_run_says_so_and_stays_as_it_is(
    divot: Divot, tiny: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    assert divot("fit", tiny) == 0
    before = {path: path.stat().st_mtime_ns for path in RUN.rglob("*")}
    assert divot("resume", str(RUN)) == 0
    assert "is finished" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in RUN.rglob("*")} == before


def test_a_finished_run_can_be_trained_for_longer(divot: Divot, tiny: Settings) -> None:
    assert divot("fit", tiny) == 0
    assert divot("resume", str(RUN), "--trainer.max_steps", "10") == 0
    assert list(_column("train/loss")) == [1, 3, 5, 7, 9]
    assert [path.name for path in (RUN / "checkpoints").glob("step_*")] == ["step_00000010"]
    assert (RUN / "finished.json").is_file()


def test_a_finished_run_without_checkpoints_never_starts_again(
    divot: Divot, tiny: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    assert divot("fit", tiny) == 0
    shutil.rmtree(RUN / "checkpoints")
    before = (RUN / "layer/model.safetensors").read_bytes()
    assert divot("resume", str(RUN), "--trainer.max_steps", "9") == 2
    assert "runs/tiny is finished, after step 6, and has no checkpoint" in capsys.readouterr().err
    assert (RUN / "layer/model.safetensors").read_bytes() == before
    assert divot("fit", tiny, "--trainer.max_steps", "0", "--run", "runs/untrained") == 0
    assert divot("resume", "runs/untrained", "--trainer.max_steps", "2") == 0, "it lost no step"


def test_a_run_killed_while_it_wrote_its_components_writes_them(divot: Divot, tiny: Settings) -> None:
    assert divot("fit", tiny) == 0
    (RUN / "finished.json").unlink()
    shutil.rmtree(RUN / "layer")
    assert divot("resume", str(RUN)) == 0
    assert (RUN / "finished.json").is_file()
    assert (RUN / "layer/model.safetensors").is_file()
    assert list(_column("train/loss")) == [1, 3, 5]


def test_a_moved_run_continues_where_it_is_now(divot: Divot, tiny: Settings) -> None:
    _interrupted(divot, tiny, at=5)
    shutil.move(RUN, "elsewhere")
    assert divot("resume", "elsewhere", "--data.interrupt_at", "null") == 0
    assert Path("elsewhere/finished.json").is_file()
    assert not RUN.exists()


@pytest.mark.parametrize("command", ["resume", "validate", "test"])
def test_a_folder_without_a_run_is_refused(
    divot: Divot, tmp_path: Path, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert divot(command, str(tmp_path / "nowhere")) == 2
    assert "nowhere" in capsys.readouterr().err
    assert divot(command, str(tmp_path)) == 2
    assert "has no config.yaml" in capsys.readouterr().err
    assert divot(command) == 2
    assert f"divot {command} RUN" in capsys.readouterr().err
