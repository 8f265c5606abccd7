"""Access to the tensors of a stage under ZeRO 1, 2 and 3, where each rank holds a part of them.

ZeRO lays the parameters of a group end to end and cuts the row into one partition per rank. A partition (a "master")
is the float32 tensor that the optimizer steps; its states have the same form. A parameter lies in one partition or
across several: `Fragment` says where.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, distributed

from divot_lightning.checkpoint.module_tensors import ModuleTensors, copy_into
from divot_lightning.checkpoint.optimizer_state import OptimizerEntry, family, leaf_optimizers
from divot_lightning.checkpoint.tensor_file import TensorSpec
from divot_lightning.deepspeed_zero.sharded_weights import gathered
from divot_lightning.distributed.ranks import Ranks
from divot_lightning.errors import UserError
from divot_lightning.models.weights import full_shape, is_sharded

_MASTERS = ("single_partition_of_fp32_groups", "fp32_groups_flat_partition", "fp32_partitioned_groups_flat")
"""Attributes with the partitions in DeepSpeed's optimizers for stages 1 and 2, for bfloat16, and for stage 3."""


_MEMBERS = ("bit16_groups", "bf16_groups", "fp16_groups")
"""Attributes with the parameters of each partition."""


class Fragment(NamedTuple):
    """The part of a parameter that this rank holds.

    Attributes:
        master: Number of the partition.
        start: First element in the partition.
        offset: First element in the parameter, laid out flat.
        length: Number of elements; 0 if the parameter lies on other ranks.
    """

    master: int
    start: int
    offset: int
    length: int


class PartitionedTensors:
    """Tensors by name, and the optimizer states that belong to them.

    All ranks call the methods together and in the same order.

    Args:
        tensors: The tensors of the stage.
        engine: DeepSpeed's engine.
    """

    def __init__(self, tensors: ModuleTensors, engine: Any) -> None:
        self.tensors = tensors
        self.zero = engine.optimizer
        field = next((name for name in _MASTERS if hasattr(self.zero, name)), None)
        # Without training there is no optimizer, and parameters are whole (stage 1 and 2) or sharded (stage 3).
        self.masters: list[Tensor] = [] if field is None else list(getattr(self.zero, field))
        trained = tensors.trained.items() if self.masters else ()
        self.fragments = {name: fragment_of(parameter, self.zero) for name, parameter in trained}
        self._names = {id(tensors.trained[name]): name for name in self.fragments}
        self._steps: dict[int, tuple[str, float]] = {}

    def writers(self, ranks: Ranks) -> int:
        """Return the number of all ranks: each writes a part."""
        return ranks.size

    def spec(self, tensor: Tensor) -> TensorSpec:
        """Return how a tensor is stored: trained parameters in the precision of the optimizer."""
        dtype = self.masters[0].dtype if id(tensor) in self._names else tensor.dtype
        return TensorSpec(dtype, full_shape(tensor))

    def read(self, tensor: Tensor, owner: int) -> Tensor | None:
        """Return a tensor of the stage to the rank `owner`."""
        name = self._names.get(id(tensor))
        if name is not None:
            return self.read_copy(name, self.masters, owner)
        with gathered([tensor]):
            if Ranks.all().rank != owner:
                return None
            return tensor.detach().clone() if is_sharded(tensor) else tensor.detach()

    def write(self, tensor: Tensor, value: Tensor) -> None:
        """Overwrite a tensor of the stage."""
        name = self._names.get(id(tensor))
        if name is not None:
            self.write_copy(name, value, self.masters)
            return
        with gathered([tensor], write=True):
            if not is_sharded(tensor) or Ranks.all().rank == 0:
                copy_into(tensor, value)

    def read_copy(self, name: str, copies: Sequence[Tensor], owner: int) -> Tensor | None:
        """Return a parameter to the rank `owner`, taken from tensors of the form of `masters`."""
        parameter = self.tensors.trained[name]
        fragment = self.fragments[name]
        whole = _own_part(parameter, fragment, copies[fragment.master])
        if Ranks.all().size > 1:
            distributed.reduce(whole, dst=owner)
        return whole.view(full_shape(parameter)) if Ranks.all().rank == owner else None

    def write_copy(self, name: str, value: Tensor, copies: Sequence[Tensor]) -> None:
        """Overwrite a parameter in tensors of the form of `masters`."""
        fragment = self.fragments[name]
        if fragment.length:
            # A narrow view of a tensor that is mapped from a file reads no more than this part of it.
            part = value.reshape(-1).narrow(0, fragment.offset, fragment.length)
            copy_into(copies[fragment.master].narrow(0, fragment.start, fragment.length), part)

    def optimizer_entries(self) -> dict[str, OptimizerEntry]:
        """Return the optimizer of each parameter and the states that it keeps now."""
        return {
            name: OptimizerEntry(
                family(self._optimizer(fragment.master)),
                {
                    key: self._state_spec(name, key, value)
                    for key, value in self._state(fragment.master).items()
                    if value is not None
                },
            )
            for name, fragment in self.fragments.items()
        }

    def read_state(self, name: str, key: str, owner: int) -> Tensor | None:
        """Return an optimizer state to the rank `owner`."""
        index = self.fragments[name].master
        value = self._state(index)[key]
        if not self._is_partition(index, value):
            return torch.tensor(float(value), dtype=torch.float32)
        return self.read_copy(name, [self._state(i).get(key, value) for i in range(len(self.masters))], owner)

    def write_states(self, name: str, values: dict[str, Tensor]) -> None:
        """Set all optimizer states of a parameter.

        Raises:
            UserError: Parameters that share a partition were stepped a different number of times.
        """
        index = self.fragments[name].master
        state = self._state(index)
        for key, value in values.items():
            if tuple(value.shape) != full_shape(self.tensors.trained[name]):
                self._check_step(index, name, float(value))
                compiled = type(self._optimizer(index)).__name__ == "DeepSpeedCPUAdam"
                state[key] = int(value) if compiled else value.clone()
                continue
            if key not in state:
                state[key] = torch.zeros_like(self.masters[index])
            copies = [state[key] if i == index else master for i, master in enumerate(self.masters)]
            self.write_copy(name, value, copies)

    def flush(self) -> None:
        """Copy the masters into the parameters that the forward pass uses."""
        if not self.masters:
            return
        if not hasattr(self.zero, "persistent_parameters"):
            self.zero.update_lp_params()
            return
        for index in range(len(self.masters)):
            self.zero._reassign_or_swap_out_partitioned_parameters(index)
        persistent = self.zero.persistent_parameters
        if persistent:
            # They are kept whole besides their partitions, and have to be made from these again.
            persistent[0].partition(persistent)
            persistent[0].all_gather(persistent)

    def _state(self, index: int) -> dict[str, Any]:
        return self._optimizer(index).state[self.masters[index]]

    def _optimizer(self, index: int) -> Any:
        """Return the optimizer of a partition: the whole one, or one of its parts."""
        groups = getattr(self.zero, "sub_group_to_group_id", None)
        own_group = self.zero.optimizer.param_groups[index if groups is None else groups[index]]
        parts = leaf_optimizers([self.zero.optimizer])
        return next(part for part in parts if any(group is own_group for group in part.param_groups))

    def _is_partition(self, index: int, value: Any) -> bool:
        return isinstance(value, Tensor) and value.shape == self.masters[index].shape

    def _state_spec(self, name: str, key: str, value: Any) -> TensorSpec:
        if self._is_partition(self.fragments[name].master, value):
            return TensorSpec(value.dtype, full_shape(self.tensors.trained[name]))
        if isinstance(value, Tensor) and value.numel() > 1:
            raise UserError(
                f"the optimizer keeps {key} of shape {tuple(value.shape)} for a whole ZeRO partition, which cannot be "
                "stored by parameter\nchoose adamw (--model.optimizer adamw)"
            )
        return TensorSpec(torch.float32, ())

    def _check_step(self, index: int, name: str, step: float) -> None:
        first, expected = self._steps.setdefault(index, (name, step))
        if step != expected:
            raise UserError(
                f"{first} was stepped {expected:g} times and {name} {step:g} times; ZeRO steps them together\n"
                "continue with one process or with --trainer.strategy ddp"
            )


