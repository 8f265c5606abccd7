"""Measure the size of a checkpoint, the time of saving and the memory of resuming.

Run: python benchmarks/checkpoint.py [--devices 2 --strategy divot_zero3] [--width 1024 --layers 8] [--trained 4]

Trains the last layers of a stack of linear layers, saves them, and resumes from the checkpoint in new processes; the
other layers are frozen and come from a folder. Prints per process: bytes of the checkpoint, relative to those of
trained weights and optimizer state; seconds of a step and of saving, and the fraction of time for saving every
`--every-steps`; seconds of loading; and the rise of anonymous memory while loading above that of training, relative
to the process's part of the model and to 1 GB.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader

from divot_lightning.checkpoint.run_state import RunState
from divot_lightning.deepspeed_zero.registration import register_strategies
from divot_lightning.models.weights import fill, is_sharding, shard_rest, without_values

MB = 1e6


class Stack(LightningModule):
    """Linear layers; the frozen ones are read from a file."""

    def __init__(self, folder: Path, width: int, num_frozen: int, num_trained: int) -> None:
        super().__init__()
        self.folder, self.width = folder, width
        self.num_frozen, self.num_trained = num_frozen, num_trained

    def configure_model(self) -> None:
        if hasattr(self, "frozen"):
            return
        with without_values():
            self.frozen = nn.Sequential(*(nn.Linear(self.width, self.width) for _ in range(self.num_frozen)))
        self.frozen.requires_grad_(False)
        if is_sharding():
            fill(self.frozen, [self.folder / "frozen.safetensors"])
        else:
            self.frozen.load_state_dict(load_file(self.folder / "frozen.safetensors"))
        self.trained = nn.Sequential()
        for _ in range(self.num_trained):
            self.trained.append(nn.Linear(self.width, self.width))
            shard_rest(self.trained)

    def frozen_sources(self) -> dict[str, Path]:
        return {"frozen": self.folder}

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        return self.trained(self.frozen(batch)).square().mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW([value for value in self.parameters() if value.requires_grad])


class Clock(Callback):
    """Measure steps, and saving after the last one."""

    def __init__(self, folder: Path | None, resume_from: Path | None, peak: "Peak") -> None:
        self.folder = folder
        self.resume_from = resume_from
        self.peak = peak
        self.steps: list[float] = []
        self.saving: list[float] = []
        self.began = 0.0
        self.steady_memory = 0.0
        self.loading_peak = 0.0

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.resume_from is not None:
            RunState(trainer).load(self.resume_from)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.steady_memory, self.loading_peak = anonymous_mb(), self.peak.mb

    def on_train_batch_start(self, *args: Any) -> None:
        self.began = time.perf_counter()

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        self.steps.append(time.perf_counter() - self.began)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for number in range(3 if self.folder else 0):
            start = time.perf_counter()
            RunState(trainer).save(self.folder / f"step_{number:08d}")
            self.saving.append(time.perf_counter() - start)


class Peak:
    """Track the largest anonymous memory of the process, which excludes pages of files."""

    def __init__(self) -> None:
        self.mb = 0.0
        self.done = threading.Event()
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        while not self.done.wait(0.002):
            self.mb = max(self.mb, anonymous_mb())


def anonymous_mb() -> float:
    """Return the memory of this process that no file backs, in MB."""
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(fields["RssAnon"].split()[0]) * 1024 / MB


def run(given: argparse.Namespace, folder: Path, resume: bool) -> None:
    """Train and measure in one process; rank 0 writes the figures."""
    register_strategies()
    torch.set_num_threads(1)
    before = anonymous_mb()
    peak = Peak()
    checkpoint = folder / "checkpoints/step_00000002"
    clock = Clock(None if resume else folder / "checkpoints", checkpoint if resume else None, peak)
    trainer = Trainer(
        max_steps=6 if resume else 5,
        accelerator="cpu" if given.cpu else "auto",
        devices=given.devices,
        strategy=given.strategy,
        precision=given.precision,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[clock],
    )
    start = time.perf_counter()
    samples = DataLoader(torch.randn(64, given.width), batch_size=8)
    stage = Stack(folder, given.width, given.layers - given.trained, given.trained)
    trainer.fit(stage, samples)
    peak.done.set()
    if trainer.is_global_zero:
        figures = {
            "seconds": time.perf_counter() - start,
            "step": min(clock.steps[1:] or [0.0]),
            "saving": min(clock.saving or [0.0]),
            "before": before,
            "steady": clock.steady_memory,
            "loading": clock.loading_peak,
            "peak": peak.mb,
        }
        (folder / f"figures_{resume}.json").write_text(json.dumps(figures))


def report(given: argparse.Namespace, folder: Path) -> None:
    """Print the figures."""
    first, resumed = (json.loads((folder / f"figures_{again}.json").read_text()) for again in (False, True))
    parameters = given.width * (given.width + 1) * given.trained
    needed = parameters * 4 * 3  # weights and two moments, float32 at every precision
    written = sum(path.stat().st_size for path in (folder / "checkpoints/step_00000002").iterdir())
    model = given.width * (given.width + 1) * given.layers * 4
    every = given.every_steps
    fraction = first["saving"] / (first["saving"] + every * first["step"])
    print(f"{given.strategy}, {given.devices} processes, {given.precision}")
    print(f"whole model                    {model / MB:10.1f} MB")
    print(f"trained weights + optimizer    {needed / MB:10.1f} MB")
    print(f"checkpoint                     {written / MB:10.1f} MB  ({written / needed:.4f} of it)")
    print(f"step                           {first['step']:10.3f} s")
    print(f"saving                         {first['saving']:10.3f} s  ({written / MB / first['saving']:.0f} MB/s)")
    print(f"fraction of time, every {every:5} steps {100 * fraction:9.2f} %")
    print(f"fit from the checkpoint on     {resumed['seconds']:10.3f} s  (one step)")
    print(f"model / processes + 1 GB       {model / MB / given.devices + 1000:10.1f} MB")
    print(f"memory held when it continues    {resumed['steady'] - resumed['before']:10.1f} MB per process")
    print(f"peak up to the first step      {resumed['loading'] - resumed['before']:10.1f} MB per process")
    print(f"peak of the whole run          {resumed['peak'] - resumed['before']:10.1f} MB per process")


def main() -> None:
    """Measure in new processes: first the run, then resuming from its checkpoint."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--devices", type=int, default=1)
    parser.add_argument("--strategy", default="auto")
    parser.add_argument("--precision", default="32-true")
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--trained", type=int, help="layers that are trained (default: half of them)")
    parser.add_argument("--every-steps", type=int, default=200)
    parser.add_argument("--cpu", action="store_true", default=not torch.cuda.is_available())
    parser.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    given.trained = given.trained or given.layers - given.layers // 2
    if given.worker:
        run(given, Path(given.worker[0]), given.worker[1] == "resume")
        return
    with tempfile.TemporaryDirectory() as name:
        frozen = nn.Sequential(*(nn.Linear(given.width, given.width) for _ in range(given.layers - given.trained)))
        save_file(frozen.state_dict(), Path(name) / "frozen.safetensors")
        environment = {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "PYTHONWARNINGS": "ignore", **os.environ}
        for again in ("start", "resume"):
            command = [sys.executable, *sys.argv, "--worker", name, again]
            subprocess.run(command, check=True, env=environment, stderr=subprocess.DEVNULL)
        report(given, Path(name))


if __name__ == "__main__":
    main()
