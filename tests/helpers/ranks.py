"""`divot` commands on several ranks that are forked, which spares each rank the imports of a process of its own."""

import contextlib
import io
import sys
from collections.abc import Sequence
from pathlib import Path

from divot_lightning.testing import run_distributed

TINY = Path(__file__).parents[1] / "cli"
"""Recipes may name `tiny_stage`, which is here."""


def divot_on_ranks(words: Sequence[str], num_ranks: int) -> str:
    """Run a `divot` command in this working directory as a job that a cluster has started; return what it wrote."""
    results = run_distributed(_divot, num_ranks, list(words))
    told = "".join(text for _, text in results)
    assert all(status == 0 for status, _ in results), told
    return told


def _divot(rank: int, words: list[str]) -> tuple[int, str]:
    from divot_lightning.cli.main import main

    sys.argv = ["divot"]
    sys.path.insert(0, str(TINY))
    with io.StringIO() as told, contextlib.redirect_stdout(told), contextlib.redirect_stderr(told):
        return main(words), told.getvalue()