def fragment_of(parameter: Any, zero: Any) -> Fragment:
    """Find the part of a trained parameter that this rank holds.

    Args:
        parameter: The parameter, with what DeepSpeed attached to it.
        zero: DeepSpeed's ZeRO optimizer.
    """
    if is_sharded(parameter):
        index, start, length = zero.grad_position[zero.get_param_id(parameter)]
        offset = length * Ranks.all().rank
        # The last partitions are padded.
        return Fragment(index, start, offset, max(0, min(length, parameter.ds_numel - offset)))
    mapping = parameter._hp_mapping
    if mapping is None:
        groups = getattr(zero, "bit16_groups", None) or zero.bf16_groups
        index = next(i for i, group in enumerate(groups) if any(member is parameter for member in group))
        return Fragment(index, 0, 0, 0)
    here, there = mapping.hp_fragment_address, mapping.lp_fragment_address
    return Fragment(mapping.param_group_index, here.start, there.start, here.numel)


def whole_matrices(zero: Any, partition: Tensor, values: Tensor) -> Iterator[tuple[int, int, int, Tensor]]:
    """Gather the parameters that lie in a partition, one after the other, on all ranks.

    Args:
        zero: DeepSpeed's ZeRO optimizer.
        partition: One of its partitions.
        values: In the form of the partition, for example gradients.

    Yields:
        The start, offset and length of its `Fragment`, and the values of the whole parameter, on the device of the run.
    """
    masters = next(getattr(zero, name) for name in _MASTERS if hasattr(zero, name))
    groups = next(getattr(zero, name) for name in _MEMBERS if hasattr(zero, name))
    index = next(number for number, master in enumerate(masters) if master is partition)
    for parameter in groups[index]:
        fragment = fragment_of(parameter, zero)
        whole = _own_part(parameter, fragment, values)
        if Ranks.all().size > 1:
            distributed.all_reduce(whole)
        yield *fragment[1:], whole.view(full_shape(parameter))


def _own_part(parameter: Tensor, fragment: Fragment, partition: Tensor) -> Tensor:
    """Return the values of a parameter, flat, as far as this rank's partition has them; zeros elsewhere."""
    whole = torch.zeros(torch.Size(full_shape(parameter)).numel(), dtype=partition.dtype, device=_device())
    if fragment.length:
        part = partition.detach().narrow(0, fragment.start, fragment.length)
        whole.narrow(0, fragment.offset, fragment.length).copy_(part)
    return whole


def _device() -> torch.device:
    from deepspeed.accelerator import get_accelerator

    return torch.device(get_accelerator().current_device_name())
