"""Reads a recipe for `divot preflight` and prints what it needs."""

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from divot_lightning.preflight.memory import Layout
from divot_lightning.preflight.needs import DataNeeds, ModelNeeds, data_needs, model_needs
from divot_lightning.runs.training_cli import TrainingCLI
from divot_lightning.sharding.registration import STRATEGIES

MIB = 2**20


class PreflightCLI(TrainingCLI):
    """Reads recipes as `divot fit` does, but sets no trainer up: it may be for another machine."""

    def instantiate_trainer(self, **kwargs: Any) -> Any:
        """Builds none."""
        return None


def preflight(argv: list[str]) -> int:
    """Prints what a recipe needs.

    Args:
        argv: Options, `--config` with paths of files.

    Returns:
        The exit status: 1 if the checkpoints would not fit on the disk.
    """
    cli = PreflightCLI(argv, "divot preflight", "measure")
    layout = read_layout(cli.config.trainer)
    data = data_needs(cli.datamodule, cli.model, layout.world_size)
    model = model_needs(
        cli.model,
        layout,
        averaged=_has_average(cli.config.trainer),
        max_steps=max(1, cli.config.trainer.max_steps),
        batch=data.batch,
    )
    room = free_bytes(cli.run_folder)
    settings = cli.config_init.checkpoint
    needed = model.checkpoint * (settings.keep_last + settings.keep_best + 1)
    lines = [*model_lines(model, layout), *batch_lines(cli, layout, data), *disk_lines(needed, room, cli.run_folder)]
    sys.stdout.write("\n".join(lines) + "\n")
    return 1 if needed > room else 0


def read_layout(trainer: Any) -> Layout:
    """Reads how a trainer's settings spread a stage over processes.

    Args:
        trainer: Settings `devices`, `num_nodes`, `strategy` and `precision`.
    """
    devices = trainer.devices
    if devices in ("auto", -1, "-1"):
        devices = max(1, torch.cuda.device_count()) if trainer.accelerator != "cpu" else 1
    number = len(devices) if isinstance(devices, list) else int(devices)
    name, options = trainer.strategy, {}
    if not isinstance(name, str):
        name, options = name.class_path, dict(name.init_args or {})
    known = {**STRATEGIES.get(name, {}), **options}
    sharded = name in STRATEGIES or name.endswith("DivotDeepSpeedStrategy")
    return Layout(
        world_size=number * int(trainer.num_nodes),
        zero_stage=int(known.get("stage", 2)) if sharded else 0,
        precision=str(trainer.precision or "32-true"),
        offload_optimizer=bool(known.get("offload_optimizer")),
        offload_parameters=bool(known.get("offload_parameters")),
        **({"bucket_elements": known["bucket_elements"]} if "bucket_elements" in known else {}),
    )


def model_lines(model: ModelNeeds, layout: Layout) -> Iterator[str]:
    """Tells about modules, memory and checkpoint."""
    width = max(map(len, model.modules), default=0)
    yield "parameters"
    for name, (trained, frozen) in model.modules.items():
        yield f"  {name:<{width}}  {trained / 1e6:10.2f} M trained  {frozen / 1e6:10.2f} M frozen"
    sharding = f"ZeRO stage {layout.zero_stage}" if layout.zero_stage else "not sharded"
    yield f"memory of each of {layout.world_size} processes, {sharding}, {layout.precision}"
    for name in ("weights", "gradients", "optimizer"):
        yield f"  {name:<12} {getattr(model.memory, name) / MIB:10.1f} MiB"
    total = model.memory.device
    if model.activations is None:
        yield f"  activations  not known ({model.no_activations})"
    else:
        total += model.activations
        mixed = " (as without autocast, which halves most of them)" if layout.precision.endswith("mixed") else ""
        yield f"  activations  {model.activations / MIB:10.1f} MiB for the first batch{mixed}"
    yield f"  together     {total / MIB:10.1f} MiB on the device, besides what the framework takes for itself"
    if model.memory.host:
        yield f"  offloaded    {model.memory.host / MIB:10.1f} MiB in the host's memory"
    yield f"checkpoint     {model.checkpoint / MIB:10.1f} MiB"


def batch_lines(cli: TrainingCLI, layout: Layout, data: DataNeeds) -> Iterator[str]:
    """Tells about batches, steps and data."""
    if data.problem:
        yield f"data           not looked at: {data.problem}"
        return
    trainer = cli.config.trainer
    size, steps, micro = cli.datamodule.batch_size, trainer.max_steps, int(trainer.accumulate_grad_batches)
    share = f" = {size // layout.world_size} on each process" if layout.world_size > 1 else ""
    yield f"batch          {size} samples{share}" + (f", {micro} batches to a step" if micro > 1 else "")
    found = sum(samples for _, _, samples in data.sizes.get("train", []))
    for split, sources in data.sizes.items():
        for path, shards, samples in sources:
            yield f"{split:<14} {samples} samples in {shards} shards: {path}"
    if steps > 0 and found:
        yield f"steps          {steps} of {size * micro} samples: {steps * size * micro / found:.3g} passes"


def disk_lines(needed: int, room: int, run: Path) -> Iterator[str]:
    """Tells whether the checkpoints that are kept, and one that is being written, have room."""
    verdict = "" if needed <= room else "   NOT ENOUGH: fewer checkpoints (--checkpoint.keep_last), or another --run"
    yield f"disk           {needed / MIB:.1f} MiB for checkpoints, {room / MIB:.0f} MiB free at {run}{verdict}"


def free_bytes(folder: Path) -> int:
    """Gives the free bytes where a folder is or will be."""
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    return shutil.disk_usage(there).free


def _has_average(trainer: Any) -> bool:
    callbacks = trainer.callbacks or []
    listed = callbacks if isinstance(callbacks, list) else [callbacks]
    return any(str(getattr(one, "class_path", "")).endswith("WeightAverage") for one in listed)
