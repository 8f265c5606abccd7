"""Read a recipe for `divot preflight` and print what it needs."""

import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.strategies import StrategyRegistry

from divot_lightning.checkpoint.step_checkpoint import CheckpointConfig
from divot_lightning.deepspeed_zero.registration import STRATEGIES
from divot_lightning.errors import UserError, require_at_least
from divot_lightning.io.output_files import free_bytes
from divot_lightning.preflight.memory import ProcessLayout
from divot_lightning.preflight.needs import DataNeeds, ModelNeeds, data_needs, model_needs
from divot_lightning.training.training_cli import TrainingCLI

MIB = 2**20


class PreflightCLI(TrainingCLI):
    """Read recipes as `divot fit` does, but build no trainer, since the recipe may be for another machine."""

    def instantiate_trainer(self, **kwargs: Any) -> Any:
        """Build no trainer."""
        return None


def preflight(argv: list[str]) -> int:
    """Print what a recipe needs.

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
        batches={trial.kind.name: trial.batch for trial in data.trials},
    )
    room = free_bytes(cli.run_folder)
    needed = model.checkpoint * most_checkpoints(cli.config_init.checkpoint, cli.config.trainer.max_steps)
    lines = [*model_lines(model, layout), *batch_lines(cli, layout, data), *disk_lines(needed, room, cli.run_folder)]
    sys.stdout.write("\n".join(lines) + "\n")
    return 1 if needed > room else 0


def read_layout(trainer: Any) -> ProcessLayout:
    """Read how a trainer's settings spread a stage over processes.

    Args:
        trainer: Settings `devices`, `num_nodes`, `strategy` and `precision`.

    Raises:
        UserError: The devices are not countable, or fewer than one.
    """
    number = _num_devices(trainer)
    require_at_least(1, "trainer.", devices=number, num_nodes=int(trainer.num_nodes))
    name, options = trainer.strategy, {}
    if not isinstance(name, str):
        name, options = name.class_path, dict(name.init_args or {})
    elif name not in ("auto", *STRATEGIES, *StrategyRegistry.available_strategies()):
        raise UserError(f"trainer.strategy is {name!r}; choose auto, ddp or one of: {', '.join(STRATEGIES)}")
    known = {**STRATEGIES.get(name, {}), **options}
    sharded = name in STRATEGIES or name.endswith("DivotDeepSpeedStrategy")
    return ProcessLayout(
        world_size=number * int(trainer.num_nodes),
        per_node=number,
        device="cpu" if trainer.accelerator == "cpu" else "cuda",
        zero_stage=int(known.get("stage", 2)) if sharded else 0,
        precision=str(trainer.precision or "32-true"),
        offload_optimizer=bool(known.get("offload_optimizer")),
        offload_parameters=bool(known.get("offload_parameters")),
        **({"bucket_elements": known["bucket_elements"]} if "bucket_elements" in known else {}),
    )


def _num_devices(trainer: Any) -> int:
    """Return the devices per machine: "auto", a number, or a list of them, as Lightning takes it."""
    devices = trainer.devices
    if devices in ("auto", -1, "-1"):
        return max(1, torch.cuda.device_count()) if trainer.accelerator != "cpu" else 1
    if isinstance(devices, str) and "," in devices:
        devices = [name for name in devices.split(",") if name.strip()]
    try:
        return len(devices) if isinstance(devices, list) else int(devices)
    except ValueError as error:
        raise UserError(f"trainer.devices is {devices!r}; give a number, a list such as [0, 1], or auto") from error


def model_lines(model: ModelNeeds, layout: ProcessLayout) -> Iterator[str]:
    """Yield lines about modules, memory and checkpoint."""
    width = max(map(len, model.modules), default=0)
    yield "parameters"
    for name, (trained, frozen) in model.modules.items():
        yield f"  {name:<{width}}  {trained / 1e6:10.2f} M trained  {frozen / 1e6:10.2f} M frozen"
    sharding = f"ZeRO stage {layout.zero_stage}" if layout.zero_stage else "not sharded"
    whose = "the process" if layout.world_size == 1 else f"each of {layout.world_size} processes"
    yield f"memory of {whose}, {sharding}, {layout.precision}"
    for name in ("weights", "gradients", "optimizer"):
        yield f"  {name:<12} {getattr(model.memory, name) / MIB:10.1f} MiB"
    yield from _activation_lines(model)
    if model.memory.host:
        yield f"  offloaded    {model.memory.host / MIB:10.1f} MiB in the host's memory"
    yield f"checkpoint     {model.checkpoint / MIB:10.1f} MiB"


def _activation_lines(model: ModelNeeds) -> Iterator[str]:
    if model.heaviest is None or model.device is None:
        yield f"  activations  not known ({model.no_activations})"
        yield f"  together     not known: {model.memory.device / MIB:.1f} MiB and the activations"
        return
    which = f" for the heaviest batch, of {model.heaviest}" if len(model.activations) > 1 else " for the first batch"
    yield f"  activations  {model.activations[model.heaviest] / MIB:10.1f} MiB{which}"
    yield (
        f"  together     {model.device / MIB:10.1f} MiB on the device; torch itself, and some operations for a moment, "
        "need more"
    )


def batch_lines(cli: TrainingCLI, layout: ProcessLayout, data: DataNeeds) -> Iterator[str]:
    """Yield lines about batches, steps and data."""
    if data.problem:
        yield f"data           not looked at: {data.problem}"
        return
    trainer = cli.config.trainer
    steps, micro = trainer.max_steps, int(trainer.accumulate_grad_batches)
    kinds = [trial.kind for trial in data.trials]
    for kind in kinds:
        each = f" = {kind.batch_size // layout.world_size} on each process" if layout.world_size > 1 else ""
        times = f", {micro} batches to a step" if micro > 1 else ""
        part = f", {kind.share:.0%} of the steps: {kind.name}" if len(kinds) > 1 else ""
        yield f"batch          {kind.batch_size} samples{each}{times}{part}"
    for split, sources in data.sizes.items():
        for path, shards, samples in sources:
            yield f"{split:<14} {samples} samples in {shards} shards: {path}"
    found = sum(samples for _, _, samples in data.sizes.get("train", []))
    if steps > 0 and found:
        mean = micro * sum(kind.share * kind.batch_size for kind in kinds)
        average = " on average" if len(kinds) > 1 else ""
        yield f"steps          {steps} of {mean:.6g} samples{average}: {steps * mean / found:.3g} passes"
    if data.shared:
        yield (
            f"shared memory  {data.shared / MIB:.1f} MiB of each process with its decoding workers at most, "
            f"{layout.per_node * data.shared / MIB:.1f} MiB of a node"
        )


def most_checkpoints(config: CheckpointConfig, max_steps: int) -> int:
    """Return how many checkpoints a run has at most: those that it keeps, and one that is being written.

    >>> most_checkpoints(CheckpointConfig(every_steps=4, keep_all=True), max_steps=10)
    4
    """
    steps = max(0, max_steps)  # -1: endless, so that nobody knows how many are kept for ever
    if config.keep_all:
        return -(-steps // config.every_steps) + 1
    for_ever = steps // math.lcm(config.every_steps, config.keep_every) if config.keep_every else 0
    return config.keep_last + config.keep_best + for_ever + 1


def disk_lines(needed: int, room: int, run: Path) -> Iterator[str]:
    """Yield a line that says whether the disk has room for the kept checkpoints and one that is being written."""
    verdict = "" if needed <= room else "   NOT ENOUGH: fewer checkpoints (--checkpoint.keep_last), or another --run"
    yield f"disk           {needed / MIB:.1f} MiB for checkpoints, {room / MIB:.0f} MiB free at {run}{verdict}"


def _has_average(trainer: Any) -> bool:
    callbacks = trainer.callbacks or []
    listed = callbacks if isinstance(callbacks, list) else [callbacks]
    return any(str(getattr(callback, "class_path", "")).endswith("WeightAverage") for callback in listed)
