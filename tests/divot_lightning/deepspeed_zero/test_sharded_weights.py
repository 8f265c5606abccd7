"""Modules that are sharded while they are built: with the right values, and whole on no process."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from divot_lightning.deepspeed_zero.deepspeed_setup import prepare_deepspeed_for_cpu
from divot_lightning.deepspeed_zero.sharded_weights import ShardedWeights, gathered, refuse_scalar
from divot_lightning.errors import UserError
from divot_lightning.models.weights import Misfit, fill, held_by, shard_rest, stored_tensors, without_values
from divot_lightning.testing import run_distributed

WIDTH, LAYERS = 128, 24
LAYER_BYTES = 4 * WIDTH * (WIDTH + 1)
SETTINGS = {
    "train_micro_batch_size_per_gpu": 1,
    "zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": 0},
}


class Tied(nn.Module):
    """Two names for one parameter, a frozen one, and a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.other = nn.Linear(5, 7), nn.Linear(5, 7, bias=False)
        self.other.weight = self.first.weight
        self.scale = nn.Parameter(torch.zeros(1), requires_grad=False)
        self.register_buffer("seen", torch.zeros(3))


class FaultyWeights(ShardedWeights):
    """Changes one number of every parameter while it is sharded, as broken memory would."""

    def shard(self, parameters: Iterable[nn.Parameter]) -> None:
        (parameter,) = parameters
        super().shard([parameter])
        with gathered([parameter], write=True), torch.no_grad():
            parameter[-1] += 1.0


def stack() -> nn.Sequential:
    return nn.Sequential(*(nn.Linear(WIDTH, WIDTH) for _ in range(LAYERS)))


def stored_values() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(value.shape, generator=generator) for name, value in stack().state_dict().items()}


def tied_values() -> dict[str, Tensor]:
    return {
        "other.weight": torch.arange(30.0).view(6, 5),  # a row less than the parameter has
        "first.bias": torch.arange(7.0),
        "scale": torch.tensor([4.0]),
        "seen": torch.tensor([1.0, 2.0, 3.0]),
        "odd": torch.zeros(1),
    }


class Held(TorchDispatchMode):
    """The most bytes of tensors made within that were alive after any operation.

    It asks the storages themselves: torch's profiler misses what the threads of gloo are the last to let go.

    Args:
        mapped: Size of a file that is mapped into memory while it is read, which takes none.
    """

    def __init__(self, mapped: int = 0) -> None:
        super().__init__()
        self.mapped, self.most = mapped, 0
        self._sizes: dict[StorageWeakRef, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor) and not tensor.is_meta:
                storage = tensor.untyped_storage()
                self._sizes[StorageWeakRef(storage)] = storage.nbytes()
        self._sizes = {storage: size for storage, size in self._sizes.items() if not storage.expired()}
        self.most = max(self.most, sum(size for size in self._sizes.values() if size != self.mapped))
        return result


def whole(module: nn.Module) -> dict[str, Tensor]:
    with gathered(module.parameters()):
        return {name: value.detach().clone() for name, value in module.state_dict(keep_vars=True).items()}


def build(rank: int, folder: str) -> dict[str, Any]:
    prepare_deepspeed_for_cpu()
    with held_by(ShardedWeights(SETTINGS), masters=False):
        shard_rest(nn.Linear(2, 2))  # what DeepSpeed does once
        file = Path(folder) / "stack.safetensors"
        with Held(mapped=file.stat().st_size) as from_file:
            with without_values():
                read = stack()
            fill(read, stored_tensors([file]))
        with Held() as by_parts:
            drawn = nn.Sequential()
            for _ in range(LAYERS):
                drawn.append(nn.Linear(WIDTH, WIDTH))
                shard_rest(drawn)
        with without_values():
            tied, lacking = Tied(), Tied()
        found = fill(tied, stored_tensors([Path(folder) / "tied.safetensors"]))
        missing = fill(lacking, stored_tensors([file]))
    with held_by(FaultyWeights(SETTINGS), masters=False):
        with without_values():
            damaged = stack()
        with pytest.raises(UserError) as refused:
            fill(damaged, stored_tensors([file]))
    return {
        "refused": str(refused.value),
        "most": (from_file.most, by_parts.most),
        "read": whole(read),
        "drawn": whole(drawn),
        "tied": whole(tied),
        "is_tied": tied.first.weight is tied.other.weight,
        "trains": {name: value.requires_grad for name, value in tied.named_parameters()},
        "found": found,
        "missing": missing.missing,
        "unread": all(value.is_meta for value in lacking.parameters()),
    }


def test_weights_that_changed_while_they_were_sharded_are_refused_on_all_processes(ranks: list[dict[str, Any]]) -> None:
    for rank in ranks:
        assert f"{2 * LAYERS} weights of a Sequential changed" in rank["refused"]
        assert "such as 0.weight" in rank["refused"]


def test_a_parameter_without_dimensions_is_refused_by_name() -> None:
    refuse_scalar("head.scale", torch.zeros(1))
    with pytest.raises(UserError, match=r"head\.scale is a scalar, torch\.Size\(\[\]\)(.|\n)*torch\.zeros\(1\)"):
        refuse_scalar("head.scale", torch.tensor(0.0))


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("weights")
    save_file(stored_values(), folder / "stack.safetensors")
    save_file(tied_values(), folder / "tied.safetensors")
    return run_distributed(build, 2, str(folder), timeout=300)


def test_no_process_holds_a_model_whole_while_it_is_built(ranks: list[dict[str, Any]]) -> None:
    for rank in ranks:
        for most in rank["most"]:
            # Half of it, a layer that is whole and its share, and one that a thread of gloo may still hold.
            assert LAYERS * LAYER_BYTES / 2 <= most <= (LAYERS / 2 + 3) * LAYER_BYTES


def test_weights_from_a_file_are_those_of_the_file(ranks: list[dict[str, Any]]) -> None:
    for rank in ranks:
        for name, value in stored_values().items():
            assert torch.equal(rank["read"][name], value), name


def test_random_weights_are_the_first_processs_on_all(ranks: list[dict[str, Any]]) -> None:
    first, other = (rank["drawn"] for rank in ranks)
    assert all(torch.equal(other[name], value) for name, value in first.items())
    assert first["0.weight"].std() > 0


def test_tied_grown_and_frozen_parameters_and_buffers_are_filled(ranks: list[dict[str, Any]]) -> None:
    stored = tied_values()
    for rank in ranks:
        assert rank["is_tied"]
        assert rank["trains"] == {"scale": False, "first.weight": True, "first.bias": True}
        assert torch.equal(rank["tied"]["first.weight"], torch.cat([stored["other.weight"], torch.zeros(1, 5)]))
        for name in ("first.bias", "scale", "seen"):
            assert torch.equal(rank["tied"][name], stored[name]), name


def test_misfitting_names_are_returned_and_nothing_is_read_if_any_is_missing(
    ranks: list[dict[str, Any]],
) -> None:
    for rank in ranks:
        assert rank["found"] == Misfit([], ["odd"])
        assert sorted(rank["missing"]) == ["first.bias", "first.weight", "scale", "seen"]
        assert rank["unread"]
