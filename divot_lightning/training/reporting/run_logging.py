"""The two loggers of a run: `metrics.csv` and `tensorboard/`, both written from the first logged step on."""

import contextlib
import csv
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

from lightning.fabric.loggers.logger import _DummyExperiment
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from divot_lightning.io.files import atomic_file
from divot_lightning.training.run_folder import METRICS, TENSORBOARD


class CsvMetrics(CSVLogger):
    """Writes `<run>/metrics.csv`: columns step, epoch and one per metric; empty where a metric was not logged.

    Each row is in the file as soon as it was logged. A checkpoint stores the number of its rows, so that a resumed run
    continues behind exactly those: `resume` drops later rows. Rows that a full disk did not take are written when there
    is room again. Lightning's own logger deletes the file of a run that is resumed.

    Args:
        run: The run folder.
    """

    def __init__(self, run: Path) -> None:
        super().__init__(run, name="", version="")
        self.path = run / METRICS
        self.rows: list[dict[str, str]] = []
        self.columns = ["step", "epoch"]
        self.num_written = 0

    @property
    def experiment(self) -> "CsvMetrics":
        """The logger itself; Lightning's writer would delete the file."""
        return self

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
    def log_metrics(self, metrics: Mapping[str, Tensor | float], step: int | None = None) -> None:
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

    @rank_zero_only
    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Do nothing: the run's `config.yaml` is the record."""

    @rank_zero_only
    def save(self) -> None:
        """Do nothing: each row is in the file already."""

    def _rewrite(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(self.path) as unfinished, unfinished.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, self.columns)
            writer.writeheader()
            writer.writerows(self.rows)
        self.num_written = len(self.rows)


class TensorBoardMetrics(TensorBoardLogger):
    """Writes `<run>/tensorboard/` from the first logged step on.

    Lightning's own logger makes its folder before the data are opened: a recipe with a wrong path would leave an
    unfinished run behind. Where the disk is full, it would end the run.

    Args:
        run: The run folder.
    """

    def __init__(self, run: Path) -> None:
        super().__init__(run, name="", version=TENSORBOARD)
        self.failed = self.opened = False

    @property
    def experiment(self) -> SummaryWriter:
        """The writer; before the first logged step a stand-in that ignores every call, since Lightning asks for it."""
        return super().experiment if self.opened else cast(SummaryWriter, _DummyExperiment())

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Write each metric as a scalar at `step`."""
        self.opened = True
        if not self.failed:
            with self._survived():
                super().log_metrics(metrics, step)

    @rank_zero_only
    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Do nothing: the run's `config.yaml` is the record."""

    @rank_zero_only
    def save(self) -> None:
        """Do nothing: the writer writes by itself."""

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Close the file."""
        with self._survived():
            super().finalize(status)

    @contextlib.contextmanager
    def _survived(self) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError) as error:  # Lightning wraps errors of the writer into ValueError
            if not isinstance(error, OSError) and not isinstance(error.__cause__, OSError):
                raise
            # The writer's thread ends at the first write that fails.
            self.failed, self._experiment = True, None
            sys.stderr.write(
                f"{self.log_dir} is not written until the run is resumed; {METRICS} continues: "
                f"{error.__cause__ or error}\n"
            )
