"""Muon for the matrices inside a network, AdamW for all else, as one optimizer."""

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Muon, Optimizer
from torch.optim._muon import DEFAULT_A, DEFAULT_B, DEFAULT_C, _zeropower_via_newtonschulz

from divot_lightning.errors import require_at_least
from divot_lightning.parts.optimizers import TrainedParameter
from divot_optimizers.adamw import AdamWOptimizer

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class MuonOptimizer(AdamWOptimizer):
    """Muon for the matrices inside the network, AdamW for all other parameters, the generation head included.

    On the toy world Muon reaches the same reconstruction loss in less than half of the steps
    (docs/ablations/experiments.md).
    `lr`, `betas` and `eps` are AdamW's.

    Attributes:
        matrix_lr: Peak learning rate of Muon, scaled to AdamW's update size.
        iteration_dtype: Type of Muon's Newton-Schulz iteration. "bfloat16" is torch's; "float32" is for CPUs without
            bfloat16 instructions (`lscpu` shows neither avx512_bf16 nor amx_bf16), where bfloat16 products take 20
            times as long: a toy tokenizer step took 2.6 CPU-seconds instead of 0.3.
    """

    matrix_lr: float = 6e-3
    iteration_dtype: Literal["bfloat16", "float32"] = "bfloat16"

    def __post_init__(self) -> None:
        super().__post_init__()
        require_at_least(0, "optimizer: ", matrix_lr=self.matrix_lr)

    def build(self, parameters: Sequence[TrainedParameter], adamw: type[Optimizer] = AdamW) -> Optimizer:
        """Return Muon and AdamW as one optimizer; one that has no parameters is left out."""
        matrices = [entry.value for entry in parameters if entry.is_inner_matrix]
        if self.iteration_dtype == "bfloat16" and any(value.device.type == "cpu" for value in matrices):
            _warn_of_slow_bfloat16()
        others = [entry for entry in parameters if not entry.is_inner_matrix]
        parts = [self._muon(matrices, parameters[0].is_partitioned)] if matrices else []
        return JointOptimizer([*parts, super().build(others, adamw)] if others else parts)

    def _muon(self, matrices: list[nn.Parameter], are_partitioned: bool) -> Optimizer:
        in_float32 = self.iteration_dtype == "float32"
        if are_partitioned:
            return PartitionedMuon(matrices, self.matrix_lr, self.weight_decay, in_float32)
        kind = Float32Muon if in_float32 else Muon
        return kind(matrices, lr=self.matrix_lr, weight_decay=self.weight_decay, adjust_lr_fn="match_rms_adamw")


def _warn_of_slow_bfloat16() -> None:
    if torch.backends.mkldnn.is_available() and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        log.warning(
            "this CPU has no bfloat16 instructions, so Muon is many times slower; "
            "--model.optimizer.iteration_dtype float32 avoids it, and gives other digits"
        )


class Float32Muon(Muon):
    """Muon whose Newton-Schulz iteration is in float32; torch's is always in bfloat16."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Update all parameters, with Nesterov momentum and updates of the size of AdamW's."""
        loss = torch.enable_grad()(closure)() if closure else None
        for group in self.param_groups:
            for value in (value for value in group["params"] if value.grad is not None):
                momentum = self.state[value].setdefault("momentum_buffer", torch.zeros_like(value.grad))
                momentum.lerp_(value.grad, 1 - group["momentum"])
                update = orthogonalized(value.grad.lerp(momentum, group["momentum"]), *group["ns_coefficients"])
                value.mul_(1 - group["lr"] * group["weight_decay"])
                # 0.2 is the root mean square of AdamW's updates (arXiv:2502.16982, section 2.2).
                value.add_(update, alpha=-group["lr"] * 0.2 * max(value.shape) ** 0.5)
        return loss


Piece = tuple[int, int, int, Tensor]
"""Of a matrix in a partition: its first element there, its first element in the matrix, their number (0 if other
processes have it), and the whole matrix."""


