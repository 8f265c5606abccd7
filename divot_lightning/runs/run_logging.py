"""The two loggers of a run: `metrics.csv` and `tensorboard/`, both written from the first logged step on."""

import csv
import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only
from torch.utils.tensorboard import SummaryWriter

from divot_lightning.runs.run_folder import METRICS, TENSORBOARD


class RunLogger(Logger):
    """What both loggers share: they write into the run folder and keep no settings (`config.yaml` has them).

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
    """Writes `<run>/metrics.csv`: columns step, epoch and one per metric; a cell is empty where it was not logged.

    Each row is on disk as soon as it was logged. A resumed run goes on in the same file; rows of steps that
    are trained again are dropped by `forget_from`. Rows that a full disk did not take follow when it has room.
    """

    def __init__(self, run: Path) -> None:
        super().__init__(run)
        self.path = run / METRICS
        self.rows: list[dict[str, str]] = []
        self.columns = ["step", "epoch"]
        self.is_behind = False

    def forget_from(self, step: int) -> None:
        """Take over the rows that an earlier start of this run wrote before `step`, and no later ones."""
        if not self.path.is_file():
            return
        with self.path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            self.columns = list(reader.fieldnames or self.columns)
            self.rows = [row for row in reader if int(row["step"]) < step]
        self._rewrite()

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Append one row.

        Args:
            metrics: Scalars by name.
            step: Optimizer steps done before this one.
        """
        row = {"step": str(step or 0), **{name: f"{float(value):.8g}" for name, value in metrics.items()}}
        if "epoch" in row:
            row["epoch"] = str(int(metrics["epoch"]))
        new = [name for name in row if name not in self.columns]
        self.columns += new
        self.rows.append(row)
        try:
            if new or self.is_behind or not self.path.is_file():
                self._rewrite()
            else:
                with self.path.open("a", newline="", encoding="utf-8") as file:
                    csv.DictWriter(file, self.columns).writerow(row)
            self.is_behind = False
        except OSError as error:
            if not self.is_behind:
                sys.stderr.write(f"{self.path} cannot be written for now, which stops nothing: {error}\n")
            self.is_behind = True

    def _rewrite(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        new = self.path.with_suffix(".new")
        with new.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, self.columns)
            writer.writeheader()
            writer.writerows(self.rows)
        new.replace(self.path)


class TensorBoardMetrics(RunLogger):
    """Writes `<run>/tensorboard/` from the first logged step on.

    Lightning's own logger makes its folder before the data are looked at, so that a recipe with a wrong path would
    leave half a run behind.
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
        # Its thread ends with the first write that fails.
        self.failed, self.writer = True, None
        sys.stderr.write(
            f"{self.run / TENSORBOARD} gets no more until the run is resumed; {METRICS} goes on: {error}\n"
        )
