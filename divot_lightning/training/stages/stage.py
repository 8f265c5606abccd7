"""Base of all stages: building, sync checks, global means, gradient norm, skipped steps."""

import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from lightning import LightningModule
from lightning.pytorch.plugins import HalfPrecision
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from divot_lightning.deepspeed_zero.strategy import DivotDeepSpeedStrategy
from divot_lightning.distributed.rank_sync import RankSync, StepState, check_ranks_in_sync
from divot_lightning.errors import UserError
from divot_lightning.models.detokenizer.video_detokenizer import VideoDetokenizer
from divot_lightning.models.randomness import sample_generators
from divot_lightning.models.weight_dtypes import raise_to_float32
from divot_lightning.models.weights import shard_rest
from divot_lightning.parts.batch import Batch, num_samples
from divot_lightning.parts.optimizers import TrainingOptimizer
from divot_lightning.training.accumulation import STEP_COUNTS, check_step, load_whole_steps
from divot_lightning.training.global_mean import GlobalLoss, LossPart, global_mean, merge_means, weighted_sum
from divot_lightning.training.nonfinite import gather_nonfinite_ranks, over_budget, write_record
from divot_lightning.training.optimization import configure_optimizer

Split = Literal["train", "validation"]


class Stage(LightningModule):
    """A training stage: subclasses check their settings in `__init__` and build their modules in `build`.

    A subclass's `training_step` and `validation_step` call `check_sync` before their modules run, and pass their losses
    to `training_loss` or `log_validation`. These make the losses independent of how samples are distributed over
    processes; with `loss_counts` they are also independent of how samples are distributed over accumulated batches.

    Attributes:
        frozen: Names of the modules that are not trained and stay in evaluation mode.

    Args:
        optimizer: Optimizer and schedule.
    """

    frozen: tuple[str, ...] = ()
    nonfinite_steps: Tensor

    def __init__(self, optimizer: TrainingOptimizer) -> None:
        super().__init__()
        self.optimizer_config = optimizer
        self.is_built = False
        self.step_skipped = False
        self.step_number = 0
        self.batch_number = 0
        self.gradient_norm: float | None = None
        self.step_keys: list[str] = []
        self.step_means: dict[str, tuple[float, int]] = {}
        self.unread_loss: GlobalLoss | None = None
        # In checkpoints, since the budget is one for the whole run.
        self.register_buffer("nonfinite_steps", torch.tensor(0))

    def build(self) -> None:
        """Build the modules and load their weights."""
        raise TypeError(f"{type(self).__name__} has no build()")

    def configure_model(self) -> None:
        """Build the modules, once; under ZeRO stage 3 each process keeps its shards.

        Trained weights are float32, unless the optimizer has float32 copies or the trainer's precision is `-true`.
        """
        if self.is_built:
            return
        with torch.random.fork_rng(range(torch.cuda.device_count())):
            seed = os.environ.get("PL_GLOBAL_SEED")
            if seed is not None:
                # Initial weights depend on the seed alone, not on random numbers that a strategy used before.
                torch.manual_seed(int(seed))
            self.build()
        self._refuse_half_precision_noise()
        raise_to_float32(self)
        shard_rest(self)
        self.is_built = True
        self.train(self.training)

    def _refuse_half_precision_noise(self) -> None:
        """Refuse Lightning's `-true` precisions for a de-tokenizer: noise and targets of diffusion are float32.

        They leave no float32 anywhere, noise included. ZeRO keeps float32 copies of weights, and buffers and noise.
        """
        if self._trainer is None or self._zero is not None:
            return
        plugin = self.trainer.precision_plugin
        if isinstance(plugin, HalfPrecision) and any(isinstance(each, VideoDetokenizer) for each in self.modules()):
            raise UserError(
                f"trainer.precision is {plugin.precision}, but the noise and targets of the de-tokenizer that "
                f"{type(self).__name__} uses are float32\n"
                "set --trainer.precision bf16-mixed, or keep it under --trainer.strategy divot_zero1, divot_zero2 or "
                "divot_zero3"
            )

    def train(self, mode: bool = True) -> "Stage":
        """Set the mode of the trained modules; frozen ones stay in evaluation mode."""
        super().train(mode)
        for name in self.frozen if self.is_built else ():
            getattr(self, name).eval()
        return self

    def check_sync(self, split: Split, batch: Batch, batch_idx: int) -> RankSync:
        """Check that all processes do the same step; see `divot_lightning.distributed.rank_sync`."""
        state = StepState(
            work=f"{type(self).__name__} {split} step",
            step=self.global_step if self._trainer is not None else 0,
            batch_index=batch_idx,
            position=int(batch.get("position", -1)),
            keys=list(batch.get("key", [])),
            clips=next((len(batch[name]) for name in ("video", "latents") if name in batch), 0),
            samples=num_samples(batch),
        )
        return check_ranks_in_sync(state)

    def loss_counts(self, batch: Batch) -> dict[str, int]:
        """Return the number of targets of each training loss in a batch, from the batch alone; see `LossPart`.

        Stages that have it can accumulate gradients: those of several batches then equal those of one large batch.

        Args:
            batch: As the loader gives it, on the CPU.

        Returns:
            Counts by the names of the losses.
        """
        raise TypeError(f"{type(self).__name__} has no loss_counts()")

    def on_fit_start(self) -> None:
        """Load all batches of an optimizer step together if a step accumulates several.

        Raises:
            UserError: The stage has no `loss_counts`.
        """
        if self.trainer.accumulate_grad_batches == 1:
            return
        if type(self).loss_counts is Stage.loss_counts:
            raise UserError(
                f"accumulate_grad_batches is {self.trainer.accumulate_grad_batches}, but {type(self).__name__} has no "
                "loss_counts(batch):\nits accumulated batches would not be weighted as in one large batch.\n"
                "Add it to the stage, or set --trainer.accumulate_grad_batches 1 and raise data.batch_size"
            )
        load_whole_steps(self.trainer, self.loss_counts)

    def frozen_sources(self) -> Mapping[str, str | Path]:
        """Return the folders that frozen weights come from, by module path; checkpoints do not store them again."""
        return {}

    def training_loss(self, parts: Mapping[str, LossPart], batch: Batch) -> Tensor:
        """Return the loss that this process backpropagates, and log the means over all processes.

        Args:
            parts: Losses by name.
            batch: The batch of these losses.

        Returns:
            The loss, scalar. Whether those of all processes are finite is seen after the backward pass, which does not
            wait for them. If one is not, all processes skip the optimizer step. Losses of later batches of that step
            then depend on no parameter.
        """
        num_batches = self.trainer.accumulate_grad_batches if self._trainer is not None else 1
        step = batch.get(STEP_COUNTS) if num_batches > 1 else None
        if num_batches > 1:
            check_step(step, self.batch_number, num_batches, {name: part.count for name, part in parts.items()})
        result = global_mean(parts, step.total if step is not None else None, num_batches)
        self.step_keys += list(batch.get("key", []))
        self.unread_loss = result
        return result.loss.new_zeros((), requires_grad=True) if self.step_skipped else result.loss

    def on_after_backward(self) -> None:
        """Log the losses, or skip the step if they are not finite."""
        result, self.unread_loss = self.unread_loss, None
        if result is None:
            return
        if not result.finite:
            loss = result.loss.item()
            self._skip_step("loss", gather_nonfinite_ranks(loss, self.step_keys, math.isfinite(loss)))
            return
        self.step_means = merge_means(self.step_means, result.parts) if self.step_means else result.parts
        self._log("train", result.weights, self.step_means)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Do the same as `validation_step`, with test data; the losses are logged as those of `test`."""
        self.validation_step(batch, batch_idx)

    def log_validation(self, parts: Mapping[str, LossPart]) -> None:
        """Log means over all processes and batches of validation or test data."""
        result = global_mean(parts)
        self._log("test" if self.trainer.testing else "validation", result.weights, result.parts)

    def _log(self, split: str, weights: Mapping[str, float], means: Mapping[str, tuple[float, int]]) -> None:
        if "loss" not in weights and means:
            samples = max(count for _, count in means.values())
            self.log(f"{split}/loss", weighted_sum(weights, means), prog_bar=True, batch_size=samples)
        for name, (value, count) in means.items():
            self.log(f"{split}/{name}", value, prog_bar=True, batch_size=count)

    def _skip_step(self, what: str, nonfinite_ranks: list[Any]) -> None:
        self.step_skipped = True
        self.nonfinite_steps += 1
        count, allowed = int(self.nonfinite_steps), self.optimizer_config.max_nonfinite_steps
        run = Path(self.trainer.default_root_dir)
        if self.trainer.is_global_zero:
            write_record(run, self.step_number, what, nonfinite_ranks)
        if count > allowed:
            raise over_budget(run, count, allowed, self.step_number, what, nonfinite_ranks)

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Reset the state of an optimizer step at its first batch; one bad batch makes the whole step be skipped."""
        if batch_idx % self.trainer.accumulate_grad_batches == 0:
            self.step_skipped = False
            self.step_keys = []
            self.step_means = {}
            self.step_number = self.global_step
        self.batch_number = batch_idx

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Measure the gradient norm before clipping; clear the gradient of a skipped step."""
        if self._zero is not None:
            return
        gradients = [value.grad for value in self.parameters() if value.grad is not None]
        self.gradient_norm = float(nn.utils.get_total_norm(gradients)) if gradients else None
        self._note_gradient()
        if self.step_skipped:
            # Optimizers pass over parameters without a gradient, decay and moments included.
            optimizer.zero_grad(set_to_none=True)

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:
        """Log the global gradient norm, before clipping, of every optimizer step that was taken."""
        self.on_after_backward()  # ZeRO leaves the backward pass of a skipped step out
        if self._zero is not None:
            self.gradient_norm, self._zero.step_outcome = self._zero.step_outcome, None
            self._note_gradient()
        if self.gradient_norm is not None and not self.step_skipped:
            self.log("train/gradient_norm", self.gradient_norm, batch_size=1)
        self.gradient_norm = None

    @property
    def _zero(self) -> DivotDeepSpeedStrategy | None:
        strategy: Any = self.trainer.strategy
        return strategy if isinstance(strategy, DivotDeepSpeedStrategy) else None

    def _note_gradient(self) -> None:
        """Skip a step whose gradient is not finite; the norm is the same on all processes."""
        norm = self.gradient_norm
        if norm is not None and not self.step_skipped and not torch.tensor(norm).isfinite():
            self._skip_step("gradient", gather_nonfinite_ranks(norm, self.step_keys, finite=False))

    def transfer_batch_to_device(
        self, batch: dict[str, Any], device: torch.device, dataloader_idx: int
    ) -> dict[str, Any]:
        """Move the tensors of a batch; segments, keys and sample indices stay as they are."""
        return {
            name: value.to(device) if isinstance(value, Tensor) and name != "sample_index" else value
            for name, value in batch.items()
        }

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """Build optimizer and schedule.

        Raises:
            UserError: The optimizer needs whole parameters, and the strategy splits them; or the number of steps, which
                its schedule needs, has no limit.
        """
        if self.optimizer_config.needs_whole_parameters and self._zero is not None:
            raise UserError(
                f"{type(self.optimizer_config).__name__} needs whole parameters, and ZeRO splits them over processes\n"
                "set --model.optimizer adamw, or train with --trainer.strategy ddp"
            )
        adamw = self._zero.adamw() if self._zero is not None else AdamW
        steps = self.trainer.estimated_stepping_batches
        if math.isinf(steps):
            raise UserError(
                "the number of steps has no limit (max_steps and max_epochs are -1), and the optimizer's schedule "
                "needs one\nset trainer.max_steps; or trainer.max_epochs, with data.epoch exact"
            )
        return configure_optimizer(
            self, self.optimizer_config, int(steps), adamw, is_partitioned=self._zero is not None
        )


def batch_generators(batch: Mapping[str, Any], purpose: str) -> list[torch.Generator] | None:
    """Return one random generator per sample, made from the run's seed and the sample's index in the run.

    Args:
        batch: With "sample_index", int64 (B,); without it, None is returned for the global generator.
        purpose: Name that separates this random stream from others, such as "train".
    """
    if "sample_index" not in batch:
        return None
    return sample_generators(int(os.environ.get("PL_GLOBAL_SEED", "0")), purpose, batch["sample_index"].tolist())
