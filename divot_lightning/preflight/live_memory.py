"""Count the bytes of live tensors; works on torch's meta device, where tensors occupy no memory."""

import weakref
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from divot_lightning.preflight.meta_calls import MetaCalls

_call = MetaCalls()


class LiveMemory(TorchDispatchMode):
    """Count, while active, the bytes of all tensors that operations create and that are still alive.

    A storage counts once, however many views it has, from the operation that creates it until it is freed. Temporary
    memory within an operation counts as far as `within` knows it.

    Attributes:
        now: Bytes that are alive.
        peak: Greatest value of `now`.

    Args:
        device: Kind of device whose tensors count, such as "meta".
        known: Tensors that exist before, such as parameters; they do not count.
        within: Function of an operation, its arguments and its result that returns the bytes it takes besides, until it
            returns.
    """

    def __init__(
        self, device: str, known: Iterable[Tensor] = (), within: Callable[[Any, Any, Any], int] = lambda *call: 0
    ) -> None:
        super().__init__()
        self.device, self.within = device, within
        self.now = self.peak = 0
        self._seen: dict[int, weakref.ref[Any]] = {}
        # Kept alive, so that no new storage gets the same address.
        self._known = [tensor.untyped_storage() for tensor in known]
        self._known_keys = {storage._cdata for storage in self._known}

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run an operation and count the tensors that it returns."""
        result = _call(func, args, kwargs or {})
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor) and leaf.device.type == self.device:
                self._count(leaf.untyped_storage())
        self.peak = max(self.peak, self.now + self.within(func, args, result))
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key in self._seen or key in self._known_keys:
            return
        size = storage.nbytes()

        def forget(reference: Any) -> None:
            self._seen.pop(key, None)
            self.now -= size

        self._seen[key] = weakref.ref(storage, forget)
        self.now += size
        self.peak = max(self.peak, self.now)
