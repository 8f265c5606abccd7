"""Predictions survive being cut off at any byte, and are merged in order."""

import json

import pytest

from divot_lightning.errors import UserError
from divot_lightning.evaluation.predictions import PredictionStore

ROWS = [{"id": f"item {n}", "said": f"é\n{n}"} for n in range(3)]


def test_rows_of_all_processes_are_found_and_merged(tmp_path):
    for rank, rows in enumerate((ROWS[:1], ROWS[1:])):
        with PredictionStore(tmp_path, rank) as store:
            store.append(rows)
    store = PredictionStore(tmp_path)
    assert store.rows() == {row["id"]: row for row in ROWS}
    store.merge(ROWS[::-1])
    lines = (tmp_path / "predictions.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == ROWS[::-1]
    assert [path.name for path in tmp_path.iterdir()] == ["predictions.jsonl"]
    assert store.rows() == {row["id"]: row for row in ROWS}


def test_a_file_cut_off_at_any_byte_keeps_its_whole_lines_and_is_gone_on_with(tmp_path):
    with PredictionStore(tmp_path) as store:
        store.append(ROWS[:2])
    path = tmp_path / "predictions-rank0.jsonl"
    content = path.read_bytes()
    for length in range(len(content) + 1):
        path.write_bytes(content[:length])
        whole = content[:length].count(b"\n")
        assert list(PredictionStore(tmp_path).rows().values()) == ROWS[:whole]
        with PredictionStore(tmp_path) as store:
            store.append(ROWS[2:])
        assert list(PredictionStore(tmp_path).rows().values()) == [*ROWS[:whole], ROWS[2]]


def test_a_broken_line_in_the_middle_is_named(tmp_path):
    (tmp_path / "predictions.jsonl").write_text('{"id": "a"}\n{"id":\n{"id": "b"}\n')
    with pytest.raises(UserError, match=r"line 2 of .*predictions\.jsonl"):
        PredictionStore(tmp_path).rows()


def test_a_folder_belongs_to_one_way_of_measuring(tmp_path):
    store = PredictionStore(tmp_path)
    store.claim({"prompt": "x", "clips": {"frames": 5}})
    store.claim({"prompt": "x", "clips": {"frames": 5}})
    with pytest.raises(UserError, match="in another way \\(and 1 more\\):\nprompt was 'x', now it is 'y'"):
        store.claim({"prompt": "y", "clips": {"frames": 8}})
