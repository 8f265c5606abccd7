"""The base class of generation heads: `loss` and `sample` between the LLM's hidden states and a clip's features.

The rest of the module is common to heads: computation in float32, and means over the tokens that count.

Shape letters: B batch, Q tokens of one clip, D LLM width, C feature width.
"""

import functools
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any, ClassVar, Concatenate, ParamSpec, TypeVar

import torch
from torch import Generator, Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from divot_lightning.errors import UserError
from divot_lightning.parts.part import Part

P = ParamSpec("P")
T = TypeVar("T")
H = TypeVar("H", bound=nn.Module)

_HALF_DTYPES = (torch.bfloat16, torch.float16)


class GenerationHead(Part, nn.Module, ABC):
    """Learns and samples the features of a clip, given the LLM's hidden states at the clip's queries.

    The first two arguments of a subclass are `hidden_dim` and `feature_dim`, which the model supplies. Its own
    settings follow, which a recipe supplies; they must be values that JSON can hold. A subclass implements `loss` and
    `sample`, both decorated with `force_float32`. It gets all tokens of a clip at once and may treat them one by one
    or jointly. With `generation_mode: autoregressive` it gets one token at a time (Q = 1), in training as well. With
    every mode it gets one token, whose loss counts nothing, if a batch generates no clip. Then too every parameter must
    have a gradient, and for ZeRO-3 the head must call the same modules as for a clip.

    Targets are normalised per channel (mean 0, standard deviation 1 over the first batches of the training data).

    Attributes:
        init_args: The settings this head was built with, with defaults and without the two widths, so that a saved
            head can be built again. They are recorded when the head is built; a subclass needs no code for it.
        deterministic: Declared by the class: whether `sample` returns the same features for every generator.
        sampling_settings: Declared by the class: names of the settings that only `sample` reads, such as a number of
            steps or a guidance scale. Each must be an attribute of the same name, so that it can be changed in a
            trained head; see `divot_lightning.parts.sampling`.
    """

    deterministic: ClassVar[bool] = False
    sampling_settings: ClassVar[tuple[str, ...]] = ()
    supplied_args: ClassVar[tuple[str, ...]] = ("hidden_dim", "feature_dim")

    def __init__(self, hidden_dim: int, feature_dim: int) -> None:
        """Store the widths.

        Args:
            hidden_dim: D, width of the LLM's hidden states.
            feature_dim: C, width of the features to generate.
        """
        super().__init__()
        self.hidden_dim = hidden_dim
        self.feature_dim = feature_dim

    @abstractmethod
    def loss(self, hidden_BQD: Tensor, target_BQC: Tensor, mask_BQ: Tensor | None = None) -> Tensor:
        """Return the loss of predicting the target features from the hidden states.

        Args:
            hidden_BQD: Hidden states at the queries, any float dtype.
            target_BQC: Target features, any float dtype.
            mask_BQ: True or 1 where a token counts; None counts all. The values of masked tokens must not matter.

        Returns:
            A scalar, float32 also under autocast: the mean over the tokens that count, 0 if no token counts.
        """

    @abstractmethod
    def sample(self, hidden_BQD: Tensor, *, temperature: float = 1.0, generator: Generator | None = None) -> Tensor:
        """Sample features.

        Args:
            hidden_BQD: Hidden states at the queries, any float dtype.
            temperature: Spread of the samples; 1 is the learned distribution, 0 the least random sample of the head.
            generator: Random generator on the device of `hidden_BQD`; None is the global one.

        Returns:
            features_BQC, float32, without gradient.
        """

    def sample_each(
        self, hidden_BQD: Tensor, generators: Sequence[Generator | None], *, temperature: float = 1.0
    ) -> Tensor:
        """Sample features once for each of N generators, as N calls of `sample` do, bit for bit.

        A head whose samples share work, such as a projection of the hidden states, does that work once in here.

        Args:
            hidden_BQD: See `sample`.
            generators: One generator per sample; see `sample`.
            temperature: See `sample`.

        Returns:
            features_NBQC, float32, without gradient.
        """
        return torch.stack([self.sample(hidden_BQD, temperature=temperature, generator=one) for one in generators])

    def __init_subclass__(cls, **settings: Any) -> None:
        """Let a class that has a `sample` of its own not inherit the `sample_each` of another `sample`."""
        super().__init_subclass__(**settings)
        if "sample" in vars(cls) and "sample_each" not in vars(cls):
            cls.sample_each = GenerationHead.sample_each  # type: ignore[method-assign]

    def forward(self, hidden_BQD: Tensor, target_BQC: Tensor, mask_BQ: Tensor | None = None) -> Tensor:
        """Return the same as `loss`.

        In training call `head(...)` and not `head.loss(...)`: ZeRO-3 gathers parameters in forward hooks.
        """
        loss = self.loss(hidden_BQD, target_BQC, mask_BQ)
        if loss.dim():
            raise UserError(
                f"the loss of {type(self).__name__} has the shape {tuple(loss.shape)}; it must be one number, a tensor "
                "without dimensions\nreturn the mean over the tokens that count: masked_mean(loss_BQ, mask_BQ)"
            )
        return loss


