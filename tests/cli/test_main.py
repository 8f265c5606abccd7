"""The dispatcher: what it lists, what it imports, how it tells errors."""

import importlib
import importlib.util
import signal
import subprocess
import sys
from types import SimpleNamespace

import pytest

from divot_lightning import __version__
from divot_lightning.cli import data
from divot_lightning.cli.main import COMMANDS, error_text, main
from divot_lightning.errors import UserError


@pytest.mark.parametrize("words", [["--help"], ["nonsense"], ["resume", "x"]])
def test_what_needs_no_model_imports_no_torch(words: list[str]) -> None:
    code = f"import sys; from divot_lightning.cli.main import main; main({words!r}); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 0


def test_help_of_no_command_imports_torch() -> None:
    every = [[name] for name in COMMANDS] + [["data", name] for name in data.COMMANDS]
    code = (
        f"import sys; from divot_lightning.cli.main import main\nfor words in {every!r}:\n"
        "    try: assert main([*words, '--help']) == 0\n    except SystemExit as end: assert end.code == 0\n"
        "    assert not {'torch', 'lightning'} & set(sys.modules), words"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_help_lists_every_command_on_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    for name, text in COMMANDS.items():
        assert any(line.split() == [name, *text.split()] for line in lines)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_its_module(command: str) -> None:
    assert importlib.util.find_spec(f"divot_lightning.cli.{command}") is not None


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_a_short_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        status = main([command, "--help"])
    except SystemExit as stop:  # argparse leaves this way
        status = stop.code
    assert not status
    assert f"divot {command}" in capsys.readouterr().out


def test_version_is_the_package_s(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert __version__ in capsys.readouterr().out


def test_unknown_command_names_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["resum", "x"]) == 2
    assert "Did you mean 'divot resume'?" in capsys.readouterr().err


@pytest.mark.parametrize("command", [*COMMANDS, *(f"data {name}" for name in data.COMMANDS)])
def test_a_wrong_option_of_any_command_is_told_in_five_lines(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*command.split(), "--nonsense", "1"]) == 2
    message = capsys.readouterr().err
    assert message.startswith("error: ")
    assert len(message.splitlines()) <= 5


def test_a_mistyped_option_names_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ask", "run", "a.mp4", "--temprature", "1"]) == 2
    assert capsys.readouterr().err == (
        "error: unrecognized arguments: --temprature 1. Did you mean '--temperature'?\n"
        "`divot ask --help` shows what is allowed\n"
    )


def test_a_long_message_is_cut_to_five_lines() -> None:
    assert error_text(ValueError("\n".join("abcdefgh"))) == "error: a\nb\nc\nd\ne\n"


def test_control_characters_of_a_message_are_escaped() -> None:
    assert (
        error_text(UserError("there is no file \x1b[2J\u202ea.mp4")) == "error: there is no file \\x1b[2J\\u202ea.mp4\n"
    )


def test_progress_bars_write_little_where_no_terminal_shows_them() -> None:
    code = (
        "import os, sys; from divot_lightning.cli.main import main; main(['--version']); import tqdm\n"
        "bar = tqdm.tqdm(range(100_000), total=100_000)\n"
        "sum(1 for _ in bar)\n"
        "print(bar.mininterval)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True)
    assert done.stdout.split()[-1] == "10.0"
    assert done.stderr.count("\r") <= 5


def test_a_long_line_is_cut() -> None:
    assert len(error_text(ValueError("x" * 10_000))) < 600


def test_user_error_has_no_traceback_unless_asked_for(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _serve(monkeypatch, UserError("size is 3"))
    assert main(["fit"]) == 2
    assert capsys.readouterr().err == "error: size is 3\n"
    monkeypatch.setenv("DIVOT_TRACEBACK", "1")
    assert main(["fit"]) == 2
    assert "Traceback" in capsys.readouterr().err


def test_ctrl_c_gives_130(monkeypatch: pytest.MonkeyPatch) -> None:
    _serve(monkeypatch, KeyboardInterrupt())
    assert main(["fit"]) == 130


def test_a_reader_that_has_gone_ends_a_command_in_silence() -> None:
    code = (
        "import importlib, sys, types; from divot_lightning.cli.main import main\n"
        "importlib.import_module = lambda name: types.SimpleNamespace(main=lambda argv: print('parts'))\n"
        "sys.exit(main(['parts']))"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 128 + signal.SIGPIPE


def test_other_errors_are_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    _serve(monkeypatch, RuntimeError("ours"))
    with pytest.raises(RuntimeError, match="ours"):
        main(["fit"])


def _serve(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    def fail(argv: list[str]) -> int:
        raise error

    monkeypatch.setattr(importlib, "import_module", lambda name: SimpleNamespace(main=fail))
