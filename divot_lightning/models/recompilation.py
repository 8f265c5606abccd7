"""The number of versions of one function that torch may compile."""

import torch

RECOMPILE_LIMIT = 64
"""torch stops after 8 versions without an error, and computes the function slowly from then on. FlexAttention has a
version for each of: one row or several, one block or several, with and without gradients, and for each window. Blocks
that are compiled share one function: DynamiCrafter's, of 14 sizes, need 28 versions, with and without gradients."""


def allow_many_versions() -> None:
    """Let torch compile a function in `RECOMPILE_LIMIT` versions, in this process."""
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, RECOMPILE_LIMIT)
