"""A command with all the processes that it starts; sends signals to some or all of them. Only our own tests use it."""

import contextlib
import importlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tests.helpers.faults import VARIABLE, Fault

_JOB_VARIABLE = "DIVOT_TEST_JOB"
"""Marks all processes of a job, however they were started and whether their parents still live."""

GONE_SECONDS = 30.0
"""How long killed processes may take to be gone."""

CHECKOUT = Path(__file__).resolve().parents[2]
"""Must be on the path of a job's processes, since `tests` is not installed."""

_RANK_VARIABLES = ("RANK", "SLURM_PROCID", "LOCAL_RANK")


class Job:
    """A command with all processes that it starts, in a session of its own; `with` kills those that are left (Linux).

    Args:
        command: Its words.
        cwd: Its working directory.
        environment: Variables on top of this process's.
        forked: The command is a module's name and the words for its `main`, which a fork of this process calls: that
            spares the first process of the job the imports of torch and others. Processes that it starts are new ones.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        cwd: Path | None = None,
        environment: Mapping[str, str] | None = None,
        forked: bool = False,
    ) -> None:
        self._name = uuid.uuid4().hex
        self._torchrun = "torch.distributed.run" in command
        self._final_output: str | None = None
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 (closed by __exit__)
        self.process: Any = (_Fork if forked else subprocess.Popen)(
            list(command),
            cwd=cwd,
            env={"OMP_NUM_THREADS": "1", **os.environ, **(environment or {}), _JOB_VARIABLE: self._name},
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    @classmethod
    def divot(
        cls,
        *words: str,
        fault: Fault | None = None,
        torchrun: int | None = None,
        cwd: Path | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> "Job":
        """Start a `divot` command, its first process as a fork of this one unless torchrun starts it.

        Args:
            *words: Its words.
            fault: What goes wrong in it.
            torchrun: Start so many processes with torchrun, instead of Lightning doing so.
            cwd: Its working directory.
            environment: Variables on top of this process's.
        """
        variables = {"PYTHONPATH": os.pathsep.join([str(CHECKOUT), *filter(None, [os.environ.get("PYTHONPATH")])])}
        if fault:
            variables[VARIABLE] = json.dumps(asdict(fault))
        variables |= environment or {}
        if not torchrun:
            module = "tests.helpers.faults" if fault else "divot_lightning.__main__"
            return cls([module, *words], cwd=cwd, environment=variables, forked=True)
        launcher = ["torch.distributed.run", "--standalone", f"--nproc-per-node={torchrun}"]
        command = [sys.executable, "-m", *launcher, "-m", "tests.helpers.faults", *words]
        return cls(command, cwd=cwd, environment=variables)

    def __enter__(self) -> "Job":
        return self

    def __exit__(self, *exc: object) -> None:
        deadline = time.monotonic() + GONE_SECONDS
        # Killed orphans are not ours to wait for, and a process may just have been started.
        while self.processes() and time.monotonic() < deadline:
            self.send(signal.SIGKILL)
            time.sleep(0.01)
        self.process.wait()
        self._final_output = self.output
        self._log.close()

    @property
    def output(self) -> str:
        """What all processes have written so far, to stdout and stderr."""
        if self._final_output is not None:
            return self._final_output
        size = os.fstat(self._log.fileno()).st_size
        return os.pread(self._log.fileno(), size, 0).decode(errors="replace")

    def wait(self, timeout: float = 120.0) -> int:
        """Wait for the end.

        Returns:
            The exit status, negative if a signal ended it.

        Raises:
            TimeoutError: It takes longer than `timeout`; the message holds the output.
        """
        try:
            return self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise TimeoutError(f"still running after {timeout:g} s; its output:\n{self.output}") from None

    def wait_for(self, file: Path, timeout: float = 120.0) -> None:
        """Wait until a file is there.

        Raises:
            TimeoutError: The job ended before, or it takes longer; the message holds the output.
        """
        deadline = time.monotonic() + timeout
        while not file.exists():
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise TimeoutError(f"no {file} from a job with status {self.process.poll()}:\n{self.output}")
            time.sleep(0.02)

    def processes(self) -> dict[int, dict[str, str]]:
        """Return the variables that each living process of the job was started with, oldest process first.

        A forked process, whose variables are those of this process, is found by its session.
        """
        numbers = sorted(int(path.name) for path in Path("/proc").iterdir() if path.name.isdecimal())
        started = {pid: variables for pid in numbers if (variables := _environment(pid))}
        return {pid: variables for pid, variables in started.items() if self._is_ours(pid, variables)}

    def _is_ours(self, pid: int, variables: Mapping[str, str]) -> bool:
        with contextlib.suppress(ProcessLookupError):
            return variables.get(_JOB_VARIABLE) == self._name or os.getsid(pid) == self.process.pid
        return False

    def ranks(self) -> dict[int, int]:
        """Return the process of each rank on this machine, found by a variable of its launcher.

        Processes that a rank starts inherit its variables; the oldest one is the rank. Without such variables it is
        the process that starts the others, unless that is torchrun.
        """
        found: dict[int, int] = {}
        for pid, variables in self.processes().items():
            rank = next((variables[name] for name in _RANK_VARIABLES if name in variables), None)
            if rank is None and pid == self.process.pid and not self._torchrun:
                rank = "0"
            if rank is not None:
                found.setdefault(int(rank), pid)
        return found

    def send(self, number: signal.Signals, rank: int | None = None) -> None:
        """Send a signal to one rank, or to all processes of the job, as a scheduler does."""
        for pid in self.processes() if rank is None else [self.ranks()[rank]]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)


def _environment(pid: int) -> dict[str, str]:
    try:
        words = Path(f"/proc/{pid}/environ").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return {}
    return dict(word.split("=", 1) for word in words if "=" in word)


class _Fork:
    """A module's `main` in a fork of this process; takes what `Job` gives `subprocess.Popen` and answers like it."""

    def __init__(self, command: Sequence[str], *, cwd: Path | None, env: Mapping[str, str], stdout: Any, **_: Any):
        self.returncode: int | None = None
        self.pid = os.fork()
        if self.pid == 0:
            status = 1
            try:
                status = _call_main(command, cwd or Path.cwd(), env, stdout.fileno())
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(status)
        while self.poll() is None and os.getsid(self.pid) != self.pid:
            time.sleep(0.001)  # by its session it is found

    def poll(self) -> int | None:
        """Return the exit status, negative if a signal ended it; None while it runs."""
        if self.returncode is None:
            done, status = os.waitpid(self.pid, os.WNOHANG)
            self.returncode = os.waitstatus_to_exitcode(status) if done else None
        return self.returncode

    def wait(self, timeout: float = 3600.0) -> int:
        """Return the exit status once it has ended."""
        deadline = time.monotonic() + timeout
        while (status := self.poll()) is None:
            if time.monotonic() > deadline:
                raise subprocess.TimeoutExpired(str(self.pid), timeout)
            time.sleep(0.02)
        return status


def _call_main(command: Sequence[str], cwd: Path, variables: Mapping[str, str], log: int) -> int:
    """Turn this process, a fork, into `python -m` of a module, with a session of its own."""
    os.setsid()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    for target, descriptor in ((0, os.open(os.devnull, os.O_RDONLY)), (1, log), (2, log)):
        os.dup2(descriptor, target)
    sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1, closefd=False) for number in (1, 2))
    os.chdir(cwd)
    tempfile.tempdir = None
    os.environ.clear()
    os.environ.update(variables)
    sys.path[:0] = variables.get("PYTHONPATH", "").split(os.pathsep)
    module = importlib.import_module(command[0])
    sys.modules["__main__"] = module  # the launcher starts the other ranks with the name of this one
    sys.argv = [str(module.__file__), *command[1:]]
    status: int = module.main()
    return status
