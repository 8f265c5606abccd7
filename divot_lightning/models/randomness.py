"""Random numbers per sample: a sample gets the same numbers in every batch and on every rank."""

import hashlib
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from divot_lightning.errors import require_seed
from divot_lightning.parts.randomness import Randomness


def seeded_generator(seed: int, device: torch.device | str = "cpu") -> torch.Generator:
    """Return a random generator with a seed that a user gave.

    Raises:
        UserError: The seed is negative, or has more than 64 bits.
    """
    return torch.Generator(device).manual_seed(require_seed(seed))


def sample_generators(seed: int, purpose: str, sample_indices: Sequence[int]) -> list[torch.Generator]:
    """Return a random generator of its own for each sample, on the CPU.

    Args:
        seed: The run's seed.
        purpose: What the numbers are for, such as "train" or "validation"; each purpose has other numbers.
        sample_indices: Indices of the samples in the order plan; see `divot_datamodules.order.order_plan`.

    Returns:
        One generator per index.

    >>> [generator.initial_seed() % 1000 for generator in sample_generators(0, "train", [7, 8, 7])]
    [714, 151, 714]
    """
    keys = (f"{seed}/{purpose}/{index}" for index in sample_indices)
    digests = (hashlib.blake2b(key.encode(), digest_size=8).digest() for key in keys)
    # 63 bits, the most that manual_seed takes.
    return [torch.Generator().manual_seed(int.from_bytes(digest) >> 1) for digest in digests]


def move_generators(generator: Randomness, device: torch.device) -> Randomness:
    """Return a list of generators with the same seeds on a device; a single generator is returned as it is."""
    if not isinstance(generator, list):
        return generator
    return [torch.Generator(device).manual_seed(each.initial_seed()) for each in generator]


def uniform_rows(count: int, generator: Randomness, device: torch.device) -> Tensor:
    """Sample numbers in [0, 1), (count,) float32; one from each generator if there is a list."""
    return _rows(lambda size, one, where: torch.rand(size, generator=one, device=where), count, generator, device)


def normal_rows(shape: Sequence[int], generator: Randomness, device: torch.device) -> Tensor:
    """Sample standard normal numbers of a shape, float32; a row from each generator if there is a list."""

    def sample(size: int, one: torch.Generator | None, where: torch.device) -> Tensor:
        return torch.randn(size, *shape[1:], generator=one, device=where)

    return _rows(sample, shape[0], generator, device)


def integer_rows(limit: int, count: int, generator: Randomness, device: torch.device) -> Tensor:
    """Sample integers from 0 to limit - 1, (count,) int64; one from each generator if there is a list."""

    def sample(size: int, one: torch.Generator | None, where: torch.device) -> Tensor:
        return torch.randint(0, limit, (size,), generator=one, device=where)

    return _rows(sample, count, generator, device)


def _rows(
    sample: Callable[[int, torch.Generator | None, torch.device], Tensor],
    count: int,
    generator: Randomness,
    device: torch.device,
) -> Tensor:
    if not isinstance(generator, list):
        return sample(count, generator, device)
    assert len(generator) == count, f"{len(generator)} generators for {count} samples"
    return torch.cat([sample(1, each, each.device) for each in generator]).to(device)