def force_float32(method: Callable[Concatenate[H, P], T]) -> Callable[Concatenate[H, P], T]:
    """Make a head's method compute in float32, under any autocast and with inputs and parameters of any float dtype.

    Autocast is switched off, floating inputs are cast to float32, and while the method runs, the head's parameters and
    buffers in half precision (a `bf16-true` recipe) are float32 copies. So the only error that remains is the rounding
    of the stored values. In bf16 a Gaussian NLL of 1024 dimensions is wrong by a nat and more.

    Args:
        method: `loss` or `sample` of a head; its first tensor argument decides the device.

    Returns:
        The method with the same signature.
    """

    @functools.wraps(method)
    def in_float32(self: H, *args: P.args, **kwargs: P.kwargs) -> T:
        device = next(leaf.device for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor))
        args, kwargs = tree_map_only(Tensor, _input_as_float32, (args, kwargs))
        weights = _float32_weights(self) if _has_half_precision(self) else nullcontext()
        with torch.autocast(device.type, enabled=False), weights:
            return method(self, *args, **kwargs)

    return in_float32


def masked_mean(values_BQ: Tensor, mask_BQ: Tensor | None) -> Tensor:
    """Average over the tokens that count.

    Args:
        values_BQ: One value per token, float; finite at masked tokens too (see `clear_masked`).
        mask_BQ: True or 1 where a token counts; None counts all.

    Returns:
        A scalar of the dtype of `values_BQ`; if no token counts 0, still attached to the autograd graph.

    >>> masked_mean(torch.tensor([[1.0, 2.0, 9.0]]), torch.tensor([[True, True, False]])).item()
    1.5
    """
    if mask_BQ is None:
        return values_BQ.mean()
    weights_BQ = mask_BQ.to(values_BQ.dtype)
    return (values_BQ * weights_BQ).sum() / weights_BQ.sum().clamp(min=1.0)


def clear_masked(states_BQX: Tensor, mask_BQ: Tensor | None) -> Tensor:
    """Set masked tokens to zero, so that not even a NaN in them reaches the loss or a gradient.

    Args:
        states_BQX: One vector per token, float.
        mask_BQ: True or 1 where a token counts; None keeps all.

    Returns:
        A tensor of the same shape and dtype.

    >>> clear_masked(torch.tensor([[[1.0], [float("nan")]]]), torch.tensor([[1, 0]])).tolist()
    [[[1.0], [0.0]]]
    """
    if mask_BQ is None:
        return states_BQX
    return states_BQX.masked_fill(~mask_BQ.bool().unsqueeze(-1), 0.0)


@contextmanager
def _float32_weights(head: nn.Module) -> Iterator[None]:
    """Replace parameters and buffers in half precision by float32 copies within the block.

    A sharded parameter (ZeRO-3) is gathered by a hook of its module, only while that runs. So it is replaced by hooks
    that run between those: after it has been gathered, and back before it is released.
    """
    with ExitStack() as whole_block:
        for part in head.modules():
            if part is head or not _is_sharded(part):
                whole_block.enter_context(_swapped(part))
                continue
            one_call = whole_block.enter_context(ExitStack())

            def swap(part: nn.Module, args: Any, one_call: ExitStack = one_call) -> None:
                one_call.enter_context(_swapped(part))

            def swap_back(part: nn.Module, args: Any, output: Any, one_call: ExitStack = one_call) -> None:
                one_call.close()

            whole_block.callback(part.register_forward_pre_hook(swap).remove)
            whole_block.callback(part.register_forward_hook(swap_back, prepend=True).remove)
        yield


@contextmanager
def _swapped(part: nn.Module) -> Iterator[None]:
    """Replace the own parameters and buffers of one module; what is written into them meanwhile is kept."""
    copies = [
        (store, name, tensor, tensor.float())
        for store in (part._parameters, part._buffers)
        for name, tensor in list(store.items())
        if tensor is not None and tensor.dtype in _HALF_DTYPES and tensor.numel()
    ]
    for store, name, _, copy in copies:
        store[name] = copy  # type: ignore[assignment]
    try:
        yield
    finally:
        for store, name, tensor, copy in copies:
            current = store[name]
            assert current is not None
            # Tensors made in inference mode do not count their changes; what did not change is copied back unchanged.
            if current is not copy or copy.is_inference() or copy._version:
                with torch.no_grad():
                    tensor.copy_(current)
            store[name] = tensor  # type: ignore[assignment]


def _is_sharded(part: nn.Module) -> bool:
    return any(hasattr(parameter, "ds_id") for parameter in part.parameters(recurse=False))


def _has_half_precision(module: nn.Module) -> bool:
    return any(t.dtype in _HALF_DTYPES for ts in (module.parameters(), module.buffers()) for t in ts)


def _input_as_float32(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.is_floating_point() else tensor
