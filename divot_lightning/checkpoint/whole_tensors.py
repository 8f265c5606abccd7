"""Access to the tensors of a stage that every process holds whole: one process, or DDP."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from divot_lightning.checkpoint.module_tensors import ModuleTensors, copy_into
from divot_lightning.checkpoint.optimizer_state import OptimizerEntry, family, leaf_optimizers
from divot_lightning.checkpoint.tensor_file import TensorSpec
from divot_lightning.distributed.ranks import Ranks


class WholeTensors:
    """Tensors by name, and the optimizer states that belong to them.

    Args:
        tensors: The tensors of the stage.
        optimizers: Its optimizers.
    """

    def __init__(self, tensors: ModuleTensors, optimizers: Sequence[Optimizer]) -> None:
        self.tensors = tensors
        self.masters: list[Tensor] = list(tensors.trained.values())
        self._number = {name: number for number, name in enumerate(tensors.trained)}
        self._owner = {
            id(parameter): optimizer
            for optimizer in leaf_optimizers(optimizers)
            for group in optimizer.param_groups
            for parameter in group["params"]
        }

    def writers(self, ranks: Ranks) -> int:
        """Return 1: buffers may differ between processes, and those of the first one count, as DDP has it."""
        return 1

    def spec(self, tensor: Tensor) -> TensorSpec:
        """Return how a tensor is stored."""
        return TensorSpec(tensor.dtype, tuple(tensor.shape))

    def read(self, tensor: Tensor, owner: int) -> Tensor:
        """Return a tensor of the stage; only the process that writes it, `owner`, needs it."""
        return tensor.detach()

    def write(self, tensor: Tensor, value: Tensor) -> None:
        """Overwrite a tensor of the stage."""
        copy_into(tensor, value)

    def read_copy(self, name: str, copies: Sequence[Tensor], owner: int) -> Tensor:
        """Return a parameter taken from copies of `masters`; `owner` as for `read`."""
        return copies[self._number[name]].detach()

    def write_copy(self, name: str, value: Tensor, copies: Sequence[Tensor]) -> None:
        """Overwrite a parameter in copies of `masters`."""
        copy_into(copies[self._number[name]], value)

    def optimizer_entries(self) -> dict[str, OptimizerEntry]:
        """Return the optimizer of each parameter and the states that it keeps now."""
        entries = {}
        for name, parameter in self.tensors.trained.items():
            optimizer = self._owner.get(id(parameter))
            if optimizer is not None:
                states = {key: _as_tensor(value) for key, value in self._state(parameter).items() if value is not None}
                entries[name] = OptimizerEntry(family(optimizer), {key: self.spec(v) for key, v in states.items()})
        return entries

    def read_state(self, name: str, key: str, owner: int) -> Tensor:
        """Return an optimizer state; arguments as for `read`."""
        return _as_tensor(self._state(self.tensors.trained[name])[key]).detach()

    def write_states(self, name: str, values: dict[str, Tensor]) -> None:
        """Set all optimizer states of a parameter."""
        parameter = self.tensors.trained[name]
        optimizer = self._owner[id(parameter)]
        group = next(g for g in optimizer.param_groups if any(p is parameter for p in g["params"]))
        optimizer.state[parameter] = {key: _placed(value, key, parameter, group) for key, value in values.items()}

    def flush(self) -> None:
        """Do nothing: whole tensors need no last step after writing."""

    def _state(self, parameter: nn.Parameter) -> dict[str, Any]:
        return self._owner[id(parameter)].state.get(parameter, {})


def _as_tensor(value: Any) -> Tensor:
    return value if isinstance(value, Tensor) else torch.tensor(float(value), dtype=torch.float32)


def _placed(value: Tensor, key: str, parameter: nn.Parameter, group: dict[str, Any]) -> Tensor:
    # As Optimizer.load_state_dict does: step counters stay on the CPU unless the optimizer runs as one kernel.
    if key == "step":
        on_device = group.get("capturable") or group.get("fused")
        return value.to(parameter.device if on_device else "cpu", torch.float32, copy=True)
    dtype = parameter.dtype if value.is_floating_point() else value.dtype
    return value.to(parameter.device, dtype, copy=True)
