"""Autocast for torch's meta device, which torch itself does not have.

The lists of operations are "CUDA Ops that can autocast" and "CPU Ops that can autocast" in PyTorch's documentation of
`torch.amp` (2.13), as far as layers and losses use them.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map_only

from divot_lightning.models.weight_dtypes import HALF

_MATRIX_PRODUCTS = frozenset(
    (
        *("matmul", "__matmul__", "__rmatmul__", "mm", "mv", "bmm", "addmm", "addmv", "addbmm", "baddbmm", "addr"),
        *("chain_matmul", "multi_dot", "linear", "einsum", "prelu", "scaled_dot_product_attention"),
        *("conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d"),
    )
)
_LOSSES = frozenset(
    ("mse_loss", "nll_loss", "cross_entropy", "l1_loss", "smooth_l1_loss", "kl_div", "cosine_embedding_loss")
)
_FLOAT32 = {
    "cpu": _LOSSES | {"prod", "cdist", "avg_pool3d", "grid_sample"},
    "cuda": _LOSSES
    | {
        *("layer_norm", "group_norm", "softmax", "log_softmax", "softplus", "normalize", "cosine_similarity"),
        *("exp", "expm1", "log", "log10", "log1p", "log2", "pow", "__pow__", "__rpow__", "__rtruediv__", "__rdiv__"),
        *("prod", "cumsum", "cumprod", "norm", "dist", "cdist", "reciprocal", "rsqrt"),
        "binary_cross_entropy_with_logits",
    },
}


class MetaAutocast(TorchFunctionMode):
    """Compute in half precision, while active, the operations for which autocast does so on a real device.

    Args:
        device: "cuda" or "cpu", whose rules apply.
        dtype: Half precision; None changes nothing.
    """

    def __init__(self, device: str, dtype: torch.dtype | None) -> None:
        super().__init__()
        self.dtype = dtype
        self._float32 = _FLOAT32[device]
        self._cast: dict[int, Tensor] = {}

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Cast the floating-point arguments of a call if its name is in a list.

        Raises:
            RuntimeError: A matrix product gets tensors of several precisions, which only the meta device accepts.
        """
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if self.dtype is not None and name in _MATRIX_PRODUCTS:
            args, kwargs = tree_map_only(Tensor, self.lower, (args, kwargs))
        elif self.dtype is not None and name in self._float32:
            args, kwargs = tree_map_only(Tensor, _to_float32, (args, kwargs))
        if name in _MATRIX_PRODUCTS:
            _check_dtypes(name, tree_leaves((args, kwargs)))
        return func(*args, **kwargs)

    def lower(self, tensor: Tensor) -> Tensor:
        """Cast a float32 tensor down; a trained weight once until `forget_weights`, as autocast's cache does."""
        if self.dtype is None or tensor.device.type != "meta" or tensor.dtype != torch.float32:
            return tensor
        if not (tensor.is_leaf and tensor.requires_grad):
            return tensor.to(self.dtype)
        return self._cast.setdefault(id(tensor), tensor.to(self.dtype))

    def forget_weights(self) -> None:
        """Forget the weights that were cast, as the end of autocast does."""
        self._cast.clear()

    @contextmanager
    def switched(self, enabled: bool) -> Iterator[None]:
        """Stand for `torch.autocast` on the meta device."""
        dtype = self.dtype
        self.dtype = dtype if enabled else None
        try:
            yield
        finally:
            self.dtype = dtype


def _to_float32(tensor: Tensor) -> Tensor:
    half = tensor.device.type == "meta" and tensor.dtype in HALF
    return tensor.float() if half else tensor


def _check_dtypes(name: str, leaves: list[Any]) -> None:
    dtypes = {str(leaf.dtype) for leaf in leaves if isinstance(leaf, Tensor) and leaf.is_floating_point()}
    if len(dtypes) > 1:
        raise RuntimeError(f"{name} gets {' and '.join(sorted(dtypes))}: this stage does not train in this precision")
