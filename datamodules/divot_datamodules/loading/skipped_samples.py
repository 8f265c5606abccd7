"""The account of samples that could not be used: how many, why, in which shard, under which key.

One process writes one file: a training process writes what its own share of the data lost, worker processes write
nothing. What one process sees is also what its budget is applied to.
"""

import json
import tempfile
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from divot_lightning.errors import UserError
from divot_lightning.io.output_files import writing_to
from divot_lightning.io.printing import printable

LISTED = 10
"""Defects that are named one by one where a file, or another command, lists all."""

_EARLY = 200
"""Samples that a share of losses is taken of at least, so that an early defect does not end a run."""


@dataclass(frozen=True)
class SkippedSample:
    """One sample (or shard) that could not be used.

    Attributes:
        reason: A short fixed name, such as "too_short"; what is counted by.
        shard: Path or URL.
        key: The sample's key; "" where a whole shard is meant.
        detail: What was seen.
    """

    reason: str
    shard: str
    key: str
    detail: str = ""


@dataclass(frozen=True)
class Budget:
    """How much may be lost before a run ends.

    Attributes:
        max_skipped_fraction: Largest share of unusable samples among those that came by; at the beginning the share is
            taken of at least 200 samples, or of all there are if they are fewer.
        max_skipped_samples: Largest number of different unusable samples; None for no limit.
    """

    max_skipped_fraction: float = 0.05
    max_skipped_samples: int | None = None

    def exceeded(self, lost: int, seen: int, distinct: int, *, total: int | None = None) -> bool:
        """Return whether too much was lost.

        Args:
            lost: Samples that came by and could not be used, one that comes again counted again.
            seen: Samples that came by.
            distinct: Different samples among the lost ones.
            total: Number of samples that there are, where it is known.

        >>> Budget(0.05).exceeded(10, 20, 10), Budget(0.05).exceeded(10, 20, 10, total=20)
        (False, True)
        """
        if self.max_skipped_samples is not None and distinct > self.max_skipped_samples:
            return True
        return lost > self.max_skipped_fraction * max(seen, _EARLY if total is None else min(_EARLY, total))


