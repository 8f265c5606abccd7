"""A command with all the processes that it starts; sends signals to some or all of them. Only our own tests use it."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Literal

from tests.helpers import forks
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
        forked: Which processes of Python are forks (`tests.helpers.forks`): none, the first, or those that it starts,
            too.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        cwd: Path | None = None,
        environment: Mapping[str, str] | None = None,
        forked: Literal["none", "first", "all"] = "none",
    ) -> None:
        self._name = uuid.uuid4().hex
        self._variables = tempfile.TemporaryDirectory()  # of forks
        self._torchrun = "torch.distributed.run" in command
        self._final_output: str | None = None
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 (closed by __exit__)
        ours = {_JOB_VARIABLE: self._name, forks.FOLDER: self._variables.name}
        with contextlib.nullcontext() if forked == "none" else forks.forked_processes(deep=forked == "all"):
            self.process = subprocess.Popen(
                list(command),
                cwd=cwd,
                env={"OMP_NUM_THREADS": "1", **os.environ, **(environment or {}), **ours},
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
        forked: Literal["none", "first", "all"] = "all",
    ) -> "Job":
        """Start a `divot` command.

        Args:
            *words: Its words.
            fault: What goes wrong in it.
            torchrun: Start so many processes with torchrun, instead of Lightning doing so.
            cwd: Its working directory.
            environment: Variables on top of this process's.
            forked: As for `Job`.
        """
        variables = {"PYTHONPATH": os.pathsep.join([str(CHECKOUT), *filter(None, [os.environ.get("PYTHONPATH")])])}
        if fault:
            variables[VARIABLE] = json.dumps(asdict(fault))
        variables |= environment or {}
        module = "tests.helpers.faults" if fault or torchrun else "divot_lightning"
        command = ["-m", module, *words]
        if torchrun:
            command = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={torchrun}", *command]
        return cls([sys.executable, *command], cwd=cwd, environment=variables, forked=forked)

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
        self._variables.cleanup()

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

        A worker, which is forked in another way and shows the variables of this process, is found by its session.
        """
        numbers = sorted(int(path.name) for path in Path("/proc").iterdir() if path.name.isdecimal())
        folder = Path(self._variables.name)
        started = {pid: variables for pid in numbers if (variables := forks.variables_of(pid, folder))}
        return {pid: variables for pid, variables in started.items() if self._is_ours(pid, variables)}

    def _is_ours(self, pid: int, variables: Mapping[str, str]) -> bool:
        with contextlib.suppress(ProcessLookupError):
            ours = variables.get(_JOB_VARIABLE) == self._name
            return (
                ours
                or (leader := os.getsid(pid)) == self.process.pid
                or Path(self._variables.name, str(leader)).exists()
            )
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
