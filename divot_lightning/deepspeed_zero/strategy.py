"""DeepSpeed ZeRO as a Lightning strategy that also runs without a GPU and counts accumulated gradients once."""

from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from functools import partial
from typing import Any, Literal

import torch
from lightning.fabric.utilities.seed import reset_seed
from lightning.pytorch.accelerators import CPUAccelerator
from lightning.pytorch.strategies import DDPStrategy, DeepSpeedStrategy
from torch import Tensor
from torch.nn import Module
from torch.optim import AdamW, Optimizer

from divot_lightning.checkpoint.module_tensors import sort_tensors
from divot_lightning.checkpoint.optimizer_state import leaf_optimizers
from divot_lightning.deepspeed_zero.deepspeed_setup import prepare_deepspeed_for_cpu, require_deepspeed
from divot_lightning.deepspeed_zero.offload import offloaded_adamw
from divot_lightning.deepspeed_zero.partitioned_tensors import PartitionedTensors, whole_matrices
from divot_lightning.deepspeed_zero.sharded_weights import ShardedWeights, half_precision, refuse_scalar
from divot_lightning.errors import UserError
from divot_lightning.models.weights import held_by, is_sharded

BUCKET_ELEMENTS = 50_000_000
"""Gradients sent at a time: 200 MB in float32. Lightning's default, four times as much, costs memory for no speed."""


