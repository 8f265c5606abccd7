"""A fork is what a new process would be: its words, variables, files, folder, signals, exit status and children."""

import contextlib
import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.forks import FOLDER, forked_processes, variables_of

FACTS = """
import json, os, signal, subprocess, sys
child = [sys.executable, *(["-m", "facts"] if __spec__ else [sys.argv[0]]), "child"]
print(json.dumps({
    "argv": sys.argv,
    "name": __name__,
    "module": __spec__ and sys.modules["__main__"].__spec__.name,
    "folder": os.getcwd(),
    "first of the search path": sys.path[0],
    "times in the search path": sys.argv[1:] != ["child"] and sys.path.count(os.getcwd()),
    "input": sys.stdin.read(),
    "leads a session": os.getsid(0) == os.getpid(),
    "files": sorted(os.path.basename(os.readlink(f"/proc/self/fd/{n}")) for n in range(3, 60)
                    if os.path.exists(f"/proc/self/fd/{n}") and os.readlink(f"/proc/self/fd/{n}") != os.devnull),
    "signals": [str(signal.getsignal(number)) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGPIPE)],
    "variables": dict(sorted(os.environ.items())),
    "child": sys.argv[1:] != ["child"] and json.loads(subprocess.run(child, stdin=subprocess.DEVNULL,
                                                                     capture_output=True, check=True).stdout),
}))
print("told", file=sys.stderr)
"""


def _run(words: list[str], folder: Path, *, forked: bool) -> tuple[int, str, str]:
    with (folder / "kept").open("wb") as kept, forked_processes() if forked else contextlib.nullcontext():
        process = subprocess.Popen(
            [sys.executable, *words],
            cwd=folder,
            env={"PYTHONPATH": str(folder), "MINE": "ä", "LC_ALL": "C.UTF-8"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            pass_fds=(kept.fileno(),),
            start_new_session=True,
        )
    told = process.communicate("given", timeout=60)
    return process.returncode, *told


@pytest.fixture
def default_signals() -> Iterator[None]:
    """Let Ctrl-C reach new processes: a shell's background jobs ignore it, and so would a process that they start."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("default_signals")
@pytest.mark.parametrize(
    "words",
    [["-m", "facts", "two words"], ["facts.py"], ["-u", "-m", "facts"], ["-P", "-m", "facts"], ["-P", "facts.py"]],
)
def test_a_fork_sees_what_a_new_process_sees(words: list[str], tmp_path: Path) -> None:
    (tmp_path / "facts.py").write_text(FACTS)
    (status, told, errors), new = _run(words, tmp_path, forked=True), _run(words, tmp_path, forked=False)
    assert (status, json.loads(told), errors) == (new[0], json.loads(new[1]), new[2])
    assert json.loads(told)["child"]["argv"][1:] == ["child"]


@pytest.mark.parametrize(
    "code",
    [
        "import sys; sys.exit(75)",
        "import sys; sys.exit('no such thing')",
        "raise SystemExit",
        "import os, signal; os.kill(os.getpid(), signal.SIGKILL)",
    ],
)
def test_the_exit_status_and_what_is_told_are_those_of_a_new_process(code: str, tmp_path: Path) -> None:
    (tmp_path / "code.py").write_text(code)
    assert _run(["code.py"], tmp_path, forked=True) == _run(["code.py"], tmp_path, forked=False)


def test_an_error_is_told_with_its_traceback(tmp_path: Path) -> None:
    (tmp_path / "code.py").write_text("raise ValueError('3 is too small')")
    status, _, errors = _run(["code.py"], tmp_path, forked=True)
    assert status == 1
    assert errors.endswith(
        "code.py\", line 1, in <module>\n    raise ValueError('3 is too small')\nValueError: 3 is too small\n"
    )


def test_processes_are_forks_and_so_are_theirs_but_other_programs_are_not(tmp_path: Path) -> None:
    # The module is there for a fork alone, which has it from this process.
    sys.modules["only_here"] = sys
    code = "import only_here, subprocess, sys\nif len(sys.argv) < 2: subprocess.run([sys.executable, sys.argv[0], 'x'])"
    (tmp_path / "code.py").write_text(f"{code}\nprint(len(sys.argv), flush=True)")
    command = [sys.executable, str(tmp_path / "code.py")]
    with forked_processes():
        assert subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout == b"2\n1\n"
        assert subprocess.run([sys.executable, "-c", "import only_here"], capture_output=True, check=False).returncode
    assert subprocess.run(command, capture_output=True, check=False).returncode == 1
    with forked_processes(deep=False):
        assert subprocess.run(command, capture_output=True, check=False).stdout == b"1\n"
    del sys.modules["only_here"]


def test_variables_of_a_fork_are_known_to_others(tmp_path: Path) -> None:
    (tmp_path / "code.py").write_text("import sys; print(flush=True); sys.stdin.read()")
    variables, pipe = {FOLDER: str(tmp_path), "MINE": "1"}, subprocess.PIPE
    with forked_processes():
        process = subprocess.Popen([sys.executable, str(tmp_path / "code.py")], env=variables, stdin=pipe, stdout=pipe)
    with process:
        assert process.stdout is not None
        assert process.stdin is not None
        process.stdout.readline()
        assert variables_of(process.pid, tmp_path) == variables
        process.stdin.close()
