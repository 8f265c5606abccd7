"""What a step is. Nothing here imports torch: the process that runs the steps stays small."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from divot_lightning.errors import UserError


@dataclass(frozen=True)
class Step:
    """One process of a longer job.

    Attributes:
        name: Unique name, also of its log and its done-marker.
        command: The words of the process.
        after: Names of the steps that must be done before.
        run: For a step that trains: its run folder. A folder with a checkpoint is continued by `resume`; one without is
            cleared and begun anew.
        resume: The words that continue `run`.
        outputs: Files and folders that only this step writes; cleared before it is started again.
        slots: How many of the job's process slots, and torch threads, it takes.
    """

    name: str
    command: tuple[str, ...]
    after: tuple[str, ...] = ()
    run: Path | None = None
    resume: tuple[str, ...] = ()
    outputs: tuple[Path, ...] = ()
    slots: int = 1


def check_plan(steps: Sequence[Step]) -> None:
    """Make sure that steps can be run in the order given.

    Raises:
        UserError: If a name appears twice, or a step waits for one that does not stand before it.

    >>> check_plan([Step("data", ("true",)), Step("fit", ("true",), after=("data",))])
    """
    known: set[str] = set()
    for step in steps:
        if step.name in known:
            raise UserError(f"two steps are called {step.name!r}; give each a name of its own")
        for name in step.after:
            if name not in known:
                raise UserError(f"step {step.name!r} waits for {name!r}, which does not stand before it")
        known.add(step.name)
