"""Remember what operations on torch's meta device return: torch works out most results in Python, which takes long."""

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

_Shape = tuple[torch.Size, tuple[int, ...], torch.dtype]
"""Size, strides and dtype of a tensor."""


class _UnknownError(Exception):
    """A call cannot be looked up."""


class MetaCalls:
    """Call operations; one that was called before with arguments of the same shapes is not worked out again.

    The layers of a model repeat the same calls. Remembered are operations that return new tensors, all on the meta
    device; views and operations that change their arguments are called each time.
    """

    def __init__(self) -> None:
        self._results: dict[Any, tuple[type, list[_Shape]]] = {}

    def __call__(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Return what an operation returns.

        Args:
            func: The operation, as `__torch_dispatch__` gets it.
            args: Its arguments.
            kwargs: Its arguments by name.
        """
        try:
            key = _key(func, args, kwargs)
        except _UnknownError:
            return func(*args, **kwargs)
        if key not in self._results:
            result = func(*args, **kwargs)
            shapes = _new_shapes(result, (args, kwargs))
            if shapes is not None:
                self._results[key] = type(result), shapes
            return result
        kind, shapes = self._results[key]
        tensors = [torch.empty_strided(size, strides, dtype=dtype, device="meta") for size, strides, dtype in shapes]
        return tensors[0] if kind is Tensor else kind(tensors)


def _key(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Return what decides about the result of a call.

    Raises:
        _UnknownError: More than shapes decides, or the result is not new.
    """
    if not _returns_new_tensors(func):
        raise _UnknownError
    named = tuple((name, _part(value)) for name, value in kwargs.items())
    return func, torch.get_default_dtype(), _part(args), named


def _part(value: Any) -> Any:
    if isinstance(value, Tensor):
        if value.device.type != "meta" or value.layout is not torch.strided or value.is_complex():
            raise _UnknownError
        return value.shape, value.stride(), value.dtype
    if isinstance(value, tuple | list):
        return tuple(map(_part, value))
    return type(value), value  # 2 and 2.0 are equal, but differ in what a product with them is


@cache
def _returns_new_tensors(func: Any) -> bool:
    schema = getattr(func, "_schema", None)
    if schema is None or schema.is_mutable or func.is_view:
        return False
    return all(returned.alias_info is None for returned in schema.returns)


def _new_shapes(result: Any, given: Any) -> list[_Shape] | None:
    """Return the shapes of a result of new tensors on the meta device, None for any other result."""
    leaves = [result] if type(result) is Tensor else list(result) if type(result) in (tuple, list) else []
    if not leaves or not all(map(_is_plain, leaves)):
        return None
    storages = [leaf.untyped_storage()._cdata for leaf in leaves]
    known = {leaf.untyped_storage()._cdata for leaf in tree_leaves(given) if isinstance(leaf, Tensor)}
    if len(set(storages)) < len(storages) or known & set(storages):
        return None  # some return an argument as it is, whatever their schema says
    return [(leaf.shape, leaf.stride(), leaf.dtype) for leaf in leaves]


def _is_plain(leaf: Any) -> bool:
    """Whether `empty_strided` makes the same tensor, its storage included."""
    if type(leaf) is not Tensor or leaf.device.type != "meta" or leaf.is_complex() or leaf.storage_offset():
        return False
    last = sum((size - 1) * stride for size, stride in zip(leaf.shape, leaf.stride(), strict=True))
    elements = last + 1 if leaf.numel() else 0
    return leaf.untyped_storage().nbytes() == elements * leaf.itemsize
