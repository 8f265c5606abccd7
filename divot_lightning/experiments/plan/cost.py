"""Measure the cost of one training step of a recipe.

Run: `python -m divot_lightning.experiments.plan.cost OUTPUT --config ...`

Operations are counted by torch's flop counter over whole optimizer steps: forward and backward of every batch that a
step accumulates, and the optimizer.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch.utils.flop_counter import FlopCounterMode

from divot_lightning.io.files import write_atomically
from divot_lightning.training.training_args import resolve_recipes
from divot_lightning.training.training_cli import TrainingCLI

MEASURED_STEPS = 4


class CostMeter(Callback):
    """Count the operations and the tokens of training batches.

    Attributes:
        flops: Floating point operations of each batch.
        tokens: Tokens of each batch's sequences, padding not counted; 0 in stages without a language model.
    """

    def __init__(self) -> None:
        self.flops: list[int] = []
        self.tokens: list[int] = []
        self._counter = FlopCounterMode(display=False)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Start to count."""
        self.tokens.append(num_tokens(batch))
        self._counter = FlopCounterMode(display=False)
        self._counter.__enter__()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Record the count."""
        self._counter.__exit__(None, None, None)
        self.flops.append(self._counter.get_total_flops())


def num_tokens(batch: dict[str, Any]) -> int:
    """Count the tokens of a batch's sequences, without padding."""
    return batch["sequences"].num_tokens if "sequences" in batch else 0


def main(argv: Sequence[str]) -> int:
    """Train a few steps, and write the average cost of one.

    Args:
        argv: The output file, then the words after `divot fit`.

    Returns:
        The exit status.
    """
    torch.set_num_threads(1)
    output, *words = argv
    cli = TrainingCLI(resolve_recipes(list(words)), "divot ablate", "measure")
    meter = CostMeter()
    trainer = Trainer(
        accelerator="cpu",
        max_steps=MEASURED_STEPS,
        accumulate_grad_batches=cli.trainer.accumulate_grad_batches,
        callbacks=[meter],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
    )
    trainer.fit(cli.model, cli.datamodule)
    steps = trainer.global_step
    cost = {"flops": sum(meter.flops) / steps, "tokens": sum(meter.tokens) / steps, "steps": steps}
    Path(output).parent.mkdir(parents=True, exist_ok=True)
    write_atomically(Path(output), json.dumps(cost) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
