"""What a job says when a step fails."""

from collections.abc import Sequence
from pathlib import Path

from divot_lightning.experiments.runner.steps import Step

MAX_CHARACTERS = 300
"""Longer lines are cut."""


def failed_step(step: Step, status: int, log: Path) -> str:
    """Return the message about a step that ended with an exit status other than 0."""
    text = log.read_text(encoding="utf-8", errors="replace").replace("\r", "\n")
    lines = [line for line in text.splitlines() if line.strip()]
    # The first line of our own errors names the problem; further lines may follow.
    reason = next((line for line in reversed(lines) if line.startswith("error: ")), lines[-1])
    return (
        f"step {step.name!r} failed with exit status {status}:\n{reason[:MAX_CHARACTERS]}\n"
        f"Its whole output: {log}\nThe same command continues from here."
    )


def missing_outputs(step: Step, missing: Sequence[str], log: Path) -> str:
    """Return the message about a step that did not write what other steps read."""
    return (
        f"step {step.name!r} ended without an error, but\nit did not write {', '.join(missing)}\n"
        f"Its command must write what other steps read. Its whole output: {log}"
    )


def other_command(folder: Path, step: Step, done: Sequence[str]) -> str:
    """Return the message about a step that was done before with another command."""
    before, now = (" ".join(command)[:MAX_CHARACTERS] for command in (done, step.command))
    return (
        f"{folder} holds step {step.name!r}, done with another command:\n{before}\n"
        f"now it is: {now}\nGive another --folder, or remove this one."
    )


def other_recipe(folder: Path, step: Step) -> str:
    """Return the message about a step that was started before with a recipe that has changed since."""
    record = folder / "steps" / f"{step.name}.json"
    again = f"{record} and {step.run}" if step.run else str(record)
    return (
        f"{folder} holds step {step.name!r}, started with a recipe that has changed since:\n"
        f"{' '.join(step.command)[:MAX_CHARACTERS]}\nGive another --folder, or undo the change of the recipe.\n"
        f"To run it again, remove {again}, and the same of all steps that read what it wrote."
    )
