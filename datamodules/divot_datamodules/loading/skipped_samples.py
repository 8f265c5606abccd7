"""The log of skipped samples: how many could not be used, why, in which shard and under which key.

Each training process writes one file, about its own part of the data; worker processes write nothing. The limits of
`Budget` apply to each training process by itself.
"""

import json
import tempfile
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from divot_lightning.errors import UserError, require_at_least
from divot_lightning.io.output_files import writing_to
from divot_lightning.io.printing import printable
from divot_lightning.io.renamed import OLD_SKIPPED
from divot_lightning.parts.sources import SkippedSample

SKIPPED_FOLDER = "skipped"
"""Folder in a run folder with the lists of skipped samples."""
LISTED = 10
"""Most skipped samples that a message names; a file, or another command, lists all."""

_EARLY = 200
"""Least number of samples that a fraction is taken of, so that one early skipped sample does not end a run."""


@dataclass(frozen=True)
class Budget:
    """How many samples may be skipped before a run ends.

    Attributes:
        max_skipped_fraction: Largest fraction of skipped samples among the samples seen. At the beginning the fraction
            is taken of at least 200 samples, or of all samples if there are fewer.
        max_skipped_samples: Largest number of different skipped samples; None for no limit.
    """

    max_skipped_fraction: float = 0.05
    max_skipped_samples: int | None = None

    def __post_init__(self) -> None:
        require_at_least(
            0, max_skipped_fraction=self.max_skipped_fraction, max_skipped_samples=self.max_skipped_samples
        )
        if self.max_skipped_fraction > 1:
            raise UserError(f"max_skipped_fraction is {self.max_skipped_fraction}; a fraction is from 0 to 1.")

    def exceeded(self, skipped: int, seen: int, distinct: int, *, total: int | None = None) -> bool:
        """Return whether too many samples were skipped.

        Args:
            skipped: Samples that could not be used; a sample that is seen again is counted again.
            seen: Samples seen, usable or not.
            distinct: Different samples among the skipped ones.
            total: Number of samples in the data, where it is known.

        >>> Budget(0.05).exceeded(10, 20, 10), Budget(0.05).exceeded(10, 20, 10, total=20)
        (False, True)
        """
        if self.max_skipped_samples is not None and distinct > self.max_skipped_samples:
            return True
        return skipped > self.max_skipped_fraction * max(seen, _EARLY if total is None else min(_EARLY, total))


