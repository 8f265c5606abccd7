"""How the weights of a model are held while it is built: whole in every process, or as its strategy says.

A strategy that divides weights over processes (ZeRO stage 3) gives a `WeightSharding` to `held_by`, which surrounds the
building of a stage. Models, and `divot_lightning.checkpoint.components`, call the functions of this module; without a
sharding they do what is usual in one process.
"""

import json
from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from safetensors import safe_open
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from divot_lightning.errors import UserError
from divot_lightning.io.component_files import WEIGHTS_FILE, read_parts


class Misfit(NamedTuple):
    """Names that did not fit in `fill`: of the module but not stored, and stored but not of the module."""

    missing: list[str]
    unexpected: list[str]


class StoredTensor(NamedTuple):
    """Where a tensor is stored.

    Attributes:
        file: A safetensors file.
        name: The tensor's name in it.
        shape: Its shape.
    """

    file: Path
    name: str
    shape: tuple[int, ...]

    def read(self) -> Tensor:
        """Map the tensor; the file is opened for each, since an open file keeps all pages that were read in memory."""
        with safe_open(str(self.file), "pt") as stored:
            return stored.get_tensor(self.name)


class WeightSharding(Protocol):
    """Divides the weights of modules over processes while they are built; all processes call it together."""

    def without_memory(self) -> AbstractContextManager[None]:
        """Return a context in which modules get parameters without memory; their buffers take memory."""
        ...

    def fill(self, module: nn.Module, stored: Mapping[str, StoredTensor]) -> Misfit:
        """Read a module's weights tensor by tensor and shard them; see the function `fill`."""
        ...

    def fill_from_first(self, module: nn.Module, load: Callable[[], nn.Module]) -> None:
        """Copy weights from a whole module, which the first process alone loads, and shard them."""
        ...

    def shard(self, parameters: Iterable[nn.Parameter]) -> None:
        """Shard those parameters that are whole; their values are those of the first process."""
        ...

    def gathered(self, parameters: Iterable[Tensor], *, write: bool = False) -> AbstractContextManager[None]:
        """Gather sharded parameters within the block; see the function `gathered`."""
        ...


_SHARDING: ContextVar[WeightSharding | None] = ContextVar("sharding", default=None)
_MASTERS: ContextVar[bool] = ContextVar("masters", default=False)


@contextmanager
def held_by(sharding: WeightSharding | None, *, masters: bool) -> Generator[None, None, None]:
    """Surround the building of a stage.

    Args:
        sharding: Divides the weights; with None they are whole.
        masters: Whether the optimizer keeps float32 copies of weights in half precision.
    """
    tokens = _SHARDING.set(sharding), _MASTERS.set(masters)
    try:
        yield
    finally:
        _SHARDING.reset(tokens[0])
        _MASTERS.reset(tokens[1])


def has_masters() -> bool:
    """Return whether the optimizer of the stage being built keeps float32 copies of the weights."""
    return _MASTERS.get()


def is_sharding() -> bool:
    """Return whether modules that are built now are sharded."""
    return _SHARDING.get() is not None


class _UndrawnParameters(TorchDispatchMode):
    """Leaves out the random values of parameters; all other tensors get theirs."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _DRAWING and isinstance(args[0], nn.Parameter):
            return args[0]
        return func(*args, **(kwargs or {}))


_DRAWING = frozenset({torch.ops.aten.normal_.default, torch.ops.aten.uniform_.default})
"""What torch's initializers call in the end. To draw the values of large models takes longer than to read them."""


def without_values() -> AbstractContextManager[Any]:
    """Build a module within the block whose parameters `fill` reads: without memory if they are sharded.

    Whole parameters have memory, but no random values are drawn for them.
    """
    sharding = _SHARDING.get()
    return _UndrawnParameters() if sharding is None else sharding.without_memory()


