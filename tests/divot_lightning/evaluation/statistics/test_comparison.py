"""Two evaluations beside each other: what differs, and by how much, with paired intervals."""

import json
import math

import numpy as np
import pytest

from divot_lightning.cli.main import main
from divot_lightning.errors import UserError
from divot_lightning.evaluation.protocol import differing_protocols
from divot_lightning.evaluation.scores import Score, save_scores
from divot_lightning.evaluation.statistics.comparison import (
    load_evaluation,
    score_difference,
    score_table,
)

NUM_ITEMS = 200


def evaluation(folder, values, *, frames=5, count=NUM_ITEMS, weights="1a"):
    """Write an evaluation whose items have these values, and a distance that has no items."""
    protocol = {"benchmark": "b", "clips": {"frames": frames}}
    rows = [{"id": f"i{n}", "scores": {"b/all": float(value)}} for n, value in enumerate(values)]
    folder.mkdir()
    (folder / "predictions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    scores = [Score("b/all", float(np.mean(values)), count, protocol, {"video_llm": weights})]
    scores.append(Score("b/distance", 100.0 + len(weights), count, protocol, {"video_llm": weights}))
    save_scores(scores, folder / "scores.json")
    return load_evaluation(folder)


@pytest.fixture
def pair(tmp_path):
    """B is right where A is, and on one item in ten more; items come in another order."""
    rng = np.random.default_rng(0)
    first = rng.random(NUM_ITEMS) < 0.5
    second = first | (np.arange(NUM_ITEMS) % 10 == 0)
    a = evaluation(tmp_path / "a", first)
    evaluation(tmp_path / "b", second, weights="2bb")
    lines = (tmp_path / "b" / "predictions.jsonl").read_text().splitlines()
    (tmp_path / "b" / "predictions.jsonl").write_text("\n".join(reversed(lines)) + "\n")
    return a, load_evaluation(tmp_path / "b")


def test_predictions_without_an_item_are_named(tmp_path):
    evaluation(tmp_path / "a", [0, 1])
    (tmp_path / "a" / "predictions.jsonl").write_text('{"id": "i0"}\n{"scores": {}}\n')
    with pytest.raises(UserError, match=r"line 2 of .*predictions\.jsonl names no item"):
        load_evaluation(tmp_path / "a")


def test_the_interval_is_that_of_the_paired_differences(pair):
    difference, items = score_difference(*pair, "b/all")
    per_item = np.array([row["scores"]["b/all"] for row in pair[1].rows.values()])
    before = np.array([pair[0].rows[name]["scores"]["b/all"] for name in pair[1].rows])
    gain = per_item - before
    error = gain.std() / math.sqrt(NUM_ITEMS)
    assert items == NUM_ITEMS
    assert difference.mean == pytest.approx(gain.mean())
    # of many items the t interval is the normal one
    assert difference.low == pytest.approx(gain.mean() - 1.96 * error, abs=0.05 * error)
    assert difference.high == pytest.approx(gain.mean() + 1.96 * error, abs=0.05 * error)
    # unpaired, the interval would be much wider
    assert error < 0.6 * math.sqrt(per_item.var() + before.var()) / math.sqrt(NUM_ITEMS)


def test_the_mean_of_groups_has_the_interval_of_its_groups(tmp_path):
    rng = np.random.default_rng(1)
    sizes, found = {"order": 30, "count": 90}, []
    names = [name for name, size in sizes.items() for _ in range(size)]
    for folder, share in (("a", 0.5), ("b", 0.7)):
        right = (rng.random(len(names)) < share).astype(float)
        evaluation(tmp_path / folder, right, count=len(names))
        rows = [
            {"id": f"i{n}", "scores": {"b/all": value, f"b/{name}": value}}
            for n, (name, value) in enumerate(zip(names, right, strict=True))
        ]
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (tmp_path / folder / "predictions.jsonl").write_text(text)
        means = {name: right[[other == name for other in names]].mean() for name in sizes}
        scores = [Score("b/all", right.mean(), 120, {}), Score("b/mean_of_groups", sum(means.values()) / 2, 120, {})]
        save_scores(scores, tmp_path / folder / "scores.json")
        found.append((right, means))
    a, b = (load_evaluation(tmp_path / folder) for folder in "ab")
    difference, items = score_difference(a, b, "b/mean_of_groups")
    gain = found[1][0] - found[0][0]
    gains = [gain[[other == name for other in names]] for name in sizes]
    error = math.hypot(*(gain_I.std(ddof=1) / 2 / math.sqrt(len(gain_I)) for gain_I in gains))
    assert items == 120
    assert difference.mean == pytest.approx(b.scores["b/mean_of_groups"].value - a.scores["b/mean_of_groups"].value)
    assert difference.high - difference.mean == pytest.approx(1.98 * error, rel=0.03)
    # The score of other items than those at hand has no interval.
    save_scores([Score("b/mean_of_groups", 0.9, 120, {})], tmp_path / "b" / "scores.json")
    assert math.isnan(score_difference(a, load_evaluation(tmp_path / "b"), "b/mean_of_groups")[0].low)


def test_a_score_without_items_has_a_difference_and_no_interval(pair):
    difference, items = score_difference(*pair, "b/distance")
    assert difference.mean == 1.0
    assert math.isnan(difference.low)
    assert items == 0


def test_an_undefined_score_has_no_difference(pair, tmp_path):
    for folder in ("a", "b"):
        save_scores([Score("b/spread", math.nan, 0, {"benchmark": "b"})], tmp_path / folder / "scores.json")
    table = score_table([load_evaluation(tmp_path / folder) for folder in ("a", "b")])
    assert table[1] == ["b/spread", "nan", "nan", "", "", ""]


def test_only_items_that_both_have_are_paired(pair, tmp_path):
    rest = [json.dumps(row) for row in list(pair[1].rows.values())[:50]]
    (tmp_path / "b" / "predictions.jsonl").write_text("\n".join(rest) + "\n")
    assert score_difference(pair[0], load_evaluation(tmp_path / "b"), "b/all")[1] == 50


def test_scores_of_different_protocols_need_the_flag_to_share_a_table(pair, tmp_path):
    other = evaluation(tmp_path / "c", [1.0] * NUM_ITEMS, frames=8)
    with pytest.raises(UserError, match=r"b/all was not measured in one way, what differs: clips\.frames"):
        score_table([pair[0], other])
    assert score_table([pair[0], other], mixed_protocols=True)[1][0] == "b/all *"
    assert score_table(pair)[1][0] == "b/all"


def test_another_number_of_items_is_another_protocol(pair, tmp_path):
    other = evaluation(tmp_path / "c", [1.0] * 10, count=10)
    assert differing_protocols([pair[0].scores["b/all"], other.scores["b/all"]]) == {"count": [NUM_ITEMS, 10]}


def test_three_evaluations_stand_in_one_table(pair, tmp_path):
    table = score_table([*pair, evaluation(tmp_path / "c", [1.0] * NUM_ITEMS)])
    assert table[0] == ["score", "A", "B", "C"]
    assert table[1][3] == "1.0000"


def test_the_command_shows_values_differences_and_models(pair, tmp_path, capsys):
    assert main(["compare", str(tmp_path / "a"), str(tmp_path / "b")]) == 0
    shown = capsys.readouterr().out
    assert "models differ:\n  video_llm: 1a | 2bb\n" in shown
    assert "protocols: the same" in shown
    assert "They say nothing about training again with another seed." in shown
    line = next(line for line in shown.splitlines() if line.startswith("b/all"))
    assert line.split()[1] == f"{pair[0].scores['b/all'].value:.4f}"
    assert line.split()[-1] == str(NUM_ITEMS)


def test_the_command_shows_what_differs_and_no_table_without_the_flag(pair, tmp_path, capsys):
    evaluation(tmp_path / "c", [1.0] * NUM_ITEMS, frames=8)
    words = ["compare", str(tmp_path / "a"), str(tmp_path / "c")]
    assert main(words) == 1
    shown = capsys.readouterr().out
    assert "clips.frames: 5 | 8" in shown
    assert "b/all" not in shown
    assert main([*words, "--mixed-protocols"]) == 0
    assert "b/all *" in capsys.readouterr().out


def test_files_of_scores_alone_can_be_compared(pair, tmp_path, capsys):
    assert main(["compare", *(str(tmp_path / name / "scores.json") for name in "ab")]) == 0
    assert "b/distance" in capsys.readouterr().out


def test_wrong_places_and_nothing_in_common_are_named(pair, tmp_path, capsys):
    save_scores([Score("other/all", 1.0, 1)], tmp_path / "other.json")
    for words, shown in (
        (["a"], "one evaluation was given"),
        (["a", "nowhere"], "nowhere"),
        (["a", "other.json"], "no score is in all of them"),
    ):
        assert main(["compare", *(str(tmp_path / word) for word in words)]) == 2
        assert shown in capsys.readouterr().err
