"""The two loggers of a run: `metrics.csv` and `tensorboard/`, both written from the first logged step on."""

import contextlib
import csv
import os
import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only
from torch.utils.tensorboard import SummaryWriter

from divot_lightning.io.files import atomic_file
from divot_lightning.training.run_folder import METRICS, TENSORBOARD


class RunLogger(Logger):
    """Base of both loggers: they write into the run folder and record no settings (`config.yaml` has them).

    Args:
        run: The run folder.
    """

    def __init__(self, run: Path) -> None:
        super().__init__()
        self.run = run

    @property
    def name(self) -> str:
        """The name of the run folder."""
        return self.run.name

    @property
    def version(self) -> str:
        """Empty: a run folder holds one run."""
        return ""

    @property
    def save_dir(self) -> str:
        """The run folder."""
        return str(self.run)

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Do nothing: the run's `config.yaml` is the record."""


class CsvMetrics(RunLogger):
    """Writes `<run>/metrics.csv`: columns step, epoch and one per metric; empty where a metric was not logged.

    Each row is in the file as soon as it was logged. A checkpoint stores the number of its rows, so that a resumed run
    continues behind exactly those: `resume` drops later rows. Rows that a full disk did not take are written when there
    is room again.
    """

    def __init__(self, run: Path) -> None:
        super().__init__(run)
        self.path = run / METRICS
        self.rows: list[dict[str, str]] = []
        self.columns = ["step", "epoch"]
        self.num_written = 0

    def position(self) -> dict[str, Any]:
        """Write all rows to the disk, and describe them for a checkpoint.

        Returns:
            "rows", their number, and "missing", the last of them if the file could not take them; plain data.
        """
        with contextlib.suppress(OSError):
            if self.num_written < len(self.rows):
                self._rewrite()
            with self.path.open("rb") as file:
                os.fsync(file.fileno())
        return {"rows": len(self.rows), "missing": self.rows[self.num_written :]}

    def resume(self, step: int, position: dict[str, Any] | None) -> None:
        """Keep the rows that were written before the checkpoint, and drop later ones.

        Args:
            step: Step of the checkpoint.
            position: The result of `position` at the checkpoint; with None, rows are kept by their step.
        """
        if self.path.is_file():
            with self.path.open(newline="", encoding="utf-8") as file:
                reader = csv.DictReader(file)
                self.columns = list(reader.fieldnames or self.columns)
                self.rows = list(reader)
        if position is None:
            self.rows = [row for row in self.rows if int(row["step"]) < step]
        else:
            missing = position["missing"]
            self.rows = [*self.rows[: position["rows"] - len(missing)], *missing]
            self.columns = list(dict.fromkeys([*self.columns, *(name for row in missing for name in row)]))
        if self.rows or self.path.is_file():
            self._rewrite()

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Append one row.

        Args:
            metrics: Scalars by name.
            step: Number of optimizer steps before this one.
        """
        row = {"step": str(step or 0), **{name: f"{float(value):.8g}" for name, value in metrics.items()}}
        if "epoch" in row:
            row["epoch"] = str(int(metrics["epoch"]))
        new = [name for name in row if name not in self.columns]
        is_behind = self.num_written < len(self.rows)
        self.columns += new
        self.rows.append(row)
        try:
            if new or is_behind or not self.path.is_file():
                self._rewrite()
            else:
                with self.path.open("a", newline="", encoding="utf-8") as file:
                    csv.DictWriter(file, self.columns).writerow(row)
                self.num_written = len(self.rows)
        except OSError as error:
            if not is_behind:
                sys.stderr.write(f"{self.path} cannot be written for now; training continues: {error}\n")

    def _rewrite(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(self.path) as unfinished, unfinished.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, self.columns)
            writer.writeheader()
            writer.writerows(self.rows)
        self.num_written = len(self.rows)


class TensorBoardMetrics(RunLogger):
    """Writes `<run>/tensorboard/` from the first logged step on.

    Lightning's own logger creates its folder before the data are opened, so that a recipe with a wrong path would leave
    an unfinished run behind.
    """

    writer: SummaryWriter | None = None
    failed = False

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Write each metric as a scalar at `step`."""
        if self.failed:
            return
        try:
            if self.writer is None:
                self.writer = SummaryWriter(str(self.run / TENSORBOARD))
            for name, value in metrics.items():
                self.writer.add_scalar(name, float(value), step)
        except OSError as error:
            self._give_up(error)

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Close the file."""
        writer, self.writer = self.writer, None
        try:
            if writer is not None:
                writer.close()
        except OSError as error:
            self._give_up(error)

    def _give_up(self, error: OSError) -> None:
        # The writer's thread ends at the first write that fails.
        self.failed, self.writer = True, None
        sys.stderr.write(
            f"{self.run / TENSORBOARD} is not written until the run is resumed; {METRICS} continues: {error}\n"
        )
