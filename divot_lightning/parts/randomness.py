"""The type of a source of random numbers, which several kinds of parts take."""

from typing import TypeAlias

import torch

Randomness: TypeAlias = torch.Generator | list[torch.Generator] | None
"""The generator of random numbers: one for a batch, one per sample of the batch, or None for the global one."""
