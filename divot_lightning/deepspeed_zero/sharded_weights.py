"""Modules that are sharded over processes while they are built (ZeRO stage 3), so that no process holds them whole.

DeepSpeed's `zero.Init` shards each module as soon as its own constructor ends. What the constructor around it then
does to the weights (zero gates, positions, tied weights) is silently lost. Here a module with weights on disk is built
without memory for its parameters, which are then read, sent and sharded one by one. A module without weights on disk is
built as usual and sharded part by part.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, NamedTuple

import torch
from accelerate import init_empty_weights
from torch import Tensor, distributed, nn

from divot_lightning.distributed.ranks import Ranks
from divot_lightning.errors import UserError
from divot_lightning.models.weights import Misfit, StoredTensor, is_sharded

_HALVES = {"bf16": torch.bfloat16, "fp16": torch.float16}


class ShardedWeights:
    """A `divot_lightning.models.weights.WeightSharding` by DeepSpeed.

    Args:
        settings: DeepSpeed's settings, with ZeRO stage 3.
    """

    def __init__(self, settings: dict[str, Any]) -> None:
        import deepspeed

        self.half = half_precision(settings)
        # Without a module of its own: only its way of converting parameters is needed.
        self._init = deepspeed.zero.Init(module=nn.Module(), config_dict_or_path=settings, dtype=self.half)

    def without_memory(self) -> AbstractContextManager[None]:
        """Return accelerate's context for building modules whose parameters take no memory."""
        return init_empty_weights(include_buffers=False)

    def shard(self, parameters: Iterable[nn.Parameter]) -> None:
        """Shard whole parameters over the processes; the values are those of the first process."""
        for parameter in parameters:
            if not is_sharded(parameter):
                if self.half is not None:
                    parameter.data = parameter.data.to(self.half)
                refuse_scalar("a parameter", parameter)
                self._init._convert_to_zero_parameters([parameter])

    def gathered(self, parameters: Iterable[Tensor], *, write: bool = False) -> AbstractContextManager[None]:
        """Gather sharded parameters within the block; all processes enter it together. Others stay as they are."""
        return gathered(parameters, write=write)

    def fill(self, module: nn.Module, stored: Mapping[str, StoredTensor]) -> Misfit:
        """Read a module's parameters and persistent buffers tensor by tensor, shard them, and check their content.

        Args:
            module: Built without memory.
            stored: Where the tensors are, by the module's names; of a tied parameter any one of its names will do. A
                stored tensor with fewer rows than its parameter fills the first ones.

        Returns:
            Names that did not fit; if some are missing, nothing was read.

        Raises:
            UserError: A sharded parameter, put together again, differs from its file; raised on all processes.
        """
        groups = list(_aliases(module))
        buffers = {name: value for name, value in module.state_dict().items() if name in dict(module.named_buffers())}
        missing = [group[0].name for group in groups if not any(slot.name in stored for slot in group)]
        missing += [name for name in buffers if name not in stored]
        known = {slot.name for group in groups for slot in group} | set(buffers)
        found = Misfit(missing, sorted(set(stored) - known))
        if missing:
            return found
        named = [(next(slot.name for slot in group if slot.name in stored), group) for group in groups]
        changed = [name for name, group in named if not self._fill_slots(group, stored[name].read)]
        for name, value in buffers.items():
            value.copy_(stored[name].read())
        _require_unchanged(changed, type(module).__name__)
        _forget_originals(module)
        return found

    def fill_from_first(self, module: nn.Module, load: Callable[[], nn.Module]) -> None:
        """Copy parameters and buffers from a whole module of the first process, and shard them.

        Args:
            module: Built without memory.
            load: Returns the whole module; called on the first process alone.
        """
        source = load() if Ranks.all().rank == 0 else None
        stored = dict(source.state_dict()) if source is not None else {}
        named = [(group[0].name, group) for group in _aliases(module)]
        changed = [name for name, group in named if not self._fill_slots(group, partial(stored.__getitem__, name))]
        _require_unchanged(changed, type(module).__name__)
        for name, value in module.named_buffers():
            if source is not None:
                value.copy_(source.get_buffer(name))
            distributed.broadcast(value, 0)

    def _fill_slots(self, group: "list[_Slot]", read: Callable[[], Tensor]) -> bool:
        """Read a parameter on the first process and shard it.

        Returns:
            Whether its shards, put together again, equal what was read; always on the other processes.
        """
        empty = group[0].owner._parameters[group[0].attribute]
        assert empty is not None
        values = torch.zeros(empty.shape, dtype=self.half or empty.dtype, device="cpu")
        if Ranks.all().rank == 0:
            stored = read()
            values[: len(stored)].copy_(stored) if stored.ndim else values.copy_(stored)
        parameter = nn.Parameter(values, requires_grad=empty.requires_grad)
        del values
        self.shard([parameter])
        for owner, attribute, _ in group:
            owner._parameters[attribute] = parameter
        with gathered([parameter]):
            return Ranks.all().rank != 0 or _starts_with(parameter.detach(), read())


