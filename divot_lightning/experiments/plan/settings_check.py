"""Check the settings of all steps before the first one runs, in a process of its own that imports torch.

`python -m divot_lightning.experiments.plan.settings_check` reads the command of each step as JSON, and writes the
errors as JSON.
"""

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence

from divot_lightning.errors import UserError
from divot_lightning.experiments.plan.commands import MEASURE
from divot_lightning.experiments.runner.steps import Step
from divot_lightning.io.quick_imports import quick_imports

CHECK = (sys.executable, "-m", "divot_lightning.experiments.plan.settings_check")


def wrong_settings(steps: Sequence[Step]) -> dict[str, str]:
    """Parse the settings of training steps as `divot fit` does, and those of measurements; nothing is built.

    Args:
        steps: Steps of an experiment; those of other commands are ignored.

    Returns:
        One line of error by name of the step. Errors that a class raises when it is built are not found.
    """
    ours = [step for step in steps if step.run is not None or step.command[: len(MEASURE)] == MEASURE]
    checked = {step.name: step.command for step in ours}
    if not checked:
        return {}
    child = subprocess.run(CHECK, input=json.dumps(checked), capture_output=True, text=True, check=False)
    assert child.returncode == 0, child.stderr
    return json.loads(child.stdout.splitlines()[-1])


def main(commands: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """Parse the command of each step, and return the errors by step."""
    wrong = {}
    for name, command in commands.items():
        try:
            _parse(command)
        except UserError as error:
            wrong[name] = " ".join(str(error).split())
        except Exception as error:  # raised by a class of a plug-in; it must stop no other trial
            wrong[name] = f"{type(error).__name__}: {' '.join(str(error).split())}"
    return wrong


def _parse(command: Sequence[str]) -> None:
    with quick_imports():
        from divot_lightning.experiments.measure import prepare
        from divot_lightning.training.training_args import resolve_recipes
        from divot_lightning.training.training_cli import SettingsOnly

    if tuple(command[: len(MEASURE)]) == MEASURE:
        for settings in json.loads(command[len(MEASURE)]):
            prepare(settings)
    else:
        SettingsOnly(resolve_recipes(list(command[command.index("fit") + 1 :])), "divot fit", "measure")


if __name__ == "__main__":
    print(json.dumps(main(json.load(sys.stdin))))
