"""Steps whose loss or gradient is not finite: skipped by all processes, recorded, and limited in number."""

import json
from dataclasses import dataclass
from pathlib import Path

from divot_lightning.distributed.ranks import Ranks
from divot_lightning.errors import UserError, first_of

RECORD_FILE = "nonfinite.jsonl"
_KEYS_SHOWN = 5


@dataclass(frozen=True)
class NonfiniteRank:
    """The loss and the samples of one process in a skipped step.

    Attributes:
        rank: The process.
        loss: Its loss, as text since JSON has no NaN.
        keys: Its samples.
    """

    rank: int
    loss: str
    keys: list[str]


def gather_nonfinite_ranks(loss: float, keys: list[str], finite: bool) -> list[NonfiniteRank]:
    """Collect loss and samples of the processes whose loss is not finite; all processes call it together.

    Args:
        loss: This process's loss.
        keys: This process's samples.
        finite: Whether its loss is finite.

    Returns:
        One entry per such process, in the order of ranks, on every process.
    """
    ranks = Ranks.all()
    mine = None if finite else NonfiniteRank(ranks.rank, str(loss), keys)
    return [found for found in ranks.gather(mine) if found is not None]


def write_record(run: Path, step: int, what: str, nonfinite_ranks: list[NonfiniteRank]) -> None:
    """Append a line to `<run>/nonfinite.jsonl`; only one process of a job calls it.

    Args:
        run: The run folder.
        step: The skipped optimizer step.
        what: "loss" or "gradient".
        nonfinite_ranks: Loss and samples by process.
    """
    run.mkdir(parents=True, exist_ok=True)
    line = {"step": step, "what": what, "ranks": [vars(rank) for rank in nonfinite_ranks]}
    with (run / RECORD_FILE).open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


def over_budget(
    run: Path, count: int, allowed: int, step: int, what: str, nonfinite_ranks: list[NonfiniteRank]
) -> UserError:
    """Return the error that ends a run which skipped too many steps."""
    keys = [key for rank in nonfinite_ranks for key in rank.keys]
    return UserError(
        f"{count} steps had a loss or gradient that is not finite, more than max_nonfinite_steps={allowed}\n"
        f"the last: {what} of step {step}, samples {first_of(keys, _KEYS_SHOWN)}\n"
        f"all are in {run / RECORD_FILE}; look at these samples, lower optimizer.lr, clip gradients\n"
        "(trainer.gradient_clip_val), or allow more of them (optimizer.max_nonfinite_steps)"
    )
