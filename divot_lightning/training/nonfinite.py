"""Steps whose loss or gradient is not a number: left out by all processes alike, written down, and limited."""

import json
from dataclasses import dataclass
from pathlib import Path

from torch import distributed

from divot_lightning.errors import UserError

RECORD_FILE = "nonfinite.jsonl"
_KEYS_SHOWN = 5


@dataclass(frozen=True)
class NonfiniteRank:
    """What one process held in a step that was left out.

    Attributes:
        rank: The process.
        loss: Its loss, as text since JSON has no NaN.
        keys: Its samples.
    """

    rank: int
    loss: str
    keys: list[str]


def gather_nonfinite_ranks(loss: float, keys: list[str], finite: bool) -> list[NonfiniteRank]:
    """Collect what the processes held whose loss is not finite; all processes call it together.

    Args:
        loss: This process's loss.
        keys: This process's samples.
        finite: Whether its loss is finite.

    Returns:
        In the order of ranks, on every process.
    """
    if not (distributed.is_available() and distributed.is_initialized()):
        return [] if finite else [NonfiniteRank(0, str(loss), keys)]
    mine = None if finite else NonfiniteRank(distributed.get_rank(), str(loss), keys)
    every: list[NonfiniteRank | None] = [None] * distributed.get_world_size()
    distributed.all_gather_object(every, mine)
    return [rank for rank in every if rank is not None]


def write_record(run: Path, step: int, what: str, nonfinite_ranks: list[NonfiniteRank]) -> None:
    """Append a line to `<run>/nonfinite.jsonl`; one process of a job does.

    Args:
        run: The run folder.
        step: The optimizer step that was left out.
        what: "loss" or "gradient".
        nonfinite_ranks: Who held what.
    """
    run.mkdir(parents=True, exist_ok=True)
    line = {"step": step, "what": what, "ranks": [vars(rank) for rank in nonfinite_ranks]}
    with (run / RECORD_FILE).open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


def over_budget(
    run: Path, count: int, allowed: int, step: int, what: str, nonfinite_ranks: list[NonfiniteRank]
) -> UserError:
    """Word the end of a run that left out too many steps."""
    keys = [key for rank in nonfinite_ranks for key in rank.keys]
    more = f" and {len(keys) - _KEYS_SHOWN} more" if len(keys) > _KEYS_SHOWN else ""
    return UserError(
        f"{count} steps had a loss or gradient that is not finite, more than max_nonfinite_steps={allowed}\n"
        f"the last: {what} of step {step}, samples {', '.join(keys[:_KEYS_SHOWN])}{more}\n"
        f"all are in {run / RECORD_FILE}; look at these samples, lower optimizer.lr, clip gradients\n"
        "(trainer.gradient_clip_val), or allow more of them (optimizer.max_nonfinite_steps)"
    )
