"""Check the settings of all training steps before the first step runs, in a process of its own that imports torch.

`python -m divot_lightning.experiments.ablation.settings_check` reads the words after `divot fit` of each step as JSON,
and writes the errors of each step as JSON.
"""

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence

from divot_lightning.errors import UserError
from divot_lightning.experiments.runner.steps import Step

CHECK = (sys.executable, "-m", "divot_lightning.experiments.ablation.settings_check")


def wrong_settings(steps: Sequence[Step]) -> dict[str, str]:
    """Parse the settings of training steps as `divot fit` does; nothing is built.

    Args:
        steps: Steps of an ablation; those that do not train are ignored.

    Returns:
        One line of error by name of the step. Errors that a class raises when it is built are not found.
    """
    words = {step.name: step.command[step.command.index("fit") + 1 :] for step in steps if step.run is not None}
    if not words:
        return {}
    child = subprocess.run(CHECK, input=json.dumps(words), capture_output=True, text=True, check=False)
    assert child.returncode == 0, child.stderr
    found: dict[str, str] = json.loads(child.stdout.splitlines()[-1])
    return found


def main(words_of_steps: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """Parse the words of each step, and return the errors by step."""
    from divot_lightning.training.training_args import resolve_recipes
    from divot_lightning.training.training_cli import SettingsOnly

    wrong = {}
    for name, words in words_of_steps.items():
        try:
            SettingsOnly(resolve_recipes(list(words)), "divot fit", "measure")
        except UserError as error:
            wrong[name] = " ".join(str(error).split())
        except Exception as error:  # raised by a class of a plug-in; it must stop no other trial
            wrong[name] = f"{type(error).__name__}: {' '.join(str(error).split())}"
    return wrong


if __name__ == "__main__":
    print(json.dumps(main(json.load(sys.stdin))))
