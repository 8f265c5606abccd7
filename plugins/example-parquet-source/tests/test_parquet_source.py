"""The Parquet source keeps the contract of a source, and `divot fit` trains on it by its name alone."""

import json
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from divot_source_parquet import ParquetSource

from divot_datamodules.shards.tar_source import TarSource
from divot_lightning.cli.main import main
from divot_lightning.errors import UserError
from divot_lightning.testing import SourceConformance
from divot_lightning.testing.toy_shards import make_toy_shards


def write_rows(file, count, caption="c"):
    """Write rows with a few bytes in place of a video, in row groups of three."""
    rows = [{"id": f"r{n}", "video": b"x" * (n + 1), "caption": f"{caption}{n}"} for n in range(count)]
    pq.write_table(pa.Table.from_pylist(rows), file, row_group_size=3)
    return str(file)


class TestParquetSource(SourceConformance):
    """The contract of a source."""

    def make_source(self, folder):
        """Two files, three row groups."""
        write_rows(folder / "a.parquet", 5)
        write_rows(folder / "b.parquet", 2)
        return ParquetSource(str(folder), key="id")

    def make_other(self, folder):
        """As many rows and bytes, but one caption differs."""
        write_rows(folder / "a.parquet", 5)
        write_rows(folder / "b.parquet", 2, caption="d")
        return ParquetSource(str(folder), key="id")

    def make_damaged(self, folder):
        """A file is cut after it was opened."""
        source = self.make_source(folder)
        os.truncate(folder / "b.parquet", 40)
        return source


def test_a_row_is_a_sample_with_its_texts(tmp_path):
    """Media in the form of `datasets`; all other columns are texts."""
    texts = {"caption": "a dog", "questions": [{"question": "q", "answer": "a"}]}
    row = {"clip": {"bytes": b"gif", "path": None}, **texts}
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "a.parquet")
    raw = ParquetSource(str(tmp_path / "*.parquet"), media="clip", suffix="gif").read(0, 0)
    assert raw.members["gif"] == b"gif"
    assert json.loads(raw.members["json"]) == texts


def test_files_without_rows_or_columns_are_refused(tmp_path):
    """The message names the file, and the columns that it has."""
    (tmp_path / "bad.parquet").write_bytes(b"no parquet")
    with pytest.raises(UserError, match=r"have no rows: .*bad\.parquet cannot be read"):
        ParquetSource(str(tmp_path))
    good = write_rows(tmp_path / "good.parquet", 1)
    with pytest.raises(UserError, match="no column movie; it has id, video, caption"):
        ParquetSource(good, media="movie")
    assert [skipped.reason for skipped in ParquetSource(str(tmp_path)).skipped] == ["unreadable_shard"]


def test_divot_fit_trains_on_it_by_name_as_on_the_tars_it_was_made_from(tmp_path, monkeypatch):
    """The first loss is that of the same samples from tars: nothing but the source differs."""
    monkeypatch.chdir(tmp_path)
    make_toy_shards("data", train=8, validation=4)
    tars = TarSource("data/train")
    for shard, count in enumerate(tars.counts):
        raws = [tars.read(shard, sample) for sample in range(count)]
        rows = [{"video": raw.members["mp4"], **json.loads(raw.members["json"])} for raw in raws]
        pq.write_table(pa.Table.from_pylist(rows), f"data/{shard}.parquet")
    source = {"class_path": "parquet", "init_args": {"path": "data/*.parquet"}}
    losses = [fit("tars", "data/train"), fit("parquet", json.dumps([{"source": source}]))]
    assert losses[0] == losses[1]
    assert len(losses[0]) == 2


def fit(run, train):
    """Train two steps of the toy tokenizer; return the rows of metrics.csv without the times."""
    words = ["--data.train", train, "--data.batch_size", "4", "--data.num_workers", "2", "--trainer.max_steps", "2"]
    words += ["--trainer.log_every_n_steps", "1", "--data.validation", "null", "--trainer.enable_progress_bar", "false"]
    words += ["--model.optimizer", "adamw"]  # the recipe's Muon takes longer for a step than all the rest
    assert main(["fit", "--config", "toy/tokenizer_pretraining", "--run", run, *words]) == 0
    header, *rows = Path(run, "metrics.csv").read_text().splitlines()
    column = header.split(",").index("train/loss")
    return [row.split(",")[column] for row in rows]
