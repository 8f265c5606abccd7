"""Time steps of the toy's tokenizer stages, as `divot fit` runs them, and of plain loops; see `training_step.py`."""

import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.plain_loops import Steps, plain_steps
from divot_datamodules.toy.shards import ToyDataConfig, write_toy_data
from divot_lightning.training.optimization import configure_optimizer
from divot_lightning.training.recipe_files import find_recipe
from divot_lightning.training.training_cli import TrainingCLI

WARM_UP = 2
"""Steps that are not counted: the first ones allocate memory."""


class Stopwatch(Callback):
    """Note when each step begins, and its loss."""

    def __init__(self) -> None:
        self.steps = Steps([], [])

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.steps.begun.append(time.process_time())

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.steps.losses.append(outputs["loss"].item())


def measure_stages(rounds: int, steps: int, device: str) -> dict[str, list[float]]:
    """Return the ratios of each stage's steps with `divot fit` to those of a plain loop."""
    found: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_toy_data(folder / "toy", ToyDataConfig(train=max(256, 16 * (steps + WARM_UP)), validation=4, held_out=4))
        previous: list[str] = []
        trainer = ["--trainer.max_steps", str(steps + WARM_UP), "--trainer.limit_val_batches", "0"]
        trainer += ["--trainer.accelerator", device.replace("cuda", "gpu")]
        for stage in ("tokenizer_pretraining", "detokenizer_refinement"):
            words = ["--config", str(find_recipe(f"toy/{stage}")), "--data.train", str(folder / "toy" / "train")]
            words += ["--data.validation", "null", "--trainer.limit_val_batches", "0", *previous]
            words += [
                "--trainer.max_steps",
                str(steps + WARM_UP),
                "--trainer.accelerator",
                device.replace("cuda", "gpu"),
            ]
            found[stage] = list(_ratios(words, folder / stage, rounds))
            previous = ["--model.previous", str(folder / stage / "fit0")]
    return found


def _ratios(words: list[str], folder: Path, rounds: int) -> Iterator[float]:
    for number in range(rounds):
        ways = {"fit": _fit, "plain": _plain}
        names = list(ways)[:: 1 if number % 2 else -1]
        steps = {way: ways[way]([*words, "--run", str(folder / f"{way}{number}")]) for way in names}
        torch.testing.assert_close(steps["fit"].losses, steps["plain"].losses, rtol=1e-4, atol=1e-5)
        seconds = {way: found.begun[-1] - found.begun[WARM_UP] for way, found in steps.items()}
        yield seconds["fit"] / seconds["plain"]


def _fit(words: list[str]) -> Steps:
    cli, watch = TrainingCLI(words, "divot fit", "start"), Stopwatch()
    cli.trainer.callbacks.append(watch)
    cli.trainer.fit(cli.model, cli.datamodule)
    return watch.steps


def _plain(words: list[str]) -> Steps:
    cli = TrainingCLI(words, "divot fit", "measure")
    stage, num_steps = cli.model, cli.trainer.max_steps
    stage.configure_model()
    stage.train()
    stage.to(cli.trainer.strategy.root_device)
    cli.datamodule.setup("fit")
    built: Any = configure_optimizer(stage, stage.optimizer_config, num_steps)
    loader = cli.datamodule.train_dataloader()
    return plain_steps(stage, loader, built["optimizer"], built["lr_scheduler"]["scheduler"], num_steps)
