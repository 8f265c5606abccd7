"""A polite SIGTERM ends a job like Ctrl-C."""

import signal
from types import FrameType


def stop_on_terminate() -> None:
    """Make SIGTERM raise KeyboardInterrupt, so that steps are stopped and can save."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupt)
