"""The most memory that this process has taken so far."""

import resource
import sys
from pathlib import Path

_STATUS = Path("/proc/self/status")
_BYTES_PER_MAXRSS = 1 if sys.platform == "darwin" else 1024


def peak_bytes() -> int:
    """Return the peak of the process's resident memory in bytes.

    On Linux it is read from the kernel's file about the process. `getrusage` would be wrong there: a process that a
    larger one has started begins with the peak of that one.
    """
    if _STATUS.is_file():
        lines = _STATUS.read_text(encoding="ascii", errors="replace").splitlines()
        peak = next((line for line in lines if line.startswith("VmHWM:")), None)
        if peak is not None:
            return int(peak.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _BYTES_PER_MAXRSS
