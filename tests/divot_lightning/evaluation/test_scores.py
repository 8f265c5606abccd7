"""Scores carry their protocol, also in their file."""

import json
import math

import pytest

from divot_lightning.errors import UserError
from divot_lightning.evaluation.scores import Score, load_scores, save_scores


def test_scores_survive_the_file_undefined_ones_too(tmp_path):
    scores = [Score("a", 0.5, 4, {"split": "held_out"}), Score("b", math.nan, 0)]
    save_scores(scores, tmp_path / "deep" / "scores.json")
    loaded = load_scores(tmp_path / "deep" / "scores.json")
    assert loaded[0] == scores[0]
    assert math.isnan(loaded[1].value)
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["scores.json"]


def test_missing_scores_are_named(tmp_path):
    with pytest.raises(UserError, match=r"nowhere\.json"):
        load_scores(tmp_path / "nowhere.json")


def test_a_run_in_place_of_an_evaluation_is_refused_with_its_evaluations(tmp_path):
    save_scores([Score("a", 0.5, 4)], tmp_path / "evaluation" / "toy-captions-held_out" / "scores.json")
    with pytest.raises(UserError, match=r"evaluations of this run: .*evaluation/toy-captions-held_out$"):
        load_scores(tmp_path / "scores.json")


def test_scores_that_share_a_protocol_share_its_text(tmp_path):
    """MVBench has 24 scores and a protocol of some kilobytes."""
    protocol = {"prompt": "x" * 1000}
    scores = [Score(f"s{n}", n, 1, dict(protocol), {"run": "r"}) for n in range(24)]
    scores.append(Score("judged", 0.5, 1, {**protocol, "judge": {"model": "m"}}, {"run": "r"}))
    save_scores(scores, tmp_path / "scores.json")
    assert load_scores(tmp_path / "scores.json") == scores
    assert (tmp_path / "scores.json").stat().st_size < 6000


def test_a_list_of_scores_as_earlier_versions_wrote_it_is_read(tmp_path):
    entry = {"name": "a", "value": 0.5, "count": 4, "protocol": {"split": "held_out"}, "model": {"run": "r"}}
    (tmp_path / "scores.json").write_text(json.dumps([entry]))
    assert load_scores(tmp_path / "scores.json") == [Score("a", 0.5, 4, {"split": "held_out"}, {"run": "r"})]


def test_a_file_of_a_later_form_is_refused_with_what_to_do(tmp_path):
    (tmp_path / "scores.json").write_text(json.dumps({"format": 3, "scores": []}))
    with pytest.raises(UserError, match=r"form 3, this version reads form 2 .*\nRead it with the version"):
        load_scores(tmp_path / "scores.json")
