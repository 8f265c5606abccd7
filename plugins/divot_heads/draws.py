"""Several noise draws of each token, as rows: they share the cost of the language model.

Shape letters: R noise draws, B batch, Q tokens of one clip, X width, N = R*B*Q rows.
"""

from torch import Tensor


def rows_of_draws(states_BQX: Tensor, num_draws: int) -> Tensor:
    """Repeat each token once per draw; return rows_NX, all tokens of the first draw first."""
    return states_BQX.repeat((num_draws, 1, 1, 1)).flatten(0, -2)


def mean_of_draws(values_N: Tensor, like_BQX: Tensor, num_draws: int) -> Tensor:
    """Average the rows of each token over its draws; return values_BQ.

    Args:
        values_N: One value per row of `rows_of_draws`.
        like_BQX: The tokens that the rows were made of.
        num_draws: R.
    """
    return values_N.view(num_draws, *like_BQX.shape[:-1]).mean(dim=0)
