"""Find what a recipe needs: sizes of modules, memory per process, checkpoint, batch and data."""

import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import torch
from lightning import LightningDataModule, LightningModule, Trainer

from divot_datamodules.loading.trial_batches import TrialBatch
from divot_lightning.checkpoint.module_tensors import sort_tensors
from divot_lightning.checkpoint.optimizer_state import family, leaf_optimizers
from divot_lightning.errors import UserError, first_line
from divot_lightning.preflight.activations import activation_bytes
from divot_lightning.preflight.memory import ProcessLayout, RankMemory, checkpoint_bytes, rank_memory
from divot_lightning.preflight.shapes import build_shapes

STATES_PER_ELEMENT = {"AdamW": 2, "Muon": 1, "SGD": 1}
"""Number of state tensors per parameter, each as large as the parameter; 2 for other optimizers."""


@dataclass(frozen=True)
class ModelNeeds:
    """The needs of a stage.

    Attributes:
        modules: Elements trained and frozen by module.
        memory: Of one process, without activations.
        checkpoint: Bytes of a checkpoint.
        activations: Most bytes that a step of one process holds besides, by the name of the kind of batch.
        no_activations: Why activations could not be counted; then `activations` is incomplete and there is no total.
    """

    modules: dict[str, tuple[int, int]]
    memory: RankMemory
    checkpoint: int
    activations: dict[str, int] = field(default_factory=dict)
    no_activations: str = ""

    @property
    def heaviest(self) -> str | None:
        """Kind of batch that needs the most memory; None if unknown."""
        if self.no_activations or not self.activations:
            return None
        return max(self.activations, key=self.activations.__getitem__)

    @property
    def device(self) -> int | None:
        """Bytes of one process on its device in the heaviest step; None if unknown."""
        return None if self.heaviest is None else self.memory.device + self.activations[self.heaviest]


@dataclass(frozen=True)
class DataNeeds:
    """The sizes of the data, from their datamodule.

    Attributes:
        sizes: By "train" and so on: path, shards and usable samples of each source.
        trials: One process's first batch of each kind of training step.
        shared: Bytes that one process shares with its decoding workers.
        problem: Why the sizes are unknown; empty if they are known.
    """

    sizes: dict[str, list[tuple[str, int, int]]] = field(default_factory=dict)
    trials: list[TrialBatch] = field(default_factory=list)
    shared: int = 0
    problem: str = ""


def model_needs(
    stage: LightningModule,
    layout: ProcessLayout,
    *,
    averaged: bool,
    max_steps: int,
    batches: Mapping[str, dict[str, Any]],
) -> ModelNeeds:
    """Build a stage on the meta device and add up its needs.

    Args:
        stage: Not built yet; it stays on the meta device.
        layout: How it is spread over processes.
        averaged: Whether a moving average is kept.
        max_steps: Steps of the run.
        batches: One process's batch of each kind of training step, by name.

    Raises:
        UserError: The stage cannot be built with these settings.
    """
    stage.trainer = Trainer(
        accelerator="cpu",
        devices=1,
        max_steps=max_steps,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    stage = build_shapes(stage)
    tensors = sort_tensors(stage)
    trained, stored = _elements(tensors.trained.values()), _elements(tensors.stored.values())
    frozen = stored + sum(_elements(module.values()) for module in tensors.sourced.values())
    buffers = sum(value.nbytes for value in tensors.buffers.values())
    states = optimizer_states(stage)
    activations, why = _activations(stage, batches, layout)
    return ModelNeeds(
        modules={name: module_sizes(module) for name, module in stage.named_children()},
        memory=rank_memory(trained, frozen, states, layout, averaged=averaged),
        checkpoint=checkpoint_bytes(trained, stored, buffers, states, layout, averaged=averaged),
        activations=activations,
        no_activations=why,
    )


def module_sizes(module: torch.nn.Module) -> tuple[int, int]:
    """Return a module's elements that are trained and that are frozen."""
    parameters = list(module.parameters())
    return _elements(p for p in parameters if p.requires_grad), _elements(p for p in parameters if not p.requires_grad)


def optimizer_states(stage: LightningModule) -> int:
    """Count the elements of the states that the stage's optimizers will keep."""
    configured: Any = stage.configure_optimizers()
    optimizer = configured["optimizer"] if isinstance(configured, dict) else configured
    return sum(
        STATES_PER_ELEMENT.get(family(part), 2) * _elements(p for group in part.param_groups for p in group["params"])
        for part in leaf_optimizers([optimizer])
    )


def data_needs(data: LightningDataModule, stage: LightningModule, world_size: int) -> DataNeeds:
    """Open the data as the first process of a job does, and read its first batch of each kind of step.

    Args:
        data: Nothing is written into a run folder.
        stage: Its settings decide which data can be used.
        world_size: Number of processes.

    Raises:
        UserError: The processes cannot share the batches, or the data cannot be used.
    """
    if not hasattr(data, "trial_batches"):
        return DataNeeds(problem=f"{type(data).__name__} does not tell its sizes")
    with tempfile.TemporaryDirectory() as folder:
        data.trainer = _first_of(world_size, stage, folder)
        data.setup("fit")
        try:
            opened: Any = data
            return DataNeeds(opened.sizes(), opened.trial_batches(), opened.shared_bytes)
        finally:
            data.teardown("fit")


def _first_of(world_size: int, stage: LightningModule, folder: str) -> Any:
    strategy = SimpleNamespace(broadcast=lambda seen: seen, barrier=lambda *names: None)
    return SimpleNamespace(
        world_size=world_size,
        global_rank=0,
        local_rank=0,
        default_root_dir=folder,
        lightning_module=stage,
        strategy=strategy,
        limit_train_batches=1,  # only the first batch is needed
        callbacks=[],
    )


def _activations(
    stage: LightningModule, batches: Mapping[str, dict[str, Any]], layout: ProcessLayout
) -> tuple[dict[str, int], str]:
    found: dict[str, int] = {}
    for name, batch in batches.items():
        try:
            found[name] = activation_bytes(stage, batch, layout)
        except UserError:
            raise
        except Exception as error:
            # A stage from elsewhere may read the values of tensors, which the meta device does not have.
            return found, f"{type(error).__name__}: {first_line(error, 120)}"
    return found, "" if found else "no batch to go by"


def _elements(parameters: Iterable[torch.Tensor]) -> int:
    return sum(parameter.numel() for parameter in parameters)
