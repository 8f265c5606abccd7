"""Classifier-free guidance (arXiv:2207.12598): learn with and without the condition, exaggerate the difference.

Shape letters: X any dimensions, D condition width.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from divot_lightning.errors import UserError, require_at_least


class ConditionDropout(nn.Module):
    """Replaces the conditions of some rows by a learned vector, chosen anew at each call while training."""

    def __init__(self, hidden_dim: int, probability: float) -> None:
        """Make the learned vector.

        Args:
            hidden_dim: D.
            probability: Probability that the condition of a row is replaced, 0 to 1.
        """
        super().__init__()
        self.probability = probability
        # As wide as a normalised hidden state: a LayerNorm follows, whose gradient explodes for a vector near 0.
        self.unconditional_D = nn.Parameter(torch.randn(hidden_dim))

    def forward(self, condition_XD: Tensor, everywhere: bool = False) -> Tensor:
        """Replace the conditions of random rows (of all if `everywhere`) of the first dimension; same shape."""
        rows = (len(condition_XD), *[1] * (condition_XD.ndim - 1))
        if self.training and not everywhere:
            replaced = torch.rand(rows, device=condition_XD.device) < self.probability
        else:
            replaced = torch.full(rows, everywhere, device=condition_XD.device)
        # Always torch.where: the vector has a gradient in every step, on every rank.
        return torch.where(replaced, self.unconditional_D, condition_XD)


def condition_dropout_or_none(hidden_dim: int, probability: float, guidance: float) -> ConditionDropout | None:
    """Build the dropout, or None for a head that is never trained without its condition.

    Args:
        hidden_dim: D.
        probability: See `ConditionDropout`; 0 gives None.
        guidance: Guidance scale of sampling.

    Raises:
        UserError: The probability is not one, or guidance is asked for without dropout.
    """
    if not 0 <= probability < 1:
        raise UserError(f"condition_dropout={probability} is not allowed; give 0 to below 1")
    require_at_least(0, guidance=guidance)
    if guidance != 1 and not probability:
        raise UserError(
            f"guidance={guidance} is not allowed with condition_dropout=0: the head never learnt to do without the"
            " condition\nTrain it with --model.head.condition_dropout 0.1, or sample with guidance 1."
        )
    return ConditionDropout(hidden_dim, probability) if probability else None


def guided(
    predict: Callable[[Tensor], Tensor], condition_XD: Tensor, dropout: ConditionDropout | None, guidance: float
) -> Tensor:
    """Return u + guidance (c - u), with the predictions c with and u without the condition.

    Args:
        predict: Gives the prediction for a condition.
        condition_XD: The condition.
        dropout: Of the head; only needed if `guidance` is not 1.
        guidance: 1 is the learnt distribution (u is not computed), 0 ignores the condition.

    >>> guided(lambda condition: 2 * condition, torch.ones(1, 1), None, 1.0).item()
    2.0
    """
    conditional = predict(condition_XD)
    if guidance == 1:
        return conditional
    assert dropout is not None, "a head checks guidance when it is built"
    return torch.lerp(predict(dropout(condition_XD, everywhere=True)), conditional, guidance)
