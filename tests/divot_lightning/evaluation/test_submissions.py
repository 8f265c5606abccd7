"""Files for servers have the form that each server takes."""

import csv
import json

from divot_lightning.evaluation.benchmarks.multiple_choice import EgoSchema
from divot_lightning.parts.benchmarks import BenchmarkItem


def test_egoschema_has_a_table_and_an_object_with_the_same_choices(tmp_path):
    items = [
        BenchmarkItem(name, None, "v", options=tuple("vwxyz"), choice=at) for name, at in (("u1", 0), ("u2", None))
    ]
    EgoSchema().write_submission(tmp_path, items, [{"chosen": 4}, {"chosen": None}])
    with (tmp_path / "submission.csv").open(newline="") as file:
        table = {row["q_uid"]: int(row["answer"]) for row in csv.DictReader(file)}
    assert table == {"u1": 4, "u2": 2}
    assert json.loads((tmp_path / "submission.json").read_text()) == table
