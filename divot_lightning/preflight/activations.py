"""What a training step keeps for its backward pass, found by running the forward pass without memory."""

import contextlib
from collections.abc import Iterator, Mapping
from types import MethodType
from typing import Any

import torch
from lightning import LightningModule
from torch import Tensor
from torch.nn import functional

from divot_lightning.stages.global_mean import LossPart


def activation_bytes(stage: LightningModule, batch: dict[str, Any]) -> int:
    """Counts the bytes that the forward pass of a training step saves for its backward pass, in the stage's dtype.

    Parameters are not counted, and a tensor that is saved several times or in several views once. Attention counts as
    its memory-saving kernels do: inputs and output, no matrix of scores.

    Args:
        stage: On the meta device, see `divot_lightning.preflight.shapes`.
        batch: One process's batch, on any device.
    """
    known = {_storage(parameter) for parameter in stage.parameters()}
    sizes: dict[int, int] = {}
    kept: list[Tensor] = []  # alive until the end, so that no storage is counted as another's

    def note(tensor: Tensor) -> Tensor:
        storage = _storage(tensor)
        if storage not in known and storage not in sizes and tensor.device.type == "meta":
            sizes[storage] = tensor.untyped_storage().nbytes()
            kept.append(tensor)
        return tensor

    with _without_communication(stage), torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        loss = stage.training_step(_to_meta(batch), 0)
    del loss
    return sum(sizes.values())


@contextlib.contextmanager
def _without_communication(stage: LightningModule) -> Iterator[None]:
    """Replaces what reads values or asks other processes, neither of which is there."""

    def sum_losses(self: Any, parts: Mapping[str, LossPart], batch: dict[str, Any]) -> Tensor:
        return torch.stack([part.mean for part in parts.values()]).sum()

    attention, autocast = functional.scaled_dot_product_attention, torch.autocast
    vars(stage)["training_loss"] = MethodType(sum_losses, stage)
    functional.scaled_dot_product_attention = _attention
    torch.autocast = lambda device, *args, **kwargs: (  # type: ignore[assignment,misc]
        contextlib.nullcontext() if device == "meta" else autocast(device, *args, **kwargs)
    )
    try:
        yield
    finally:
        del vars(stage)["training_loss"]
        functional.scaled_dot_product_attention = attention
        torch.autocast = autocast  # type: ignore[misc]


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        result = query.new_empty(*query.shape[:-1], value.shape[-1])
        ctx.save_for_backward(query, key, value, result)
        return result

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        raise AssertionError("only the forward pass is run")


def _attention(query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    result: Tensor = _Attention.apply(query, key, value)
    return result


def _to_meta(batch: dict[str, Any]) -> dict[str, Any]:
    # without slots, noise is not drawn per sample, which needs a generator on a real device
    return {
        name: value.to("meta") if isinstance(value, Tensor) else value
        for name, value in batch.items()
        if name != "slot"
    }


def _storage(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)
