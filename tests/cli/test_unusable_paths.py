"""Runs that were moved, paths that cannot be written, machines that lack something: one clear line each."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from divot_lightning.cli import main as cli
from tests.helpers.faults import no_loopback, read_only_folder

Divot = Callable[..., int]
Settings = dict[str, Any]


def _told(capsys: pytest.CaptureFixture[str]) -> str:
    error = capsys.readouterr().err
    told = error[error.index("error: ") :]
    assert len(told.splitlines()) <= 5
    return told


@pytest.mark.parametrize("command", ["resume", "validate"])
def test_a_run_started_elsewhere_tells_from_where_its_paths_count(
    divot: Divot, tiny: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any, command: str
) -> None:
    (tmp_path / "project/runs/first").mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "project")
    tiny["model"]["init_args"]["previous"] = "runs/first"
    assert divot("fit", tiny, "--trainer.max_steps", "2") == 0
    (tmp_path / "project/runs/tiny/finished.json").unlink()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert divot(command, "../project/runs/tiny") == 2
    told = _told(capsys)
    assert f"runs/first is looked for from {tmp_path}/elsewhere; it is in {tmp_path}/project, where the run was" in told
    shutil.move(tmp_path / "project/runs/tiny", "alone")
    assert divot(command, "alone") == 2
    told = _told(capsys)
    assert f"runs/first is looked for from the current folder, {tmp_path}/elsewhere\n" in told


def test_other_errors_of_a_run_say_nothing_about_paths(
    divot: Divot, tiny: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    assert divot("fit", tiny, "--trainer.max_steps", "2") == 0
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert divot("resume", "../runs/tiny", "--trainer.max_step", "4") == 2
    assert "looked for" not in _told(capsys)


def test_a_folder_where_nothing_may_be_written_is_told_in_a_line(divot: Divot, tiny: Settings, capsys: Any) -> None:
    assert divot("fit", tiny) == 0
    capsys.readouterr()
    with read_only_folder(Path("runs")):
        assert divot("fit", tiny, "--run", "runs/new") == 2
        assert "runs/new cannot be written: Read-only file system" in _told(capsys)
        assert divot("resume", "runs/tiny", "--trainer.max_steps", "9") == 2
        assert "runs/tiny cannot be written: Read-only file system" in _told(capsys)
        assert divot("validate", "runs/tiny") == 0, "measuring writes nothing"
    assert not Path("runs/new").exists()


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (PermissionError(13, "Permission denied", "out/a.mp4"), "out/a.mp4 cannot be opened or written: Permission"),
        (OSError(30, "Read-only file system", "out/a.mp4"), "out/a.mp4 cannot be opened or written: Read-only"),
        (
            IsADirectoryError(21, "Is a directory", "out/a.json"),
            "out/a.json cannot be opened or written: Is a directory",
        ),
        (OSError(27, "File too large"), "a file cannot be opened or written: File too large\nmake room"),
        (OSError(28, "No space left on device"), "a file cannot be opened or written: No space left on device\nmake"),
    ],
)
def test_whatever_command_cannot_write_says_so_in_two_lines(
    monkeypatch: pytest.MonkeyPatch, capsys: Any, error: OSError, told: str
) -> None:
    def fail(argv: list[str]) -> int:
        raise error

    monkeypatch.setattr("divot_lightning.cli.heads.main", fail)
    assert cli.main(["heads"]) == 2
    assert told in _told(capsys)


class OutOfMemoryError(RuntimeError):
    """Has the name of torch's error of a full GPU."""


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.\nmore"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: 26000000000 bytes"),
    ],
)
def test_too_little_memory_is_told_with_a_way_to_estimate_it(
    monkeypatch: pytest.MonkeyPatch, capsys: Any, error: Exception
) -> None:
    def fail(argv: list[str]) -> int:
        raise error

    monkeypatch.setattr("divot_lightning.cli.heads.main", fail)
    assert cli.main(["heads"]) == 2
    told = _told(capsys)
    assert told.startswith("error: not enough memory: ")
    assert "divot preflight" in told


def test_another_error_of_torch_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(argv: list[str]) -> int:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    monkeypatch.setattr("divot_lightning.cli.heads.main", fail)
    with pytest.raises(RuntimeError, match="mat1"):
        cli.main(["heads"])


def test_an_error_of_ours_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(argv: list[str]) -> int:
        raise FileNotFoundError(2, "No such file or directory", "somewhere")

    monkeypatch.setattr("divot_lightning.cli.heads.main", fail)
    with pytest.raises(FileNotFoundError):
        cli.main(["heads"])


def test_two_processes_without_a_loopback_interface_are_refused_at_once(
    divot: Divot, tiny: Settings, capsys: Any
) -> None:
    with no_loopback():
        assert divot("fit", tiny, "--trainer.devices", "2", "--trainer.strategy", "ddp") == 2
    assert "cannot talk to each other over 127.0.0.1: [Errno 101] Network is unreachable\n" in _told(capsys)
    assert not Path("runs/tiny").exists()


def test_an_interface_that_is_not_there_is_named(
    divot: Divot, tiny: Settings, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "nic7")
    assert divot("fit", tiny, "--trainer.devices", "2", "--trainer.strategy", "ddp") == 2
    assert "GLOO_SOCKET_IFNAME is 'nic7', but this machine has no such network interface" in _told(capsys)