class PartitionedMuon(Optimizer):
    """Muon on ZeRO's partitions, in which matrices lie end to end and may be cut; it takes the steps of whole matrices.

    Momentum has the form of the partitions. In each step all processes gather one matrix after the other.

    Attributes:
        whole_matrices: Function of a partition and of values in its form that gives the pieces of the values. ZeRO's
            strategy sets it after it has made the partitions.

    Args:
        params: Matrices, which ZeRO replaces by its partitions.
        lr: Learning rate, scaled to AdamW's update size.
        weight_decay: Decoupled weight decay.
        in_float32: Iterate in float32 instead of bfloat16.
    """

    def __init__(self, params: Iterable[nn.Parameter], lr: float, weight_decay: float, in_float32: bool) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "momentum": 0.95})
        self.whole_matrices: Callable[[Tensor, Tensor], Iterable[Piece]] | None = None
        self._orthogonalize: Callable[[Tensor], Tensor] = (
            partial(orthogonalized, a=DEFAULT_A, b=DEFAULT_B, c=DEFAULT_C)
            if in_float32
            else partial(
                _zeropower_via_newtonschulz, ns_coefficients=(DEFAULT_A, DEFAULT_B, DEFAULT_C), ns_steps=5, eps=1e-7
            )
        )

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Update all partitions that have gradients; all processes call it together."""
        loss = torch.enable_grad()(closure)() if closure else None
        for group in self.param_groups:
            for partition in (value for value in group["params"] if value.grad is not None):
                self._update(partition, group)
        return loss

    def _update(self, partition: Tensor, group: dict[str, Any]) -> None:
        assert partition.grad is not None
        assert self.whole_matrices is not None, "the strategy sets it"
        momentum = self.state[partition].setdefault("momentum_buffer", torch.zeros_like(partition.grad))
        momentum.lerp_(partition.grad, 1 - group["momentum"])
        ahead = partition.grad.lerp(momentum, group["momentum"])
        partition.mul_(1 - group["lr"] * group["weight_decay"])
        for start, offset, length, matrix in self.whole_matrices(partition, ahead):
            update = self._orthogonalize(matrix).flatten()[offset : offset + length].to(partition.device)
            # As in `Float32Muon`.
            partition[start : start + length].add_(update, alpha=-group["lr"] * 0.2 * max(matrix.shape) ** 0.5)


def orthogonalized(matrix: Tensor, a: float, b: float, c: float, steps: int = 5) -> Tensor:
    """Return a matrix with the singular vectors of another one and singular values near 1, by Newton-Schulz.

    One step replaces each singular value s, at most 1 at the start, by a s + b s^3 + c s^5.

    Args:
        matrix: Float32, two dimensions.
        a: Coefficient; likewise `b` and `c`.
        b: Coefficient.
        c: Coefficient.
        steps: Number of steps, at least 1.
    """
    wide = matrix.T if matrix.shape[0] > matrix.shape[1] else matrix
    wide = wide / wide.norm().clamp(min=1e-7)
    iterate = _iterated_inner_products if wide.shape[1] >= 2 * wide.shape[0] else _iterated
    wide = iterate(wide, a, b, c, steps)
    return wide.T if matrix.shape[0] > matrix.shape[1] else wide


def _iterated(wide: Tensor, a: float, b: float, c: float, steps: int) -> Tensor:
    for _ in range(steps):
        gram = wide @ wide.T
        wide = torch.addmm(wide, torch.addmm(gram, gram, gram, beta=b, alpha=c), wide, beta=a)
    return wide


def _iterated_inner_products(wide: Tensor, a: float, b: float, c: float, steps: int) -> Tensor:
    """Do the same on the square matrix of inner products, and apply the product of all steps to the wide one.

    Each step multiplies by a polynomial of the symmetric inner products, and polynomials of one matrix commute: F being
    the factor of a step, the next inner products are F G F. A matrix of n rows and m columns needs 2 n^2 m + 17 n^3
    multiplications, less than the 10 n^2 m + 5 n^3 of `_iterated` from m = 1.5 n on.
    """
    gram = wide @ wide.T
    product = factor = _step_factor(gram, a, b, c)
    for _ in range(steps - 1):
        gram = factor @ gram @ factor
        factor = _step_factor(gram, a, b, c)
        product = factor @ product
    return product @ wide


def _step_factor(gram: Tensor, a: float, b: float, c: float) -> Tensor:
    factor = torch.addmm(gram, gram, gram, beta=b, alpha=c)
    factor.diagonal().add_(a)
    return factor


class JointOptimizer(Optimizer):
    """Several optimizers as one, since Lightning's automatic optimization drives one.

    Args:
        parts: The optimizers; no parameter is in two of them.
    """

    def __init__(self, parts: Sequence[Optimizer]) -> None:
        self.parts = list(parts)
        super().__init__([group for part in self.parts for group in part.param_groups], {})
        self._share_groups()

    def step(self, closure: Any = None) -> Any:
        """Update the parameters of `param_groups`: all of them, or those that ZeRO leaves there for a moment."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        now = {id(group) for group in self.param_groups}
        for part in self.parts:
            every = part.param_groups
            part.param_groups = [group for group in every if id(group) in now]
            part.step()
            part.param_groups = every
        return loss

    def state_dict(self) -> dict[str, Any]:
        """Return the states of all parts."""
        return {"parts": [part.state_dict() for part in self.parts]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the states of all parts."""
        for part, state in zip(self.parts, state_dict["parts"], strict=True):
            part.load_state_dict(state)
        self._share_groups()

    def _share_groups(self) -> None:
        # A scheduler changes the rates in our groups, so they have to be the very groups of the parts.
        self.param_groups = [group for part in self.parts for group in part.param_groups]
