"""The account of samples that could not be used: how many, why, in which shard, under which key.

Loader workers are processes: each one writes its own file, and the two counters that the budget needs are shared.
"""

import json
import multiprocessing
import tempfile
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from divot_lightning.errors import UserError


@dataclass(frozen=True)
class Defect:
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
        max_bad_fraction: Largest share of unusable samples in one pass; before a pass is over, the share is taken of
            at least 200 samples, so that an early defect does not end a run.
        max_bad_samples: Largest number of unusable samples; None for no limit.
    """

    max_bad_fraction: float = 0.05
    max_bad_samples: int | None = None

    def exceeded(self, bad: int, seen: int, *, whole_pass: bool = False) -> bool:
        """Tells whether `bad` of `seen` samples are too many.

        >>> Budget(0.05).exceeded(10, 20), Budget(0.05).exceeded(10, 20, whole_pass=True)
        (False, True)
        """
        if self.max_bad_samples is not None and bad > self.max_bad_samples:
            return True
        return bad > self.max_bad_fraction * (seen if whole_pass else max(seen, 200))


class Ledger:
    """Counts defects of one data source across processes.

    Args:
        name: Of the source, such as "train"; part of the file names.
        folder: Where the jsonl files go; None for a temporary folder.
        budget: How much may be lost.
    """

    def __init__(self, name: str, folder: str | Path | None = None, budget: Budget | None = None) -> None:
        self.name, self.budget = name, budget or Budget()
        self._temporary = tempfile.TemporaryDirectory(prefix="divot-ledger-") if folder is None else None
        self.folder = Path(self._temporary.name) if self._temporary else Path(folder or ".")
        # Shared memory; made for spawned processes it works with forked ones as well, but not the other way round.
        context = multiprocessing.get_context("spawn")
        self._seen, self._bad = context.Value("q", 0), context.Value("q", 0)
        self._known: set[tuple[str, str, str]] | None = None

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_temporary": None, "_known": None}

    @property
    def seen(self) -> int:
        """Samples read so far, good or bad, in all processes."""
        return int(self._seen.value)

    @property
    def bad(self) -> int:
        """Distinct defects so far, in all processes."""
        return int(self._bad.value)

    def saw_sample(self) -> None:
        """Counts a sample that was read."""
        with self._seen.get_lock():
            self._seen.value += 1

    def record(self, defect: Defect, writer: str = "main") -> None:
        """Notes a defect, once, however often the sample comes by.

        Args:
            defect: What is wrong.
            writer: Name of the writing process, unique among those that run at one time.

        Raises:
            UserError: The budget is used up.
        """
        identity = (defect.reason, defect.shard, defect.key)
        if self._known is None:
            self._known = {(d.reason, d.shard, d.key) for d in self.defects()}
        if identity not in self._known:
            self._known.add(identity)
            self.folder.mkdir(parents=True, exist_ok=True)
            with (self.folder / f"defects-{self.name}-{writer}.jsonl").open("a", encoding="utf-8") as file:
                file.write(json.dumps(asdict(defect)) + "\n")
            with self._bad.get_lock():
                self._bad.value += 1
        if self.budget.exceeded(self.bad, self.seen):
            raise UserError(self.report(self.bad, self.seen))

    def finish_pass(self, bad: int, seen: int) -> None:
        """Checks the budget at the end of a pass over (a worker's part of) the shards.

        Args:
            bad: Unusable samples in this pass.
            seen: Samples read in this pass.
        """
        if seen == 0 or bad == seen or self.budget.exceeded(bad, seen, whole_pass=True):
            raise UserError(self.report(bad, seen))

    def defects(self) -> list[Defect]:
        """Returns all defects noted so far, of all processes, each once."""
        lines: Iterable[str] = (
            line
            for path in sorted(self.folder.glob(f"defects-{self.name}-*.jsonl"))
            for line in path.read_text(encoding="utf-8").splitlines()
        )
        return list(dict.fromkeys(Defect(**json.loads(line)) for line in lines))

    def clear(self) -> None:
        """Forgets what a former run of the same name noted in the folder."""
        for path in self.folder.glob(f"defects-{self.name}-*.jsonl"):
            path.unlink()
        self._known = None

    def counts(self) -> dict[str, int]:
        """Returns the number of defects by reason, the most frequent first."""
        return dict(Counter(defect.reason for defect in self.defects()).most_common())

    def report(self, bad: int, seen: int) -> str:
        """Returns the message that ends a run."""
        defects = self.defects()
        reasons = ", ".join(f"{reason} {count}" for reason, count in self.counts().items()) or "none was read"
        first = f"{defects[0].reason} in {defects[0].shard}, key {defects[0].key!r}" if defects else "-"
        where = "" if self._temporary else f"All of them: {self.folder}/defects-{self.name}-*.jsonl. "
        limit = f"at most {self.budget.max_bad_fraction:.1%}"
        if self.budget.max_bad_samples is not None:
            limit += f" and {self.budget.max_bad_samples} samples"
        return (
            f"{bad} of {seen} samples of {self.name!r} cannot be used ({limit} allowed): {reasons}.\n"
            f"First: {first} ({defects[0].detail if defects else 'no samples in the shards'}).\n"
            f"{where}Mend the data (`divot data inspect` lists the defects) or raise max_bad_fraction."
        )
