"""Start, watch and stop child processes: they end with their parent, and may save when they are stopped."""

import contextlib
import ctypes
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from types import FrameType
from typing import IO, Protocol

from divot_lightning.distributed.parent import PR_SET_PDEATHSIG, named_parent

SAVE_SECONDS = 600.0
"""Seconds that a stopped process has to save and end; a checkpoint of billions of parameters takes minutes."""
POLL_SECONDS = 0.05
GPU_LIST = Path("/proc/driver/nvidia/gpus")
"""Holds one folder per GPU if NVIDIA's driver is loaded."""


class Process(Protocol):
    """What a runner needs of a process; `subprocess.Popen` has it."""

    @property
    def pid(self) -> int:
        """Its number."""

    def poll(self) -> int | None:
        """Return the exit status, negative for a signal; None while the process runs."""

    def send_signal(self, number: int, /) -> None:
        """Send a signal, unless the process has ended."""


def _prepare_child(parent: int) -> None:
    """Run in the child before its program starts."""
    # A job in the background ignores SIGINT, and its children would inherit that. But at SIGINT they save.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    if sys.platform == "linux":
        # The kernel sends SIGTERM when the parent dies, however that happens. A divot command then saves, within the
        # time limit of `divot_lightning.distributed.parent`.
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:
            os._exit(1)


def start_process(
    command: Sequence[str],
    log: IO[bytes],
    *,
    threads: int,
    gpus: Sequence[str] | None = None,
    keep_open: Sequence[int] = (),
) -> "subprocess.Popen[bytes]":
    """Start a process with a log and a given number of threads.

    Args:
        command: Its words.
        log: Where its output and its errors go.
        threads: Threads of torch and of everything else that reads OMP_NUM_THREADS.
        gpus: GPUs that it may use, named as in CUDA_VISIBLE_DEVICES; None for all GPUs of this process.
        keep_open: File descriptors that it inherits.

    Returns:
        The process, in a session of its own, so that Ctrl-C reaches the parent only, which decides what to do.
    """
    environment = step_environment(threads) | named_parent("TERM")
    if gpus is not None:
        environment["CUDA_VISIBLE_DEVICES"] = ",".join(gpus)
    return subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
        env=environment,
        pass_fds=tuple(keep_open),
        start_new_session=True,
        preexec_fn=partial(_prepare_child, os.getpid()),
    )


def step_environment(threads: int) -> dict[str, str]:
    """Return the environment of a process that may use a number of threads."""
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    settings = {"PYTHONUNBUFFERED": "1", "TOKENIZERS_PARALLELISM": "false"}
    return os.environ | settings | {name: str(threads) for name in names}


def visible_gpus() -> list[str]:
    """Return the GPUs that this process may use, named as in CUDA_VISIBLE_DEVICES, without importing torch."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [name.strip() for name in named.split(",") if name.strip()]
    return [str(number) for number, _ in enumerate(GPU_LIST.iterdir())] if GPU_LIST.is_dir() else []


def deal_gpus(gpus: Sequence[str], jobs: int, slots: Sequence[int]) -> list[str] | None:
    """Return the GPUs of a process, when GPUs are divided among worker slots.

    Args:
        gpus: All GPUs.
        jobs: Number of worker slots.
        slots: Indices of the slots that the process takes, from 0.

    Returns:
        The GPUs of the process. Each slot has the same number; with fewer GPUs than slots, slots share a GPU. None if
        there is nothing to divide: no GPU, or a single slot.

    >>> deal_gpus(["0", "1", "2", "3"], 2, [1])
    ['2', '3']
    >>> deal_gpus(["0"], 2, [1])
    ['0']
    """
    if not gpus or jobs == 1:
        return None
    per_slot = max(1, len(gpus) // jobs)
    taken = [gpus[(slot * per_slot + index) % len(gpus)] for slot in slots for index in range(per_slot)]
    return list(dict.fromkeys(taken))


def resident_mib(pid: int) -> float:
    """Return the resident memory of a process and its descendants in MiB; 0 if /proc has no such process.

    Pages that processes share are counted in each of them, so this is an upper bound.
    """
    folder = Path(f"/proc/{pid}")
    try:
        pages = int((folder / "statm").read_text().split()[1])
        children = [child for task in (folder / "task").iterdir() for child in (task / "children").read_text().split()]
    except (OSError, IndexError):
        return 0.0
    own = pages * os.sysconf("SC_PAGE_SIZE") / 2**20
    return own + sum(resident_mib(int(child)) for child in children)


def stop_processes(processes: Sequence[Process], patience: float = SAVE_SECONDS) -> None:
    """Interrupt processes as Ctrl-C does, so that training saves.

    A process that still runs after `patience` seconds, or when Ctrl-C is pressed again, is killed together with all
    processes that it started: each process leads a session of its own.
    """
    for process in processes:
        process.send_signal(signal.SIGINT)
    _wait(processes, patience)
    for process in processes:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    _wait(processes)


def _wait(processes: Sequence[Process], seconds: float = math.inf) -> None:
    deadline = time.monotonic() + seconds
    with contextlib.suppress(KeyboardInterrupt):
        while time.monotonic() < deadline and any(process.poll() is None for process in processes):
            time.sleep(POLL_SECONDS)


def stop_on_terminate() -> None:
    """Make SIGTERM raise KeyboardInterrupt, so that running steps are stopped as by Ctrl-C and can save."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupt)
