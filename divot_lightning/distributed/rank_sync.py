"""A check before each step that all processes do the same: they end with a reason instead of hanging.

A collective call that not all processes make waits for ever, or until a timeout of half an hour that gives no reason.
Therefore the processes compare before each step, in one small message between CPUs, the step that each will do.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import lru_cache
from hashlib import blake2b
from typing import Any, NamedTuple

import torch
from torch import distributed

from divot_lightning.distributed.ranks import Ranks, num_ranks
from divot_lightning.errors import UserError, first_of

STUCK_SECONDS = 600.0
"""Seconds that a process waits for the slowest one, which may still be loading data or writing a checkpoint."""

_SETTLE_SECONDS = 2.0
_KEYS_SHOWN = 3


class RankDesyncError(UserError):
    """Processes of a job are out of sync: they are about to do different steps, or one did not come."""


@dataclass(frozen=True)
class StepState:
    """The step that a process is about to do.

    Attributes:
        work: In words, such as "LLMPretraining training step"; all must do the same work.
        step: Optimizer step; must be the same.
        batch_index: Batch of this epoch or validation; must be the same.
        position: Number of the next step in the order of samples; must be the same. -1 where the data has none.
        keys: Samples, for messages only.
        clips: Clips of the batch to encode.
        samples: Samples of the batch.
    """

    work: str
    step: int
    batch_index: int
    position: int
    keys: Sequence[str]
    clips: int
    samples: int


class RankSync(NamedTuple):
    """Facts about a step of all processes.

    Attributes:
        most_clips: Largest number of clips that any process encodes.
        most_samples: Largest number of samples that any process has.
    """

    most_clips: int
    most_samples: int


def check_ranks_in_sync(state: StepState, stuck_seconds: float = STUCK_SECONDS) -> RankSync:
    """Check that all processes do the same step; all call it before every step. Costs one small message between CPUs.

    Args:
        state: The step of this process.
        stuck_seconds: How long to wait for the slowest process.

    Returns:
        Facts about all processes.

    Raises:
        RankDesyncError: Steps differ or a process did not come; raised on every process that came.
    """
    if num_ranks() == 1:
        return RankSync(state.clips, state.samples)
    same = torch.tensor([_number(state.work), state.step, state.batch_index, state.position])
    message = torch.cat([same, -same, torch.tensor([state.clips, state.samples])])
    # The default group is the key, so that a new one after it gets a new group.
    group = _group_of(distributed.group.WORLD, stuck_seconds)
    started = time.monotonic()
    try:
        distributed.all_reduce(message, distributed.ReduceOp.MAX, group=group)
    except RuntimeError as error:
        raise RankDesyncError(_who_is_missing(state, time.monotonic() - started, str(error))) from error
    if not torch.equal(message[:4], -message[4:8]):
        states: list[Any] = [None] * num_ranks()
        distributed.all_gather_object(states, state, group=group)
        raise RankDesyncError(_how_they_differ(states))
    return RankSync(*message[8:].tolist())


@lru_cache(maxsize=1)
def _group_of(world: Any, stuck_seconds: float) -> Any:
    return distributed.new_group(backend="gloo", timeout=timedelta(seconds=stuck_seconds))


def _number(words: str) -> int:
    return int.from_bytes(blake2b(words.encode(), digest_size=4).digest())


def _how_they_differ(states: list[StepState]) -> str:
    lines = ["the processes are about to do different things, which would hang; nothing was computed with it"]
    seen: dict[tuple[Any, ...], list[int]] = {}
    for rank, state in enumerate(states):
        seen.setdefault((state.work, state.step, state.batch_index, state.position), []).append(rank)
    for ranks in seen.values():
        lines.append(f"rank {first_of([str(rank) for rank in ranks], 1)}: {describe(states[ranks[0]])}")
    return "\n".join(lines)


def describe(state: StepState) -> str:
    """Describe a step in words."""
    keys = first_of([str(key) for key in state.keys], _KEYS_SHOWN) or "none"
    position = "" if state.position < 0 else f", data position {state.position}"
    return f"{state.work}, step {state.step}, batch {state.batch_index}{position}, samples {keys}"


def _who_is_missing(state: StepState, waited: float, reason: str) -> str:
    store = distributed.distributed_c10d._get_default_store()
    rank, size = Ranks.all()
    prefix = f"divot/stuck/{state.work}/{state.step}/{state.batch_index}"
    missing = []
    try:
        store.set(f"{prefix}/{rank}", "here")
        time.sleep(_SETTLE_SECONDS)
        missing = [other for other in range(size) if not store.check([f"{prefix}/{other}"])]
    except RuntimeError:
        reason = f"{reason} (nor does the first process answer)"
    who = f"rank {', '.join(map(str, missing))} did not come" if missing else "the processes cannot talk to each other"
    return (
        f"rank {rank} waited {waited:.0f} s at {describe(state)}: {who}\n"
        f"It is stuck or ended: see its output. ({reason.splitlines()[0][:150]})"
    )
