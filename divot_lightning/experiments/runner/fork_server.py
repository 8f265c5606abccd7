"""Start steps from a process that has imported torch and the rest already; in a fresh process that takes seconds.

A step of an experiment is a process of its own, so that it can be killed, logged and measured alone. Most of them
import the same libraries. The server imports them once and forks a process for each step, which shares their memory.

`multiprocessing` has such a server too. It is one for the whole process, with the environment of its first use, and its
processes outlive a parent that is killed; steps must end with their parent.
"""

import contextlib
import importlib
import json
import os
import re
import runpy
import select
import signal
import socket
import subprocess
import sys
import warnings
from collections.abc import Mapping, Sequence
from typing import IO, NoReturn

from divot_lightning.distributed.parent import bind_to_parent
from divot_lightning.io.progress_bars import slow_progress_bars
from divot_lightning.io.quick_imports import quick_imports

IMPORTS = ("divot_lightning.training.runs", "divot_lightning.experiments.measure")
"""What the steps of an experiment import; with it comes everything that takes long."""
MESSAGE_BYTES = 2**20
"""More than a socket sends at once (212,992 bytes by default), so no message is cut; a longer one cannot be sent."""
MAX_FILES = 8
LOOK_SECONDS = 0.1
PYTHON = (sys.executable, "-m")


class ForkServer:
    """A process that forks others; close it at the end.

    Args:
        environment: Of the server and of all processes that it forks.
    """

    def __init__(self, environment: Mapping[str, str]) -> None:
        self.channel, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.ended: dict[int, int] = {}
        with other:
            # -P: a file of the current folder must not take the place of a library.
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-m", __name__, str(other.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env=dict(environment),
                pass_fds=(other.fileno(),),
                start_new_session=True,
            )

    def start(self, command: Sequence[str], log: IO[bytes], keep_open: Sequence[int] = ()) -> "ForkedProcess":
        """Start a process that runs a module, and return it.

        Args:
            command: As for a fresh process: `PYTHON`, the name of a module, and its arguments.
            log: Where its output and its errors go.
            keep_open: File descriptors that it inherits.

        Raises:
            OSError: The server has ended.
        """
        assert tuple(command[:2]) == PYTHON, command
        socket.send_fds(self.channel, [json.dumps(command[2:]).encode()], [log.fileno(), *keep_open])
        while True:
            name, number, status = self._receive()
            if name == "started":
                self.ended.pop(number, None)  # numbers come back after a while
                return ForkedProcess(number, self)
            self.ended[number] = status

    def status(self, pid: int) -> int | None:
        """Return how a process has ended, as `subprocess` does; None while it runs."""
        with contextlib.suppress(OSError):
            while pid not in self.ended and select.select([self.channel], [], [], 0)[0]:
                _, number, status = self._receive()
                self.ended[number] = status
        # Processes end with their server.
        return self.ended.get(pid, None if self.process.poll() is None else -signal.SIGTERM)

    def _receive(self) -> tuple[str, int, int]:
        message = self.channel.recv(MESSAGE_BYTES)
        if not message:
            raise ConnectionResetError("the process that starts the steps has ended")
        name, pid, status = json.loads(message)
        return name, pid, status

    def close(self) -> None:
        """End the server, and with it the processes that still run."""
        self.channel.close()
        self.process.terminate()  # it may still be importing
        self.process.wait()


class ForkedProcess:
    """A process of a `ForkServer`, with the methods of `subprocess.Popen` that a runner needs."""

    def __init__(self, pid: int, server: ForkServer) -> None:
        self.pid, self.server = pid, server

    def poll(self) -> int | None:
        """Return the exit status, negative for a signal; None while the process runs."""
        return self.server.status(self.pid)

    def send_signal(self, number: int) -> None:
        """Send a signal, unless the process has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)


def serve(channel: socket.socket) -> None:
    """Fork a process for each message of the channel, and report when it starts and ends, until the channel is closed.

    Args:
        channel: Its messages are the words after `PYTHON` as JSON, with the log and other files to keep open.
    """
    slow_progress_bars()
    # Afterwards no search for garbage looks at what was imported: that would copy the memory that is shared.
    with quick_imports():
        for name in IMPORTS:
            with contextlib.suppress(ImportError):  # whoever needs it says so in its log
                importlib.import_module(name)
    while True:
        if select.select([channel], [], [], LOOK_SECONDS)[0]:
            words, files, _, _ = socket.recv_fds(channel, MESSAGE_BYTES, MAX_FILES)
            if not words:
                return
            _fork(json.loads(words), files, channel)
        _report_ended(channel)


def _fork(words: list[str], files: list[int], channel: socket.socket) -> None:
    server = os.getpid()
    pid = os.fork()
    if pid == 0:
        channel.close()
        _run(words, files[0], server)
    for file in files:
        os.close(file)
    channel.send(json.dumps(["started", pid, 0]).encode())


def _report_ended(channel: socket.socket) -> None:
    with contextlib.suppress(ChildProcessError):
        while (ended := os.waitpid(-1, os.WNOHANG))[0]:
            channel.send(json.dumps(["ended", ended[0], os.waitstatus_to_exitcode(ended[1])]).encode())


def _run(words: Sequence[str], log: int, server: int) -> NoReturn:
    """Become what `python -m WORDS` would be, with its output in the log."""
    os.setsid()
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.close(log)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    bind_to_parent(server, signal.SIGTERM)
    sys.argv = list(words)
    # A fresh process would not have imported the module that it runs; `runpy` warns of that.
    warnings.filterwarnings("ignore", f"{re.escape(repr(words[0]))} found in sys.modules", RuntimeWarning)
    runpy.run_module(words[0], run_name="__main__", alter_sys=True)
    sys.exit()


if __name__ == "__main__":
    with socket.socket(fileno=int(sys.argv[1])) as opened:
        serve(opened)
