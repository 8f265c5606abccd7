"""Sorting the tensors of a stage: which ones a checkpoint stores, and which come from other folders."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from divot_lightning.checkpoint.optimizer_state import OptimizerEntry
from divot_lightning.checkpoint.tensor_file import TensorSpec
from divot_lightning.distributed.ranks import Ranks
from divot_lightning.errors import UserError


@runtime_checkable
class KnowsSources(Protocol):
    """A stage that names the folders of its frozen weights."""

    def frozen_sources(self) -> Mapping[str, str | Path]:
        """Return folders by module path, such as `{"video_llm.language_model": "models/mistral-7b"}`."""
        ...


@dataclass(frozen=True)
class ModuleTensors:
    """The tensors of a stage by full name; tied ones are listed under their first name.

    Attributes:
        trained: Parameters that require gradients.
        stored: Frozen parameters that only a checkpoint stores, such as untrained ones.
        sourced: Frozen parameters that came from a folder, by module path; checkpoints do not store them.
        buffers: Persistent buffers.
        sources: The folders by module path.
    """

    trained: dict[str, nn.Parameter]
    stored: dict[str, nn.Parameter]
    sourced: dict[str, dict[str, nn.Parameter]]
    buffers: dict[str, Tensor]
    sources: dict[str, str]

    @property
    def weights(self) -> dict[str, Tensor]:
        """The tensors of the stage itself that a checkpoint stores."""
        return {**self.trained, **self.stored, **self.buffers}


def sort_tensors(stage: nn.Module) -> ModuleTensors:
    """Sort the tensors of a stage.

    Raises:
        UserError: A module has state that is no tensor.
    """
    sources = frozen_sources(stage)
    trained: dict[str, nn.Parameter] = {}
    stored: dict[str, nn.Parameter] = {}
    sourced: dict[str, dict[str, nn.Parameter]] = {module: {} for module in sources}
    for name, parameter in stage.named_parameters():
        if parameter.requires_grad:
            trained[name] = parameter
            continue
        module = _source_of(name, sources)
        (stored if module is None else sourced[module])[name] = parameter
    return ModuleTensors(trained, stored, sourced, _persistent_buffers(stage), sources)


def frozen_sources(stage: nn.Module) -> dict[str, str]:
    """Return the folders that frozen weights came from, by module path.

    A stage without `frozen_sources` is asked for its `used_components`: those that are modules of it.
    """
    if isinstance(stage, KnowsSources):
        return {module: str(folder) for module, folder in stage.frozen_sources().items()}
    used: Mapping[str, Path] = getattr(stage, "used_components", dict)()
    return {name: str(folder) for name, folder in used.items() if isinstance(getattr(stage, name, None), nn.Module)}


def copy_into(target: Tensor, value: Tensor) -> None:
    """Overwrite a tensor in place, in its own dtype and on its own device."""
    with torch.no_grad():
        target.copy_(value)


def _source_of(name: str, sources: Mapping[str, str]) -> str | None:
    fitting = [module for module in sources if name == module or name.startswith(f"{module}.")]
    return max(fitting, key=len, default=None)


def _persistent_buffers(stage: nn.Module) -> dict[str, Tensor]:
    parameters = {name for name, _ in stage.named_parameters(remove_duplicate=False)}
    rest = {name: value for name, value in stage.state_dict(keep_vars=True).items() if name not in parameters}
    for name, value in rest.items():
        if not isinstance(value, Tensor):
            raise UserError(
                f"{name} is a {type(value).__name__}; checkpoints hold tensors only\n"
                "keep it as a registered buffer, or leave it out of state_dict()"
            )
    return rest


class TensorAccess(Protocol):
    """Reads and writes the tensors of a stage by name; `WholeTensors` and `PartitionedTensors` do."""

    tensors: ModuleTensors
    masters: list[Tensor]
    """The tensors that the optimizer updates on this rank; averages, for one, are kept in copies of them."""

    def writers(self, ranks: Ranks) -> int:
        """Return how many of the ranks write tensors into a checkpoint."""
        ...

    def read_copy(self, name: str, copies: Sequence[Tensor], owner: int) -> Tensor | None:
        """Return a trained parameter, taken from copies of `masters`, to the rank `owner`; all ranks call it."""
        ...

    def write_copy(self, name: str, value: Tensor, copies: Sequence[Tensor]) -> None:
        """Overwrite a trained parameter in copies of `masters`; every rank gives the whole value."""
        ...

    def spec(self, tensor: Tensor) -> TensorSpec:
        """Return how a tensor of the stage is stored."""
        ...

    def read(self, tensor: Tensor, owner: int) -> Tensor | None:
        """Return a tensor of the stage to the rank `owner`; all ranks call it together."""
        ...

    def write(self, tensor: Tensor, value: Tensor) -> None:
        """Overwrite a tensor of the stage; every rank gives the whole value."""
        ...

    def optimizer_entries(self) -> dict[str, OptimizerEntry]:
        """Return the optimizer of each parameter and the states that it keeps now."""
        ...

    def read_state(self, name: str, key: str, owner: int) -> Tensor | None:
        """Return an optimizer state to the rank `owner`; all ranks call it together."""
        ...

    def write_states(self, name: str, values: dict[str, Tensor]) -> None:
        """Set all optimizer states of a parameter; every rank gives the whole values."""
        ...

    def flush(self) -> None:
        """Finish writing; all ranks call it when everything is written."""
        ...
