"""Let SIGTERM end a job as Ctrl-C does: running steps may save first."""

import signal
from types import FrameType


def stop_on_terminate() -> None:
    """Make SIGTERM raise KeyboardInterrupt, so that steps are stopped and can save."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupt)
