"""How fast a run trains: tokens and clips per second, waiting for data, memory, share of the device's peak."""

import time
from collections.abc import Mapping
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.profilers import Profiler
from torch.utils.flop_counter import FlopCounterMode

from divot_lightning.parts.sequences.rows import SequenceBatch
from divot_lightning.training.reporting.device_peaks import dense_peak
from divot_lightning.training.reporting.process_memory import peak_bytes

MEASURED_BATCHES = 8
"""Batches whose operations are counted; not all, since counting takes time."""

BAR_NAMES = {
    "speed/tokens_per_second": "tokens/s",
    "speed/clips_per_second": "clips/s",
    "speed/share_of_peak": "of peak",
    "speed/data_wait": "data wait",
    "speed/peak_memory_gib": "GiB",
}
"""The metrics in the progress bar, and their short names there."""

_WORKS = ("tokens", "clips", "samples")
_COMPUTE_DTYPES = {"16": torch.float16, "bf": torch.bfloat16}
"""By the first letters of the trainer's precision."""


class DataWait(Profiler):
    """Adds up the time that training waits for its next batch, from the actions that Lightning tells a profiler."""

    def __init__(self) -> None:
        super().__init__()
        self.seconds = 0.0
        self._began = 0.0

    def start(self, action_name: str) -> None:
        """Note when the next batch is asked for."""
        if action_name.endswith(".train_dataloader_next"):
            self._began = time.perf_counter()

    def stop(self, action_name: str) -> None:
        """Add the time until the batch was there."""
        if action_name.endswith(".train_dataloader_next"):
            self.seconds += time.perf_counter() - self._began


class TrainingSpeed(Callback):
    """Logs the speed since the last logged step; validations are not counted, checkpoints are.

    Metrics, all processes together:
        - `speed/tokens_per_second`, padding not counted, or `speed/clips_per_second` where no text is trained;
          `speed/samples_per_second`.
        - `speed/data_wait`: fraction of the time that a process waits for its next batch, the mean over processes. It
          is there unless the trainer has a profiler of the user's.
        - `speed/peak_memory_gib`: the most memory that any process has taken so far, in GiB: of the GPU, as torch
          allocates it, or of the process.
        - `speed/share_of_peak`: operations per second divided by the dense peak of the GPUs at the precision of the
          run, see `divot_lightning.training.reporting.device_peaks`; absent for devices whose peak is not known. Matrix
          products, convolutions and attention of the forward and the backward pass count, recomputed activations too.
          torch counts them in the first `MEASURED_BATCHES` batches; later ones are taken to need as many for each token
          or clip.

    The progress bar has all of them but the samples, under the names in `BAR_NAMES`.
    """

    def __init__(self) -> None:
        self._done: dict[str, float] = dict.fromkeys(_WORKS, 0.0)
        self._since = 0.0
        self._waited = 0.0
        self._step = 0
        self._validation_began = 0.0
        self._peak: int | None = None
        self._counter: FlopCounterMode | None = None
        self._operations = 0
        self._counted = {"batches": 0.0, "operations": 0.0, "units": 0.0}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        self._peak = _peak_operations(trainer)
        self._restart(trainer)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Count the operations of one of the first batches, where the device's peak is known."""
        if self._peak and self._counted["batches"] < MEASURED_BATCHES:
            self._counter = FlopCounterMode(display=False)
            self._counter.__enter__()

    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """End counting with the backward pass; the optimizer is not counted."""
        self._stop_counting()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Leave the counting of a step that failed."""
        self._stop_counting()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop the clock."""
        self._validation_began = time.perf_counter()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave the validation out."""
        self._since += time.perf_counter() - self._validation_began

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Add the work of a batch; log at the steps that Lightning logs."""
        work = batch_work(batch)
        for name, amount in work.items():
            self._done[name] += amount
        if self._operations:
            self._counted["batches"] += 1
            self._counted["operations"] += self._operations
            self._counted["units"] += work["tokens"] or work["clips"]
            self._operations = 0
        if trainer.global_step == self._step or trainer.global_step % _log_every(trainer):
            return
        for name, value in self._metrics(trainer).items():
            pl_module.log(f"speed/{name}", value, prog_bar=f"speed/{name}" in BAR_NAMES, batch_size=1)
        self._restart(trainer)

    def _metrics(self, trainer: Trainer) -> dict[str, float]:
        seconds = time.perf_counter() - self._since
        waited = _waited(trainer)
        wait = 0.0 if waited is None else (waited - self._waited) / seconds
        sums = _over_ranks(trainer, [*self._done.values(), wait], "sum")
        done = dict(zip(_WORKS, sums, strict=False))
        rates = {f"{name}_per_second": done[name] / seconds for name in _WORKS if done[name]}
        if done["tokens"]:
            rates.pop("clips_per_second", None)
        if waited is not None:
            rates["data_wait"] = sums[-1] / trainer.world_size
        rates["peak_memory_gib"] = _over_ranks(trainer, [_peak_memory(trainer)], "max")[0] / 2**30
        if self._peak and self._counted["units"]:
            operations = (done["tokens"] or done["clips"]) * self._counted["operations"] / self._counted["units"]
            rates["share_of_peak"] = operations / seconds / (self._peak * trainer.world_size)
        return rates

    def _restart(self, trainer: Trainer) -> None:
        self._done = dict.fromkeys(_WORKS, 0.0)
        self._since = time.perf_counter()
        self._waited = _waited(trainer) or 0.0
        self._step = trainer.global_step

    def _stop_counting(self) -> None:
        if self._counter is not None:
            self._counter.__exit__(None, None, None)
            self._operations, self._counter = self._counter.get_total_flops(), None


def batch_work(batch: Any) -> dict[str, int]:
    """Count the work of one process's batch; a dummy batch, which only keeps processes in sync, has none.

    Args:
        batch: As stages get it, see `divot_lightning.parts.batch.Batch`. Nothing is known about those of other forms.

    Returns:
        "tokens" without padding, "clips" and "samples"; 0 where the batch has nothing of that kind.
    """
    if not isinstance(batch, Mapping) or batch.get("counted", 1) == 0:
        return dict.fromkeys(_WORKS, 0)
    sequences = batch.get("sequences")
    clips = next((len(batch[name]) for name in ("video", "features", "latents") if name in batch), 0)
    tokens = sequences.num_tokens if isinstance(sequences, SequenceBatch) else 0
    return {"tokens": tokens, "clips": clips, "samples": len(batch.get("key", []))}


def _waited(trainer: Any) -> float | None:
    return trainer.profiler.seconds if isinstance(trainer.profiler, DataWait) else None


def _log_every(trainer: Any) -> int:
    return trainer.log_every_n_steps


def _peak_operations(trainer: Trainer) -> int | None:
    dtype = _COMPUTE_DTYPES.get(str(trainer.precision)[:2], torch.float32)
    return dense_peak(trainer.strategy.root_device, dtype)


def _peak_memory(trainer: Trainer) -> float:
    device = trainer.strategy.root_device
    if device.type == "cuda":
        return float(torch.cuda.max_memory_allocated(device))
    return float(peak_bytes())


def _over_ranks(trainer: Trainer, values: list[float], reduce_op: str) -> list[float]:
    given = torch.tensor(values, dtype=torch.float32, device=trainer.strategy.root_device)
    return trainer.strategy.reduce(given, reduce_op=reduce_op).tolist()