class DivotDeepSpeedStrategy(DeepSpeedStrategy):
    """Shards optimizer state (stage 1), gradients (2) and parameters (3) over all processes.

    Differences to Lightning's strategy: it runs on CPUs with gloo; accumulated gradients are divided by their
    number once, not twice; gradients are clipped only if the trainer says so; parameters are sharded while the stage
    builds them (`divot_lightning.deepspeed_zero.sharded_weights`), not after; any sampler and any loader can be used.

    Args:
        stage: ZeRO stage: 1, 2 or 3.
        offload_optimizer: Keep optimizer state in the host's memory and step there.
        offload_parameters: Keep sharded parameters there too; stage 3 only.
        torch_adam: With offload, step with torch's AdamW instead of DeepSpeed's compiled kernel: slower, needs no
            compiler.
        bucket_elements: Gradients or parameters sent at a time, in elements.
        persistence_elements: Parameters smaller than this stay whole on every process under stage 3.
        timeout_minutes: A collective that waits for longer ends the run.
        config: Further DeepSpeed settings, merged into these section by section.
    """

    def __init__(
        self,
        stage: Literal[1, 2, 3] = 2,
        offload_optimizer: bool = False,
        offload_parameters: bool = False,
        torch_adam: bool = False,
        bucket_elements: int = BUCKET_ELEMENTS,
        persistence_elements: int = 100_000,
        timeout_minutes: float = 30.0,
        config: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        require_deepspeed()
        _check_settings(stage, offload_optimizer, offload_parameters, torch_adam)
        super().__init__(
            stage=stage,
            offload_optimizer=offload_optimizer,
            offload_parameters=offload_parameters,
            allgather_bucket_size=bucket_elements,
            reduce_bucket_size=bucket_elements,
            # For DeepSpeed's throughput lines only; Lightning would ask a batch sampler that we do not have.
            logging_batch_size_per_gpu=1,
            timeout=timedelta(minutes=timeout_minutes),
            **kwargs,
        )
        assert isinstance(self.config, dict)
        zero = self.config["zero_optimization"]
        zero["stage3_param_persistence_threshold"] = persistence_elements
        # DeepSpeed would refuse any optimizer but its own; `adamw` below chooses that one where it can.
        self.config["zero_force_ds_cpu_optimizer"] = False
        merge_settings(self.config, config or {})
        self.offloads = bool(zero.get("offload_optimizer"))
        self.torch_adam = torch_adam
        self.step_outcome: float | None = None

    @property
    def stage(self) -> int:
        """The ZeRO stage."""
        assert isinstance(self.config, dict)
        return int(self.config["zero_optimization"]["stage"])

    def adamw(self) -> type[Optimizer]:
        """Return the AdamW class for a stage: with offload DeepSpeed's, which runs in the host's memory.

        Raises:
            UserError: It cannot be compiled here.
        """
        return offloaded_adamw() if self.offloads and not self.torch_adam else AdamW

    @property
    def root_device(self) -> torch.device:
        """The device of this process; on CPUs with the index that DeepSpeed asks for."""
        device = super().root_device
        return torch.device("cpu", 0) if device.type == "cpu" else device

    def setup_environment(self) -> None:
        """Start communication; on CPUs without the checks that Lightning makes for CUDA."""
        if not isinstance(self.accelerator, CPUAccelerator):
            super().setup_environment()
            return
        prepare_deepspeed_for_cpu()
        DDPStrategy.setup_environment(self)

    def setup_distributed(self) -> None:
        """Start the process group."""
        if not isinstance(self.accelerator, CPUAccelerator):
            super().setup_distributed()
            return
        reset_seed()
        self.set_world_ranks()
        self._init_deepspeed_distributed()

    def backward(self, closure_loss: Tensor, optimizer: Optimizer | None, *args: Any, **kwargs: Any) -> Tensor:
        """Backpropagate; Lightning has divided by the accumulated steps already, so DeepSpeed must not."""
        if self._skips_step():
            return closure_loss  # it depends on no parameter, which stages 1 and 2 cannot handle
        return super().backward(closure_loss, optimizer, *args, scale_wrt_gas=False, **kwargs)

    @contextmanager
    def model_sharded_context(self) -> Generator[None, None, None]:
        """Surround `configure_model`: under stage 3 the modules built there are sharded."""
        self._init_config_if_needed()
        assert isinstance(self.config, dict)
        sharding = ShardedWeights(self.config) if self.stage == 3 else None
        with held_by(sharding, masters=half_precision(self.config) is not None):
            yield

    def _initialize_deepspeed_train(self, model: Module) -> None:
        for name, parameter in model.named_parameters():
            if not is_sharded(parameter):
                refuse_scalar(name, parameter)
        buffers = float32_buffers(model)
        super()._initialize_deepspeed_train(model)
        restore_buffers(buffers)
        self._autocast(model)
        self._allow_skipped_steps()
        zero: Any = self.deepspeed_engine.optimizer
        for part in leaf_optimizers([zero.optimizer]):
            if hasattr(part, "whole_matrices"):
                part.whole_matrices = partial(whole_matrices, zero)

    def _initialize_deepspeed_inference(self, model: Module) -> None:
        buffers = float32_buffers(model)
        super()._initialize_deepspeed_inference(model)
        restore_buffers(buffers)
        self._autocast(model)

    def _autocast(self, model: Module) -> None:
        """Let layers in half precision take float32 inputs of a stage, such as noise, times and pixels."""
        dtype = half_of(self.precision_plugin.precision)
        if dtype is None:
            return
        contexts = ExitStack()

        def enter(*args: Any) -> None:
            contexts.enter_context(torch.autocast(self.root_device.type, dtype=dtype))

        def leave(*args: Any) -> None:
            contexts.close()

        # Around the stage, inside the engine, which switches off any autocast that it does not know.
        model.register_forward_pre_hook(enter)
        model.register_forward_hook(leave, always_call=True)

    def optimizer_step(self, optimizer: Optimizer, *args: Any, **kwargs: Any) -> Any:
        """Step or accumulate, as DeepSpeed counts; record the gradient norm of a step."""
        steps = self.deepspeed_engine.global_steps
        result = super().optimizer_step(optimizer, *args, **kwargs)
        if self.deepspeed_engine.global_steps > steps:
            norm = self.deepspeed_engine.get_global_grad_norm()
            self.step_outcome = None if norm is None else float(norm)
        return result

    def tensor_access(self) -> PartitionedTensors:
        """Return access to the tensors of the stage and its optimizer by name, for checkpoints."""
        assert self.lightning_module is not None
        return PartitionedTensors(sort_tensors(self.lightning_module), self.model)

    def _skips_step(self) -> bool:
        return bool(getattr(self.lightning_module, "step_skipped", False))

    def _allow_skipped_steps(self) -> None:
        """Skip the step of a stage with `step_skipped` set, as DeepSpeed does for gradients that are not finite."""
        optimizer: Any = self.deepspeed_engine.optimizer
        norm = "_get_norm_groups" if self.stage == 3 else "scaled_global_norm"
        measure, check = getattr(optimizer, norm), optimizer.check_overflow

        def norm_or_nothing(*args: Any, **kwargs: Any) -> Any:
            if not self._skips_step():
                return measure(*args, **kwargs)
            nothing = torch.tensor(float("nan"), device=self.root_device)
            return [nothing] if self.stage == 3 else nothing

        def check_or_skip(*args: Any, **kwargs: Any) -> None:
            # In half precision DeepSpeed looks at the gradients first, and there may be none.
            if self._skips_step():
                optimizer.overflow = True
            else:
                check(*args, **kwargs)

        setattr(optimizer, norm, norm_or_nothing)
        optimizer.check_overflow = check_or_skip


def half_of(precision: str) -> torch.dtype | None:
    """Return the half precision in one of Lightning's names, None for float32.

    >>> half_of("bf16-mixed")
    torch.bfloat16
    """
    return {"bf16": torch.bfloat16, "16": torch.float16}.get(precision.split("-")[0])


def float32_buffers(model: Module) -> list[tuple[Module, str, Tensor]]:
    """Record the float32 buffers of a model, which DeepSpeed turns into halves together with the weights.

    Statistics, positions and frequencies lose their meaning in bfloat16.
    """
    return [
        (owner, name, buffer)
        for owner in model.modules()
        for name, buffer in owner._buffers.items()
        if buffer is not None and buffer.dtype == torch.float32
    ]


def restore_buffers(buffers: list[tuple[Module, str, Tensor]]) -> None:
    """Put float32 buffers back, on the device that they have been moved to."""
    for owner, name, buffer in buffers:
        moved = owner._buffers[name]
        assert moved is not None
        owner._buffers[name] = buffer.to(moved.device)


def merge_settings(settings: dict[str, Any], changes: dict[str, Any]) -> None:
    """Write changes into nested settings, in place.

    >>> settings = {"a": {"x": 1, "y": 2}}
    >>> merge_settings(settings, {"a": {"y": 3}, "b": 4})
    >>> settings
    {'a': {'x': 1, 'y': 3}, 'b': 4}
    """
    for name, value in changes.items():
        if isinstance(value, dict) and isinstance(settings.get(name), dict):
            merge_settings(settings[name], value)
        else:
            settings[name] = value


def _check_settings(stage: int, offload_optimizer: bool, offload_parameters: bool, torch_adam: bool) -> None:
    if stage not in (1, 2, 3):
        raise UserError(f"ZeRO stage {stage} is not known; choose 1, 2 or 3 (strategies divot_zero1, 2, 3)")
    if torch_adam and not offload_optimizer:
        raise UserError("torch_adam has no effect without offload_optimizer; set that too or leave it out")
    if offload_parameters and stage != 3:
        raise UserError(f"offload_parameters needs ZeRO stage 3, not {stage}; set stage to 3 or leave it out")
