"""Random states of all ranks, so that dropout after a resume is what it would have been without one.

They are restored before the first training step, not earlier: building data loaders uses the same generators.
"""

import random
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from divot_lightning.distributed.environment import say
from divot_lightning.distributed.ranks import Ranks


class RandomStates(Callback):
    """Keeps the random states of all ranks in checkpoints.

    Training steps have random states of their own. Random numbers used between two steps (by validation, or by data
    loaders that are built or run in this process) do not change the next step, and so cannot differ after a resume.
    With another number of processes than before there are no states to restore: each process then starts from a seed
    made of the run's seed, the step and its rank.
    """

    def __init__(self) -> None:
        self._next: dict[str, Any] | None = None

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Add the states of all ranks at the start of the next training step."""
        checkpoint["random_states"] = Ranks.all().gather(self._next or random_state())

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Take this rank's state."""
        states = checkpoint.get("random_states", [])
        if len(states) == trainer.world_size:
            self._next = states[trainer.global_rank]
        elif states:
            say(f"{len(states)} processes before, {trainer.world_size} now: random states (dropout) start anew\n")
            seed = int(torch.initial_seed() % 2**63)
            self._next = fresh_state(seed, checkpoint["global_step"], trainer.global_rank)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Continue where the last training step ended."""
        if self._next is not None:
            set_random_state(self._next)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Remember where this training step ended."""
        self._next = random_state()


def random_state() -> dict[str, Any]:
    """Return the states of this process's generators as plain data: python, numpy, torch, and its CUDA device's."""
    version, words, gauss = random.getstate()
    name, keys, position, has_gauss, cached = np.random.get_state()
    assert name == "MT19937"
    return {
        "python": (version, torch.tensor(words, dtype=torch.int64), gauss),
        "numpy": (torch.from_numpy(np.asarray(keys).astype(np.int64)), int(position), int(has_gauss), float(cached)),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
    }


def set_random_state(state: dict[str, Any]) -> None:
    """Set this process's generators to a state from `random_state`."""
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words.tolist()), gauss))
    keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state(("MT19937", keys.numpy().astype(np.uint32), position, has_gauss, cached))
    torch.set_rng_state(state["torch"])
    if state["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])


def fresh_state(seed: int, step: int, rank: int) -> dict[str, Any]:
    """Return states that depend only on a seed, a step and a rank; this process's own states are unchanged."""
    kept = random_state()
    words = np.random.SeedSequence([seed, step, rank]).generate_state(3, np.uint64)
    random.seed(int(words[0]))
    np.random.seed(int(words[1] % 2**32))
    torch.manual_seed(int(words[2] % 2**63))
    state = random_state()
    set_random_state(kept)
    return state