def fill(module: nn.Module, stored: Mapping[str, StoredTensor]) -> Misfit:
    """Read a module's parameters and persistent buffers.

    Args:
        module: Sharded: built within `without_values`.
        stored: Where the tensors are, by the module's names; of a tied parameter any one of its names will do, and of
            several the first one counts. Sharded, a stored tensor may have fewer rows than its parameter, whose first
            ones it fills.

    Returns:
        Names that did not fit; sharded, nothing is read if some are missing.
    """
    sharding = _SHARDING.get()
    if sharding is not None:
        return sharding.fill(module, stored)
    state = module.state_dict(keep_vars=True)
    tied: dict[int, list[str]] = {}
    for name, value in state.items():
        tied.setdefault(id(value), []).append(name)
    found = [next((name for name in group if name in stored), None) for group in tied.values()]
    with torch.no_grad():
        for name in filter(None, found):
            values = stored[name].read()  # one at a time: a file's pages leave the memory when it is closed
            if values.shape != state[name].shape:
                raise ValueError(f"{name} is {tuple(values.shape)} instead of {tuple(state[name].shape)}")
            state[name].copy_(values)
    missing = [group[0] for name, group in zip(found, tied.values(), strict=True) if name is None]
    return Misfit(missing, sorted(stored.keys() - state.keys()))


def fill_from_first(module: nn.Module, load: Callable[[], nn.Module]) -> None:
    """Copy sharded weights from a whole module, which the first process alone loads."""
    sharding = _SHARDING.get()
    assert sharding is not None
    sharding.fill_from_first(module, load)


def shard_rest(module: nn.Module) -> None:
    """Shard the parameters of a module that are still whole, if weights are sharded."""
    sharding = _SHARDING.get()
    if sharding is not None:
        sharding.shard(module.parameters())


def gathered(parameters: Iterable[Tensor], *, write: bool = False) -> AbstractContextManager[None]:
    """Gather sharded parameters within the block; all processes enter it together. Others stay as they are.

    Args:
        parameters: Sharded or not.
        write: Keep what the first process writes into them; else they must only be read.
    """
    sharding = _SHARDING.get()
    return nullcontext() if sharding is None else sharding.gathered(parameters, write=write)


def is_sharded(parameter: Tensor) -> bool:
    """Return whether this process holds only its shard of a parameter; `ds_id` is DeepSpeed's mark of it."""
    return hasattr(parameter, "ds_id")


def has_shards(module: nn.Module) -> bool:
    """Return whether a module has sharded parameters, so that all processes must run it together."""
    return any(is_sharded(parameter) for parameter in module.parameters())


def full_shape(tensor: Tensor) -> tuple[int, ...]:
    """Return the shape of a whole tensor, which a sharded one keeps besides its shard."""
    return tuple(getattr(tensor, "ds_shape", tensor.shape))


def weight_files(folder: Path) -> list[Path]:
    """Find the safetensors files of a pretrained model's folder; none where it has other files or none.

    Raises:
        UserError: The index of the files is damaged.
    """
    index = next(iter(sorted(folder.glob("*.safetensors.index.json"))), None)
    if index is not None:
        try:
            names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{index} is damaged ({type(error).__name__}); download the folder again") from error
        return [folder / name for name in sorted(names)]
    whole = [folder / name for name in ("model.safetensors", "diffusion_pytorch_model.safetensors")]
    return [file for file in whole if file.is_file()][:1]


def stored_tensors(files: Iterable[Path], prefix: str = "") -> dict[str, StoredTensor]:
    """Return where the tensors of some safetensors files are, by `prefix` and their names.

    Raises:
        OSError: A file is missing.
        SafetensorError: A file is damaged.
    """
    found = {}
    for file in files:
        with safe_open(str(file), "pt") as opened:
            for name in opened.keys():  # noqa: SIM118
                found[prefix + name] = StoredTensor(file, name, tuple(opened.get_slice(name).get_shape()))
    return found


def component_tensors(folder: Path) -> dict[str, StoredTensor]:
    """Return where the weights of a component folder are; see `divot_lightning.io.component_files`.

    Raises:
        OSError: A file is missing.
        SafetensorError: A file is damaged.
    """
    inner = {
        name: tensor
        for path, part in read_parts(folder).items()
        for name, tensor in stored_tensors(weight_files(folder / part), f"{path}.").items()
    }
    # What the component stores itself comes last: it is there because the part's folder does not have it so.
    return {**inner, **stored_tensors(_own_files(folder))}


def weight_paths(folder: Path) -> list[Path]:
    """Return all files with weights of a component folder, of its parts too."""
    parts = sorted(read_parts(folder).values())
    return [*_own_files(folder), *(file for part in parts for file in weight_files(folder / part))]


def _own_files(folder: Path) -> list[Path]:
    return weight_files(folder) or ([] if read_parts(folder) else [folder / WEIGHTS_FILE])
