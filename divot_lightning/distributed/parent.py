"""No process of ours outlives the one that started it, however that one ended. No torch.

Whoever starts a process names itself in `DIVOT_PARENT`; the started one binds itself to it as the first thing that it
does when this package is imported, long before the seconds that importing torch takes.
"""

import ctypes
import os
import signal
import sys
import threading
import time
from typing import Literal

VARIABLE = "DIVOT_PARENT"
"""Holds the number of the process that starts another one, and which signal that one gets when it is gone."""

PR_SET_PDEATHSIG = 1  # linux/prctl.h

LOOK_SECONDS = 1.0

LEAVE_SECONDS = 6.0
"""A process that is asked to stop since its parent is gone may save for so long; it is gone ten seconds after it."""


def named_parent(ending: Literal["KILL", "TERM"]) -> dict[str, str]:
    """Return the variable for a process that this one starts directly.

    Args:
        ending: What it gets when this process is gone: `KILL` if it can do nothing alone, `TERM` if it can save.
    """
    return {VARIABLE: f"{os.getpid()}:{ending}"}


def bind_to_named_parent() -> None:
    """Bind this process to the one that `DIVOT_PARENT` names, if any; those that it starts do not inherit the name."""
    parent, _, ending = os.environ.pop(VARIABLE, "").partition(":")
    if ending == "KILL":
        bind_to_parent(int(parent), signal.SIGKILL)
    elif ending == "TERM" and os.getppid() == int(parent):  # a shell in between watches over its own
        bind_to_parent(int(parent), signal.SIGTERM)


def bind_to_torchrun() -> None:
    """Have a process of torchrun's stop when that is gone: the ranks save together, if time allows."""
    if "TORCHELASTIC_RUN_ID" in os.environ:
        bind_to_parent(os.getppid(), signal.SIGTERM)


def bind_to_parent(parent: int, number: signal.Signals) -> None:
    """Have this process get a signal when its parent is gone, now if it is gone already.

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
