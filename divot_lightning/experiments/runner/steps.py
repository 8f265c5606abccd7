"""Define a step of a job. Nothing here imports torch, so that the process that runs the steps stays small."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from divot_lightning.errors import UserError


@dataclass(frozen=True)
class Step:
    """One process of a longer job.

    Attributes:
        name: Unique name, also of its log and its record.
        command: Its command line.
        after: Names of the steps that must be done before.
        run: The run folder of a step that trains. With a checkpoint in it, the step continues with `resume`; without,
            the folder is removed and the step starts again.
        resume: The command line that continues `run`.
        outputs: Files and folders that only this step writes: they are cleared before it is started again, and a step
            that ends without them has failed.
        slots: Number of worker slots of the job that it takes, and of torch threads.
    """

    name: str
    command: tuple[str, ...]
    after: tuple[str, ...] = ()
    run: Path | None = None
    resume: tuple[str, ...] = ()
    outputs: tuple[Path, ...] = ()
    slots: int = 1


def check_plan(steps: Sequence[Step]) -> None:
    """Check that steps can run in the given order.

    Raises:
        UserError: A name appears twice, or a step waits for one that does not come before it.

    >>> check_plan([Step("data", ("true",)), Step("fit", ("true",), after=("data",))])
    """
    known: set[str] = set()
    for step in steps:
        if step.name in known:
            raise UserError(f"two steps are called {step.name!r}; give each a name of its own")
        for name in step.after:
            if name not in known:
                raise UserError(f"step {step.name!r} waits for {name!r}, which does not come before it")
        known.add(step.name)
