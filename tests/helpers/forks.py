"""Processes of Python as forks of the one that starts them, which spares each the imports of torch and others.

Only our own tests use it: where the property is what processes do together, not that a new one starts.
"""

import contextlib
import json
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

FOLDER = "DIVOT_TEST_FORKS"
"""Names a folder in which each fork writes its variables: /proc shows those of the process that was forked first."""

SAFE = "-P"
"""The option of Python that leaves the folder of the script, or the working directory, out of the search path."""

_new = subprocess.Popen.__init__


@contextlib.contextmanager
def forked_processes(*, deep: bool = True) -> Iterator[None]:
    """Surround code whose processes of Python are to be forks, those that run a module or a script.

    A fork has the words, variables, files, folder, session and signals that a new process would have, and what this
    process has imported. Other programs, and Python with other options, are new processes.

    Args:
        deep: The processes of Python that a fork starts are forks, too.
    """
    subprocess.Popen.__init__ = _forking(deep)  # type: ignore[method-assign]
    try:
        yield
    finally:
        subprocess.Popen.__init__ = _new  # type: ignore[method-assign]


def _forking(deep: bool) -> Callable[..., None]:
    """Return the `__init__` of `subprocess.Popen`, which several modules hold under names of their own."""

    def init(self: Any, args: Any, *others: Any, **settings: Any) -> None:
        words = _words(args)
        if words:
            variables = dict(os.environ if settings.get("env") is None else settings["env"])
            kept = {0, 1, 2, *settings.get("pass_fds", ())}
            # It is called in the child after all else was prepared, and never returns: no program is executed.
            settings["preexec_fn"] = lambda: _become(words, variables, kept, init if deep else _new)
        _new(self, args, *others, **settings)

    return init


def variables_of(pid: int, folder: Path) -> dict[str, str]:
    """Return the variables that a process was started with; none if it is gone.

    Args:
        pid: Its number.
        folder: Of `FOLDER`.
    """
    file = folder / str(pid)
    if file.exists():
        variables: dict[str, str] = json.loads(file.read_text())
        return variables
    try:
        words = Path(f"/proc/{pid}/environ").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return {}
    return dict(word.split("=", 1) for word in words if "=" in word)


def _words(command: Any) -> list[str]:
    """Return a command's words after the name of this Python, without -u; none if a fork cannot do the same."""
    words = [command] if isinstance(command, str) else [str(word) for word in command]
    if words[0] != sys.executable:
        return []
    words = [word for word in words[1:2] if word != "-u"] + words[2:]
    safe = words[:1] == [SAFE]
    what = words[safe : safe + 1]
    return words if what and (what[0] == "-m" or what[0].endswith(".py")) else []


def _become(words: list[str], variables: Mapping[str, str], kept: set[int], popen: Callable[..., None]) -> None:
    """Turn this process, a fork, into Python with these words, and end it."""
    status = 1
    try:
        _leave_the_parent(variables, kept, popen)
        _run(words)
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
        if isinstance(end.code, str):
            sys.stderr.write(f"{end.code}\n")
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _leave_the_parent(variables: Mapping[str, str], kept: set[int], popen: Callable[..., None]) -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    # Their numbers stay taken: an object of the parent may close one later, when it could be another file's.
    nothing = os.open(os.devnull, os.O_RDWR)
    for number in map(int, os.listdir("/proc/self/fd")):
        if number not in kept:
            with contextlib.suppress(OSError):  # that of the listing
                os.fstat(number)
                os.dup2(nothing, number, inheritable=False)
    sys.stdin, sys.stdout, sys.stderr = (
        os.fdopen(number, mode, closefd=False, buffering=1) for number, mode in enumerate("rww")
    )
    os.environ.clear()
    os.environ.update(variables)
    tempfile.tempdir = None
    subprocess.Popen.__init__ = popen  # type: ignore[method-assign]
    if FOLDER in variables:
        file = Path(variables[FOLDER], str(os.getpid()))
        file.with_suffix(".part").write_text(json.dumps(dict(variables)))
        file.with_suffix(".part").rename(file)


def _run(words: list[str]) -> None:
    search_path = [*filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    safe = words[0] == SAFE
    words = words[safe:]
    if words[0] == "-m":
        sys.path[:0] = [*[os.getcwd()][safe:], *search_path]
        sys.argv = words[1:]
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    else:
        sys.path[:0] = [*[str(Path(words[0]).resolve().parent)][safe:], *search_path]
        sys.argv = words
        runpy.run_path(words[0], run_name="__main__")
