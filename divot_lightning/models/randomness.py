"""Random draws that belong to a sample: the same for it in any batch, on any process and on any device."""

import hashlib
from collections.abc import Callable, Sequence
from typing import TypeAlias

import torch
from torch import Tensor

Randomness: TypeAlias = torch.Generator | list[torch.Generator] | None
"""Where draws come from: one source for a batch, one for each of its samples, or the global one."""


def sample_generators(seed: int, purpose: str, slots: Sequence[int]) -> list[torch.Generator]:
    """Return each sample a source of randomness of its own, on the CPU.

    Args:
        seed: The run's seed.
        purpose: What is drawn, such as "train" or "validation"; each has its own numbers.
        slots: Slot numbers of the samples; see `divot_datamodules.order.order_plan`.

    Returns:
        One generator per slot.

    >>> [generator.initial_seed() % 1000 for generator in sample_generators(0, "train", [7, 8, 7])]
    [714, 151, 714]
    """
    digests = (hashlib.blake2b(f"{seed}/{purpose}/{slot}".encode(), digest_size=8).digest() for slot in slots)
    # 63 bits: manual_seed takes no more.
    return [torch.Generator().manual_seed(int.from_bytes(digest) >> 1) for digest in digests]


def move_generators(generator: Randomness, device: torch.device) -> Randomness:
    """Return generators of a list that start alike on a device; a single one stays as it is."""
    if not isinstance(generator, list):
        return generator
    return [torch.Generator(device).manual_seed(source.initial_seed()) for source in generator]


def uniform_rows(count: int, generator: Randomness, device: torch.device) -> Tensor:
    """Draw numbers in [0, 1), (count,) float32; one from each generator where there is a list."""
    return _rows(lambda size, source, where: torch.rand(size, generator=source, device=where), count, generator, device)


def integer_rows(limit: int, count: int, generator: Randomness, device: torch.device) -> Tensor:
    """Draw integers from 0 to limit - 1, (count,) int64; one from each generator where there is a list."""

    def draw(size: int, source: torch.Generator | None, where: torch.device) -> Tensor:
        return torch.randint(0, limit, (size,), generator=source, device=where)

    return _rows(draw, count, generator, device)


def _rows(
    draw: Callable[[int, torch.Generator | None, torch.device], Tensor],
    count: int,
    generator: Randomness,
    device: torch.device,
) -> Tensor:
    if not isinstance(generator, list):
        return draw(count, generator, device)
    assert len(generator) == count, f"{len(generator)} generators for {count} samples"
    return torch.cat([draw(1, source, source.device) for source in generator]).to(device)
