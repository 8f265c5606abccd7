"""Writing of safetensors files tensor by tensor, so that a process holds at most one of them in memory.

The format: 8 bytes length of the header, the header as JSON, the bytes of all tensors without gaps
(https://huggingface.co/docs/safetensors). The library writes only what is in memory as a whole.
"""

import contextlib
import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from divot_lightning.checkpoint.manifest import FileRecord

_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


class TensorSpec(NamedTuple):
    """Dtype and shape of a tensor, for the header, which is written before the contents."""

    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def bytes(self) -> int:
        """Size of the content."""
        return torch.Size(self.shape).numel() * self.dtype.itemsize


class TensorFile:
    """A safetensors file that is being written; after an `OSError`, such as a full disk, further tensors are ignored.

    The error is kept and raised at the end. Until then the process still takes part in gathering tensors: the other
    processes would wait for it otherwise.

    Args:
        path: The file.
        specs: All tensors by name; `order` says in which order their contents have to come.
    """

    def __init__(self, path: Path, specs: Mapping[str, TensorSpec]) -> None:
        self.path = path
        self.specs = specs
        # Largest elements first keeps every tensor aligned to its own element size.
        self.order = sorted(specs, key=lambda name: -specs[name].dtype.itemsize)
        self.error: OSError | None = None
        self._written: list[str] = []
        self._hash = hashlib.sha256()
        self._size = 0
        try:
            self._file = path.open("wb")
        except OSError as error:
            self.error = error
        self._put(self._header())

    def write(self, name: str, tensor: Tensor) -> None:
        """Append a tensor; it must be the next one of `order` and have the announced dtype and shape."""
        assert name == self.order[len(self._written)], f"{name} is not the next tensor of {self.path.name}"
        assert self.specs[name] == (tensor.dtype, tuple(tensor.shape)), f"{name} is not as announced"
        self._written.append(name)
        self._put(tensor_bytes(tensor))

    def close(self) -> FileRecord | OSError:
        """Write the file to the disk and close it.

        Returns:
            Its size and hash, or the error.
        """
        if self.error is None:
            assert len(self._written) == len(self.order), f"{self.path.name} lacks tensors"
            try:
                self._file.flush()
                os.fsync(self._file.fileno())
            except OSError as error:
                self.error = error
        if hasattr(self, "_file"):
            # Closing flushes what is left, which fails again where writing failed.
            with contextlib.suppress(OSError):
                self._file.close()
        return self.error or FileRecord(self._size, self._hash.hexdigest())

    def _header(self) -> bytes:
        described, start = {}, 0
        for name in self.order:
            spec = self.specs[name]
            described[name] = {
                "dtype": _NAMES[spec.dtype],
                "shape": list(spec.shape),
                "data_offsets": [start, start + spec.bytes],
            }
            start += spec.bytes
        text = json.dumps(described).encode()
        text += b" " * (-len(text) % 8)
        return len(text).to_bytes(8, "little") + text

    def _put(self, content: bytes | memoryview) -> None:
        if self.error is not None:
            return
        try:
            self._file.write(content)
        except OSError as error:
            self.error = error
            return
        self._hash.update(content)
        self._size += len(content)


def tensor_bytes(tensor: Tensor) -> memoryview:
    """Return the content of a tensor, copied to the CPU where it is elsewhere.

    >>> list(tensor_bytes(torch.tensor([1, 2], dtype=torch.int16)))
    [1, 0, 2, 0]
    """
    flat = tensor.detach().to("cpu").contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data if flat.numel() else memoryview(b"")
