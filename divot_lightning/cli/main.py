"""The `divot` command: a table of subcommands, one module each, imported only when it runs.

Nothing here imports torch, so that `divot --help` and a mistyped command answer at once.
"""

import errno
import importlib
import os
import select
import shlex
import signal
import sys
import traceback
from collections.abc import Callable, Sequence

from divot_lightning import __version__
from divot_lightning.distributed.failures import RankFailed, note_failure
from divot_lightning.distributed.parent import bind_to_torchrun
from divot_lightning.errors import UserError, did_you_mean, first_line, shortened
from divot_lightning.io.printing import printable
from divot_lightning.io.progress_bars import slow_progress_bars

COMMANDS: dict[str, str] = {
    "quickstart": "train every stage on toy data, compare the heads, write report.html",
    "fit": "train one stage: divot fit --config toy/tokenizer_pretraining",
    "resume": "continue a run that was stopped: divot resume RUN",
    "preflight": "estimate the memory and disk of a recipe: divot preflight --config RECIPE",
    "validate": "measure a run on its validation data: divot validate RUN",
    "test": "measure a run on its test data: divot test RUN",
    "evaluate": "run a benchmark, write predictions and scores: divot evaluate RUN",
    "compare": "show scores side by side, and what differs between them",
    "ablate": "run an experiment and compare its variants: divot ablate ablations/heads",
    "reconstruct": "encode and decode clips with a run, write mp4 files",
    "ask": "answer questions about videos",
    "generate": "generate clips from text, write mp4 files",
    "story": "tell a story: sentences and clips in turn",
    "demo": "open a page in the browser to try runs: divot demo RUN [RUN ...]",
    "import": "turn a downloaded checkpoint into a folder to train from or to use: divot import KIND FILE --to FOLDER",
    "export": "write a run's models for transformers, PEFT and diffusers: divot export RUN --to FOLDER",
    "parts": "list the installed parts that a recipe can choose: divot parts [KIND]",
    "heads": "list the installed generation heads",
    "data": "make, pack, inspect and encode shards: divot data toy|pack|inspect|...",
}
"""Every subcommand with its line in `divot --help`; `<name>` is served by `divot_lightning.cli.<name>:main`."""

SEVERAL = "several"
"""Runs the commands that follow, each one word, until one fails. Steps of experiments use it: importing torch takes
longer than a small command."""

FULL_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""A full disk, a user's full quota, or a file that may not grow so large."""

PATH_ERRORS = (errno.EACCES, errno.EPERM, errno.EROFS, errno.EISDIR, errno.ENOTDIR, errno.ENAMETOOLONG, *FULL_ERRORS)
"""Errors of a path that a user can fix, not faults of our code."""

MAX_ERROR_LINES = 5
"""More lines would scroll the first one away."""

MAX_LINE_CHARACTERS = 500
"""Longer lines of a message are cut, such as a library's list of all its names."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one `divot` command.

    Args:
        argv: The words after `divot`; those of the process when None.

    Returns:
        The exit status: 0 done, 1 a failure, 2 the user can fix something, 75 stopped by a signal with everything
        saved, 130 stopped by Ctrl-C, 141 nobody reads the output any more (`divot parts | head`).
    """
    bind_to_torchrun()
    slow_progress_bars()
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("-h", "--help"):
        sys.stdout.write(help_text())
        return 0
    if words[0] == "--version":
        sys.stdout.write(f"divot-lightning {__version__}\n")
        return 0
    if words[0] == SEVERAL:
        return next((status for command in words[1:] if (status := main(shlex.split(command)))), 0)
    return run_guarded(words[0], words[1:])


def run_guarded(command: str, argv: list[str]) -> int:
    """Run `command`: a `UserError` is shown as at most five lines on stderr, and Ctrl-C returns the status 130.

    `DIVOT_TRACEBACK=1` in the environment also shows the traceback of a `UserError`.
    """
    try:
        if command not in COMMANDS:
            raise UserError(_unknown_command(command))
        return _run(command, argv)
    except UserError as error:
        if os.environ.get("DIVOT_TRACEBACK") == "1":
            traceback.print_exc()
        text = error_text(error)
        if not note_failure(error, text.removeprefix("error: ").rstrip(), by_user=True):
            sys.stderr.write(text)
        return 2
    except RankFailed as error:
        sys.stderr.write(error_text(error))
        return error.exit_code
    except BrokenPipeError:
        if not _reader_is_gone():
            raise
        # Nobody reads what is left in the buffer, and Python would complain of it at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except Exception as error:
        note_failure(error, f"{type(error).__name__}: {error}", by_user=False)
        raise
    except KeyboardInterrupt:
        sys.stderr.write("stopped\n")
        return 130


def _reader_is_gone() -> bool:
    """Return whether stdout is a pipe whose other end was closed, as by `head`."""
    poll = select.poll()
    poll.register(sys.stdout, 0)  # an error is reported even when no event is asked for
    return any(event & select.POLLERR for _, event in poll.poll(0))


def _run(command: str, argv: list[str]) -> int:
    """Run a command, and turn errors of files and of memory that a user can fix into a `UserError`."""
    module = importlib.import_module(f"divot_lightning.cli.{command}")
    try:
        return _flushed(module.main, argv)
    except OSError as error:
        if error.errno not in PATH_ERRORS or (error.filename is None and error.errno not in FULL_ERRORS):
            raise
        path = "a file" if error.filename is None else error.filename
        advice = "make room there" if error.errno in FULL_ERRORS else "give a path where you may write"
        raise UserError(f"{path} cannot be opened or written: {error.strerror}\n{advice}, and repeat") from error
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise UserError(
            f"not enough memory: {first_line(error)}\n"
            "take smaller sizes or batches, or more devices; divot preflight --config RECIPE estimates memory\n"
            "DIVOT_TRACEBACK=1 in the environment shows where it was needed"
        ) from error


def _flushed(command: Callable[[list[str]], int], argv: list[str]) -> int:
    try:
        return int(command(argv))
    finally:
        if sys.stdout is not None:  # none: closed from the start
            sys.stdout.flush()  # now, while a closed pipe can be caught


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error means that a device or the machine has not enough memory. Torch is not imported here."""
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or "can't allocate memory" in str(error)
    )


def error_text(error: Exception) -> str:
    r"""Return the text shown for `error`: `error: ...`, at most `MAX_ERROR_LINES` lines.

    Example:
        >>> error_text(ValueError("size is 3; allowed: 16, 32"))
        'error: size is 3; allowed: 16, 32\n'
    """
    lines = [printable(line.rstrip()) for line in str(error).splitlines() if line.strip()]
    clipped = [shortened(line, MAX_LINE_CHARACTERS) for line in lines]
    return "error: " + "\n".join(clipped[:MAX_ERROR_LINES]) + "\n"


def help_text() -> str:
    """Return what `divot --help` prints."""
    width = max(map(len, COMMANDS))
    table = "\n".join(f"  {name:<{width}}  {line}" for name, line in COMMANDS.items())
    return f"""usage: divot COMMAND [OPTIONS]

Train, compare and use Divot: a diffusion-powered video tokenizer and the video LLM on top of it.

commands:
{table}

`divot COMMAND --help` shows the options of a command; `divot --version` prints the version.
"""


def _unknown_command(command: str) -> str:
    hint = did_you_mean(command, COMMANDS, "divot {}")
    return f"there is no command {command!r}.{hint}\ncommands: {', '.join(COMMANDS)}"


if __name__ == "__main__":
    sys.exit(main())