class SkippedSamples:
    """The skipped samples of one data split: counts each occurrence and lists each sample once.

    Args:
        name: Name of the split, such as "train"; part of the file names.
        folder: Where the jsonl files are written; None for a temporary folder.
        budget: How many samples may be skipped.
        writer: Name of this process, unique among those that share the folder.
        total: Samples of one pass over this process's part of the data, where it is known.
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
        self._temporary = tempfile.TemporaryDirectory(prefix="divot-skipped-") if folder is None else None
        self.folder = Path(self._temporary.name) if self._temporary else Path(folder or ".")
        self.seen = 0
        self.num_skipped = 0
        self._known: set[tuple[str, str, str]] | None = None

    @property
    def path(self) -> Path:
        """The file that this process writes."""
        return self.folder / f"skipped-{self.name}-{self.writer}.jsonl"

    def _lists(self) -> list[Path]:
        """Return the files of all processes, also those that an earlier version wrote under an older name."""
        folders = [self.folder]
        if self.folder.name == SKIPPED_FOLDER:
            folders += [self.folder.with_name(OLD_SKIPPED)]
        names = [f"{word}-{self.name}-*.jsonl" for word in ("skipped", OLD_SKIPPED)]
        return [path for folder in folders for name in names for path in sorted(folder.glob(name))]

    @property
    def distinct(self) -> int:
        """Different skipped samples known so far, including those of former runs in the same folder."""
        return len(self._identities())

    def count_seen(self) -> None:
        """Count a sample, usable or not."""
        self.seen += 1

    def add(self, sample: SkippedSample) -> None:
        """Add a skipped sample: it is counted each time, but listed only once.

        Args:
            sample: The sample and what is wrong with it.

        Raises:
            UserError: The budget is used up.
        """
        self.num_skipped += 1
        self._list(sample)
        if self.budget.exceeded(self.num_skipped, self.seen, self.distinct, total=self.total):
            raise UserError(self.report(self.num_skipped, self.seen))

    def add_found(self, found: Iterable[SkippedSample], skipped: int, usable: int) -> None:
        """Add the samples that indexing found to be unusable; they do not count as samples seen.

        Args:
            found: Samples and whole shards that cannot be used.
            skipped: Number of samples that are skipped with them; whole shards are estimated.
            usable: Number of samples that are left.

        Raises:
            UserError: They are a larger fraction of all samples than the budget allows.
        """
        for sample in found:
            self._list(sample)
        total = skipped + usable
        if skipped and self.budget.exceeded(skipped, total, self.distinct, total=total):
            raise UserError(self.report(skipped, total))

    def _list(self, sample: SkippedSample) -> None:
        identity = (sample.reason, sample.shard, sample.key)
        if identity not in self._identities():
            self._identities().add(identity)
            with writing_to(self.folder):
                self.folder.mkdir(parents=True, exist_ok=True)
                with self.path.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(asdict(sample)) + "\n")

    def check_pass(self, skipped: int, seen: int) -> None:
        """Check the budget at the end of a pass whose length was not known before.

        Args:
            skipped: Skipped samples of this pass.
            seen: Samples of this pass, usable or not.

        Raises:
            UserError: The budget is used up, or no sample was usable.
        """
        if seen == 0 or skipped == seen or self.budget.exceeded(skipped, seen, self.distinct, total=seen):
            raise UserError(self.report(skipped, seen))

    def all(self) -> list[SkippedSample]:
        """Return all samples skipped so far, of all processes, each once."""
        lines = (line for path in self._lists() for line in path.read_text(encoding="utf-8").splitlines())
        samples = [SkippedSample(**json.loads(line)) for line in lines]
        return list({(sample.reason, sample.shard, sample.key): sample for sample in samples}.values())

    def clear(self) -> None:
        """Delete the lists that a former run of the same name left in the folder."""
        for path in self._lists():
            path.unlink()
        self._known = None

    def counts(self) -> dict[str, int]:
        """Return the number of skipped samples by reason, the most frequent first."""
        return dict(Counter(sample.reason for sample in self.all()).most_common())

    def reasons(self) -> str:
        """Return `counts` as text, empty if no sample was skipped."""
        return ", ".join(f"{reason} {count}" for reason, count in self.counts().items())

    def report(self, skipped: int, seen: int) -> str:
        """Return the message that ends a run.

        Args:
            skipped: Number of skipped samples.
            seen: Number of samples seen, usable or not.
        """
        samples, reasons = self.all(), self.reasons() or "none was read"
        first = printable(f"{samples[0].reason} in {samples[0].shard}, key {samples[0].key!r}") if samples else "-"
        where = "" if self._temporary else f"All of them: {self.folder}/skipped-{self.name}-*.jsonl. "
        limit = f"at most {self.budget.max_skipped_fraction:.1%}"
        if self.budget.max_skipped_samples is not None:
            limit += f" and {self.budget.max_skipped_samples} samples"
        return (
            f"{skipped} of {seen} samples of {self.name!r} cannot be used ({limit} allowed): {reasons}.\n"
            f"First: {first} ({printable(samples[0].detail) if samples else 'no samples in the shards'}).\n"
            f"{where}Fix the data (`divot data inspect` lists what is wrong) or raise max_skipped_fraction."
        )

    def _identities(self) -> set[tuple[str, str, str]]:
        if self._known is None:
            self._known = {(sample.reason, sample.shard, sample.key) for sample in self.all()}
        return self._known


def skipped_lines(skipped: Sequence[SkippedSample]) -> list[str]:
    """Return the lines that a command prints about skipped samples: how many, why, and the first ones by name.

    >>> skipped_lines([SkippedSample("too_short", "a.tar", "k", "0.5 s of 2 s")])
    ['left out: 1 (too_short 1)', '  too_short: a.tar k (0.5 s of 2 s)']
    """
    if not skipped:
        return []
    counts = Counter(sample.reason for sample in skipped).most_common()
    lines = [f"left out: {len(skipped)} ({', '.join(f'{reason} {count}' for reason, count in counts)})"]
    for sample in skipped[:LISTED]:
        named = " ".join(part for part in (sample.shard, sample.key) if part)
        lines.append(printable(f"  {sample.reason}: {named}{f' ({sample.detail})' if sample.detail else ''}"))
    return lines + ([f"  and {len(skipped) - LISTED} more"] if len(skipped) > LISTED else [])
