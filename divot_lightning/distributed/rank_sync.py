"""What processes tell each other before a step, so that they do the same or end with a reason instead of hanging.

A collective call that not all processes make waits for ever, or until a timeout of half an hour with no word about
why. Before each step the processes therefore compare, in one small message between CPUs, what each is about to do.
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

from divot_lightning.errors import UserError

STUCK_SECONDS = 600.0
"""For so long a process waits for the slowest one, which may still be loading data or writing a checkpoint."""

_SETTLE_SECONDS = 2.0
_KEYS_SHOWN = 3


class RankDesyncError(UserError):
    """Processes of one job are about to do different things, or one does nothing; names them and where they are."""


@dataclass(frozen=True)
class StepState:
    """What a process is about to do.

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
    """What all processes together are about to do.

    Attributes:
        most_clips: Most clips that a process has to encode.
        most_samples: Most samples that a process has.
    """

    most_clips: int
    most_samples: int


def check_ranks_in_sync(plan: StepState, stuck_seconds: float = STUCK_SECONDS) -> RankSync:
    """Compare plans; all processes call it before every step. Costs one small message between CPUs.

    Args:
        plan: What this process is about to do.
        stuck_seconds: How long to wait for the slowest process.

    Returns:
        What all know then.

    Raises:
        RankDesyncError: On every process that came here, where plans differ or a process did not come.
    """
    if not (distributed.is_available() and distributed.is_initialized()) or distributed.get_world_size() == 1:
        return RankSync(plan.clips, plan.samples)
    same = torch.tensor([_number(plan.work), plan.step, plan.batch_index, plan.position])
    message = torch.cat([same, -same, torch.tensor([plan.clips, plan.samples])])
    group = _group(stuck_seconds)
    started = time.monotonic()
    try:
        distributed.all_reduce(message, distributed.ReduceOp.MAX, group=group)
    except RuntimeError as error:
        raise RankDesyncError(_who_is_missing(plan, time.monotonic() - started, str(error))) from error
    if not torch.equal(message[:4], -message[4:8]):
        plans: list[Any] = [None] * distributed.get_world_size()
        distributed.all_gather_object(plans, plan, group=group)
        raise RankDesyncError(_how_they_differ(plans))
    return RankSync(*message[8:].tolist())


@lru_cache(maxsize=1)
def _group_of(world: Any, stuck_seconds: float) -> Any:
    return distributed.new_group(backend="gloo", timeout=timedelta(seconds=stuck_seconds))


def _group(stuck_seconds: float) -> Any:
    # The default group is the key, so that a new one after it gets a new group.
    return _group_of(distributed.group.WORLD, stuck_seconds)


def _number(words: str) -> int:
    return int.from_bytes(blake2b(words.encode(), digest_size=4).digest())


def _how_they_differ(plans: list[StepState]) -> str:
    lines = ["the processes are about to do different things, which would hang; nothing was computed with it"]
    seen: dict[tuple[Any, ...], list[int]] = {}
    for rank, plan in enumerate(plans):
        seen.setdefault((plan.work, plan.step, plan.batch_index, plan.position), []).append(rank)
    for ranks in seen.values():
        names = f"rank {ranks[0]}" + (f" and {len(ranks) - 1} more" if len(ranks) > 1 else "")
        lines.append(f"{names}: {describe(plans[ranks[0]])}")
    return "\n".join(lines)


def describe(plan: StepState) -> str:
    """Put a plan into words."""
    keys = ", ".join(map(str, plan.keys[:_KEYS_SHOWN])) or "none"
    more = f" and {len(plan.keys) - _KEYS_SHOWN} more" if len(plan.keys) > _KEYS_SHOWN else ""
    position = "" if plan.position < 0 else f", data position {plan.position}"
    return f"{plan.work}, step {plan.step}, batch {plan.batch_index}{position}, samples {keys}{more}"


def _who_is_missing(plan: StepState, waited: float, reason: str) -> str:
    store = distributed.distributed_c10d._get_default_store()
    rank, size = distributed.get_rank(), distributed.get_world_size()
    prefix = f"divot/stuck/{plan.work}/{plan.step}/{plan.batch_index}"
    missing = []
    try:
        store.set(f"{prefix}/{rank}", "here")
        time.sleep(_SETTLE_SECONDS)
        missing = [other for other in range(size) if not store.check([f"{prefix}/{other}"])]
    except RuntimeError:
        reason = f"{reason} (nor does the first process answer)"
    who = f"rank {', '.join(map(str, missing))} did not come" if missing else "the processes cannot talk to each other"
    return (
        f"rank {rank} waited {waited:.0f} s at {describe(plan)}: {who}\n"
        f"It is stuck or ended: see its output. ({reason.splitlines()[0][:150]})"
    )
