"""End a process of ours when the process that started it has ended, for any reason. No torch.

The starting process writes its number into `DIVOT_PARENT`. The started process binds itself to it when this package is
imported, before torch, whose import takes seconds.
"""

import ctypes
import os
import signal
import sys
import threading
import time
from typing import Literal

VARIABLE = "DIVOT_PARENT"
"""Has the number of the parent process, and the signal that the child gets when the parent has ended."""

PR_SET_PDEATHSIG = 1  # linux/prctl.h

LOOK_SECONDS = 1.0

LEAVE_SECONDS = 6.0
"""Seconds for saving, for a process that is stopped because its parent ended: it ends within ten seconds of it."""


def named_parent(ending: Literal["KILL", "TERM"]) -> dict[str, str]:
    """Return the variable for a process that this one starts directly.

    Args:
        ending: The signal it gets when this process has ended: `TERM` if it can save by itself, else `KILL`.
    """
    return {VARIABLE: f"{os.getpid()}:{ending}"}


def bind_to_named_parent() -> None:
    """Bind this process to the one that `DIVOT_PARENT` names, if any; its own children do not inherit the variable."""
    parent, _, ending = os.environ.pop(VARIABLE, "").partition(":")
    if ending == "KILL":
        bind_to_parent(int(parent), signal.SIGKILL)
    elif ending == "TERM" and os.getppid() == int(parent):  # a shell in between watches over its own
        bind_to_parent(int(parent), signal.SIGTERM)


def bind_to_torchrun() -> None:
    """Stop this process when torchrun, which started it, has ended; the ranks save together if time allows."""
    if "TORCHELASTIC_RUN_ID" in os.environ:
        bind_to_parent(os.getppid(), signal.SIGTERM)


def bind_to_parent(parent: int, number: signal.Signals) -> None:
    """Send this process a signal when its parent has ended, or now if it has ended already.

    Args:
        parent: The process that started this one.
        number: SIGKILL, or SIGTERM, which is followed by SIGKILL after `LEAVE_SECONDS`.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, number)
    if os.getppid() != parent:
        os.kill(os.getpid(), number)
    if number != signal.SIGKILL or sys.platform != "linux":
        threading.Thread(target=_end_with, args=(parent, number), daemon=True, name="parent-watch").start()


def _end_with(parent: int, number: signal.Signals) -> None:
    while os.getppid() == parent:
        time.sleep(LOOK_SECONDS)
    if sys.platform != "linux":
        os.kill(os.getpid(), number)
    time.sleep(LEAVE_SECONDS)
    os.kill(os.getpid(), signal.SIGKILL)
