"""Tensors written one by one are read by the safetensors library as they were."""

import hashlib
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from divot_lightning.checkpoint.manifest import FileRecord
from divot_lightning.checkpoint.tensor_file import TensorFile, TensorSpec


def _spec(value: torch.Tensor) -> TensorSpec:
    return TensorSpec(value.dtype, tuple(value.shape))


@contextmanager
def largest_file(limit: int) -> Iterator[None]:
    """Let no file grow over `limit` bytes: writing more fails in the operating system, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_every_dtype_and_shape_comes_back(tmp_path: Path) -> None:
    values = {
        "byte": torch.arange(3, dtype=torch.uint8),
        "half": torch.randn(5, 3).bfloat16(),
        "scalar": torch.tensor(2.5),
        "truth": torch.tensor([True, False]),
        "empty": torch.zeros(0, 4),
        "long": torch.tensor([[2**40, -1]]),
        "turned": torch.randn(4, 3).t(),
        "name/with.everything": torch.randn(2, 2, 2, dtype=torch.float64),
    }
    file = TensorFile(tmp_path / "x.safetensors", {name: _spec(value) for name, value in values.items()})
    for name in file.order:
        file.write(name, values[name])
    record = file.close()
    content = (tmp_path / "x.safetensors").read_bytes()
    assert record == FileRecord(len(content), hashlib.sha256(content).hexdigest())
    read = load_file(tmp_path / "x.safetensors")
    assert read.keys() == values.keys()
    for name, value in values.items():
        assert read[name].dtype == value.dtype
        assert torch.equal(read[name], value)


def test_a_full_disk_is_reported_at_the_end_and_later_tensors_are_ignored(tmp_path: Path) -> None:
    values = {name: torch.ones(50_000) for name in "abc"}
    with largest_file(300_000):
        file = TensorFile(tmp_path / "x.safetensors", {name: _spec(value) for name, value in values.items()})
        for name in file.order:
            file.write(name, values[name])
        assert isinstance(file.close(), OSError)


def test_a_folder_that_is_gone_is_reported_at_the_end(tmp_path: Path) -> None:
    file = TensorFile(tmp_path / "nowhere/x.safetensors", {"a": _spec(torch.ones(2))})
    file.write("a", torch.ones(2))
    assert isinstance(file.close(), FileNotFoundError)


def test_tensors_come_in_the_announced_order(tmp_path: Path) -> None:
    file = TensorFile(tmp_path / "x.safetensors", {"a": _spec(torch.ones(2)), "b": _spec(torch.ones(2))})
    with pytest.raises(AssertionError, match="b is not the next"):
        file.write("b", torch.ones(2))
