"""Predictions survive being cut off at any byte, and are merged in order."""

import json
import subprocess
import sys
from contextlib import closing

import pytest

from divot_lightning.errors import UserError
from divot_lightning.evaluation.predictions import PredictionStore, written_alone
from tests.helpers.faults import limited_file_size

ROWS = [{"id": f"item {n}", "prediction": f"é\n{n}"} for n in range(3)]


def test_rows_of_all_processes_are_found_and_merged(tmp_path):
    for rank, rows in enumerate((ROWS[:1], ROWS[1:])):
        with closing(PredictionStore(tmp_path, rank)) as store:
            store.append(rows)
    store = PredictionStore(tmp_path)
    assert store.rows() == {row["id"]: row for row in ROWS}
    store.merge(ROWS[::-1])
    lines = (tmp_path / "predictions.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == ROWS[::-1]
    assert [path.name for path in tmp_path.iterdir()] == ["predictions.jsonl"]
    assert store.rows() == {row["id"]: row for row in ROWS}


def test_a_file_cut_off_at_any_byte_keeps_its_whole_lines_and_is_continued(tmp_path):
    with closing(PredictionStore(tmp_path)) as store:
        store.append(ROWS[:2])
    path = tmp_path / "predictions-rank0.jsonl"
    content = path.read_bytes()
    for length in range(len(content) + 1):
        path.write_bytes(content[:length])
        whole = content[:length].count(b"\n")
        assert list(PredictionStore(tmp_path).rows().values()) == ROWS[:whole]
        with closing(PredictionStore(tmp_path)) as store:
            store.append(ROWS[2:])
        assert list(PredictionStore(tmp_path).rows().values()) == [*ROWS[:whole], ROWS[2]]


def test_rows_of_an_earlier_version_are_read_with_todays_names(tmp_path):
    (tmp_path / "predictions.jsonl").write_text('{"id": "a", "said": "B"}\n')
    assert PredictionStore(tmp_path).rows() == {"a": {"id": "a", "prediction": "B"}}


def test_a_broken_line_in_the_middle_is_named(tmp_path):
    (tmp_path / "predictions.jsonl").write_text('{"id": "a"}\n{"id":\n{"id": "b"}\n')
    with pytest.raises(UserError, match=r"line 2 of .*predictions\.jsonl"):
        PredictionStore(tmp_path).rows()


def test_a_folder_belongs_to_one_protocol(tmp_path):
    store = PredictionStore(tmp_path)
    store.check_protocol({"prompt": "x", "clips": {"frames": 5}})
    store.check_protocol({"prompt": "x", "clips": {"frames": 5}})
    with pytest.raises(UserError, match="of another protocol \\(and 1 more\\):\nprompt was 'x', now it is 'y'"):
        store.check_protocol({"prompt": "y", "clips": {"frames": 8}})


def test_what_scoring_wrote_is_not_read_back_and_rows_that_are_not_scored_stay(tmp_path):
    store = PredictionStore(tmp_path)
    scored = [{**row, "chosen": 1, "judged": True, "judge_score": 5, "scores": {"a": 1.0}} for row in ROWS]
    store.merge(scored)
    assert list(store.rows().values()) == ROWS
    store.merge(scored[1:2])
    lines = [json.loads(line) for line in (tmp_path / "predictions.jsonl").read_text().splitlines()]
    assert lines == [scored[1], ROWS[0], ROWS[2]]


def test_other_versions_of_libraries_may_score_but_not_add(tmp_path):
    store = PredictionStore(tmp_path)
    protocol = {"prompt": "x", "versions": {"torch": "1"}, "model": {"run": "here", "video_llm": "abc"}}
    store.check_protocol(protocol)
    later = {**protocol, "versions": {"torch": "2"}, "model": {"run": "moved", "video_llm": "abc"}}
    assert store.check_protocol(later, complete=True) == protocol
    with pytest.raises(UserError, match=r"versions\.torch was '1', now it is '2'"):
        store.check_protocol(later)
    with pytest.raises(UserError, match=r"model\.video_llm"):
        store.check_protocol({**later, "model": {"run": "moved", "video_llm": "def"}}, complete=True)


def test_what_earlier_versions_recorded_besides_does_not_stand_in_the_way(tmp_path):
    (tmp_path / "protocol.json").write_text(json.dumps({"prompt": "x", "items_without_video": 3, "clip_model": {}}))
    assert PredictionStore(tmp_path).check_protocol({"prompt": "x"}) == {"prompt": "x"}


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file/out cannot be written"):
        PredictionStore(tmp_path / "file" / "out")


HOLD = (
    "import sys, time\n"
    "from pathlib import Path\n"
    "from divot_lightning.evaluation.predictions import written_alone\n"
    "with written_alone(Path(sys.argv[1])):\n"
    "    print('writing', flush=True)\n"
    "    time.sleep(60)\n"
)


def test_a_second_evaluation_of_the_same_folder_is_refused_until_the_first_has_ended(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "writing\n"
    with pytest.raises(UserError, match=r"another process is writing into .* at this moment"), written_alone(tmp_path):
        pass
    with written_alone(tmp_path, rank=1) as store:  # another process of the first evaluation
        store.append(ROWS[:1])
    process.kill()
    process.communicate()
    with written_alone(tmp_path) as store:
        assert list(store.rows()) == ["item 0"]
    assert [path.name for path in tmp_path.iterdir()] == ["predictions-rank1.jsonl"]


def test_a_row_without_an_item_is_named(tmp_path):
    (tmp_path / "predictions-rank0.jsonl").write_text('{"id": "a"}\n{"prediction": "x"}\n')
    with pytest.raises(UserError, match=r"line 2 of .*predictions-rank0\.jsonl names no item"):
        PredictionStore(tmp_path).rows()


def test_a_full_disk_is_told_with_the_folder(tmp_path):
    told = pytest.raises(UserError, match=rf"{tmp_path} cannot be written: files there may not grow so large")
    with limited_file_size(1000), told, written_alone(tmp_path):
        (tmp_path / "clips.npz").write_bytes(b"x" * 2000)