class SkippedSamples:
    """Counts defects of one data source and keeps the list of them, each once.

    Args:
        name: Of the source, such as "train"; part of the file names.
        folder: Where the jsonl files go; None for a temporary folder.
        budget: How much may be lost.
        writer: Name of this process, unique among those that share the folder.
        total: Samples of one pass over this process's share, where it is known.
    """

    def __init__(
        self,
        name: str,
        folder: str | Path | None = None,
        budget: Budget | None = None,
        *,
        writer: str = "main",
        total: int | None = None,
    ) -> None:
        self.name, self.budget, self.writer, self.total = name, budget or Budget(), writer, total
        self._temporary = tempfile.TemporaryDirectory(prefix="divot-ledger-") if folder is None else None
        self.folder = Path(self._temporary.name) if self._temporary else Path(folder or ".")
        self.seen = 0
        self.lost = 0
        self._known: set[tuple[str, str, str]] | None = None

    @property
    def path(self) -> Path:
        """The file that this process writes."""
        return self.folder / f"defects-{self.name}-{self.writer}.jsonl"

    @property
    def bad(self) -> int:
        """Different defects known so far, those of former runs in the same folder included."""
        return len(self._identities())

    def count_seen(self) -> None:
        """Count a sample that came by."""
        self.seen += 1

    def add(self, defect: SkippedSample) -> None:
        """Record a defect: counts it each time, and lists it once, however often the sample comes by.

        Args:
            defect: What is wrong.

        Raises:
            UserError: The budget is used up.
        """
        self.lost += 1
        self._list(defect)
        if self.budget.exceeded(self.lost, self.seen, self.bad, total=self.total):
            raise UserError(self.report(self.lost, self.seen))

    def add_found(self, defects: Iterable[SkippedSample], lost: int, usable: int) -> None:
        """Record what is known to be lost before any sample came by; it does not count among those that come by.

        Args:
            defects: What indexing found.
            lost: How many samples that costs, whole shards included.
            usable: How many samples are left.

        Raises:
            UserError: The lost ones are more of all than the budget allows.
        """
        for defect in defects:
            self._list(defect)
        if lost and self.budget.exceeded(lost, lost + usable, self.bad, total=lost + usable):
            raise UserError(self.report(lost, lost + usable))

    def _list(self, defect: SkippedSample) -> None:
        identity = (defect.reason, defect.shard, defect.key)
        if identity not in self._identities():
            self._identities().add(identity)
            with writing_to(self.folder):
                self.folder.mkdir(parents=True, exist_ok=True)
                with self.path.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(asdict(defect)) + "\n")

    def check_pass(self, bad: int, seen: int) -> None:
        """Check the budget at the end of a pass whose length was not known before.

        Args:
            bad: Unusable samples in this pass.
            seen: Samples that came by in this pass.
        """
        if seen == 0 or bad == seen or self.budget.exceeded(bad, seen, self.bad, total=seen):
            raise UserError(self.report(bad, seen))

    def skipped(self) -> list[SkippedSample]:
        """Return all defects noted so far, of all processes, each once."""
        lines: Iterable[str] = (
            line
            for path in sorted(self.folder.glob(f"defects-{self.name}-*.jsonl"))
            for line in path.read_text(encoding="utf-8").splitlines()
        )
        return list(
            {(d.reason, d.shard, d.key): d for d in (SkippedSample(**json.loads(line)) for line in lines)}.values()
        )

    def clear(self) -> None:
        """Forget what a former run of the same name noted in the folder."""
        for path in self.folder.glob(f"defects-{self.name}-*.jsonl"):
            path.unlink()
        self._known = None

    def counts(self) -> dict[str, int]:
        """Return the number of defects by reason, the most frequent first."""
        return dict(Counter(defect.reason for defect in self.skipped()).most_common())

    def report(self, bad: int, seen: int) -> str:
        """Return the message that ends a run."""
        defects = self.skipped()
        reasons = ", ".join(f"{reason} {count}" for reason, count in self.counts().items()) or "none was read"
        first = printable(f"{defects[0].reason} in {defects[0].shard}, key {defects[0].key!r}") if defects else "-"
        where = "" if self._temporary else f"All of them: {self.folder}/defects-{self.name}-*.jsonl. "
        limit = f"at most {self.budget.max_skipped_fraction:.1%}"
        if self.budget.max_skipped_samples is not None:
            limit += f" and {self.budget.max_skipped_samples} samples"
        return (
            f"{bad} of {seen} samples of {self.name!r} cannot be used ({limit} allowed): {reasons}.\n"
            f"First: {first} ({printable(defects[0].detail) if defects else 'no samples in the shards'}).\n"
            f"{where}Mend the data (`divot data inspect` lists the defects) or raise max_skipped_fraction."
        )

    def _identities(self) -> set[tuple[str, str, str]]:
        if self._known is None:
            self._known = {(d.reason, d.shard, d.key) for d in self.skipped()}
        return self._known


def left_out_lines(defects: Sequence[SkippedSample]) -> list[str]:
    """Return what a command says of samples that it left out: how many, why, and which the first ones are.

    >>> left_out_lines([SkippedSample("too_short", "a.tar", "k", "0.5 s of 2 s")])
    ['left out: 1 (too_short 1)', '  too_short: a.tar k (0.5 s of 2 s)']
    """
    if not defects:
        return []
    counts = Counter(defect.reason for defect in defects).most_common()
    lines = [f"left out: {len(defects)} ({', '.join(f'{reason} {count}' for reason, count in counts)})"]
    for defect in defects[:LISTED]:
        named = " ".join(part for part in (defect.shard, defect.key) if part)
        lines.append(printable(f"  {defect.reason}: {named}{f' ({defect.detail})' if defect.detail else ''}"))
    return lines + ([f"  and {len(defects) - LISTED} more"] if len(defects) > LISTED else [])