def _starts_with(whole: Tensor, stored: Tensor) -> bool:
    """Return whether the first rows of a tensor are those of another one, in its dtype; NaN equals NaN."""
    rows = whole[: len(stored)] if stored.ndim else whole
    return torch.equal(rows.view(torch.uint8), stored.to(whole).reshape(rows.shape).view(torch.uint8))


def _require_unchanged(changed: list[str], module: str) -> None:
    """Refuse parameters whose shards differ from their files; all processes call it together.

    Raises:
        UserError: The first process found some.
    """
    found: list[str] = Ranks.all().gather(changed)[0]
    if found:
        raise UserError(
            f"{len(found)} weights of a {module} changed while they were divided among the processes, such as "
            f"{found[0]}\nthe connection between the processes or the memory of one is faulty: start again on other "
            "machines"
        )


def gathered(parameters: Iterable[Tensor], *, write: bool = False) -> AbstractContextManager[None]:
    """Gather sharded parameters within the block; all processes enter it together. Others stay as they are.

    Args:
        parameters: Sharded or not.
        write: Keep what the first process writes into them; else they must only be read.
    """
    sharded = [parameter for parameter in parameters if is_sharded(parameter)]
    if not sharded:
        return nullcontext()
    import deepspeed

    return deepspeed.zero.GatheredParameters(sharded, modifier_rank=0 if write else None)


def refuse_scalar(name: str, parameter: Tensor) -> None:
    """Refuse a parameter without dimensions: DeepSpeed sends values as bytes, and cannot view it as such.

    Args:
        name: Name for the message.
        parameter: Not sharded yet.

    Raises:
        UserError: It has no dimensions.
    """
    if parameter.ndim == 0:
        raise UserError(
            f"{name} is a scalar, torch.Size([]), which DeepSpeed cannot shard under any ZeRO stage\n"
            "give it a dimension (torch.zeros(1) for torch.tensor(0.0)), or train with --trainer.strategy ddp"
        )


def half_precision(settings: dict[str, Any]) -> torch.dtype | None:
    """Return the half precision of the weights under DeepSpeed's settings, None for float32."""
    return next((dtype for name, dtype in _HALVES.items() if settings.get(name, {}).get("enabled")), None)


def _forget_originals(module: nn.Module) -> None:
    """Empty PEFT's copies of weights that had no values; it keeps them to undo a merge, which is not done here."""
    for owner in module.modules():
        for name, buffer in owner._buffers.items():
            if buffer is not None and buffer.is_meta:
                assert type(owner).__name__ == "BufferDict", f"{name} of {type(owner).__name__} was never computed"
                owner._buffers[name] = torch.zeros_like(buffer, device="cpu")


class _Slot(NamedTuple):
    owner: nn.Module
    attribute: str
    name: str


def _aliases(module: nn.Module) -> Iterator[list[_Slot]]:
    """Yield the slots of each parameter: the modules and attributes that hold it; a tied one has several.

    Tied parameters share a storage: `init_empty_weights` makes a new object of each, around one storage.
    """
    groups: dict[int, list[_Slot]] = {}
    for prefix, owner in module.named_modules(remove_duplicate=False):
        for attribute, parameter in owner._parameters.items():
            if parameter is not None:
                name = f"{prefix}.{attribute}" if prefix else attribute
                storage = parameter.untyped_storage()._cdata
                groups.setdefault(storage, []).append(_Slot(owner, attribute, name))
    yield from groups.values()
