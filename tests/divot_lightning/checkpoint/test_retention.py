"""Which checkpoints stay."""

from pathlib import Path

import pytest

from divot_lightning.checkpoint.folders import (
    read_scores,
    remove_folder,
    remove_leftovers,
    steps_to_remove,
    write_score,
)

RULES = {"keep_last": 1, "keep_every": None, "keep_best": 0, "mode": "min"}


@pytest.mark.parametrize(
    ("rules", "removed"),
    [
        ({}, [10, 20, 30]),
        ({"keep_last": 3}, [10]),
        ({"keep_last": 9}, []),
        ({"keep_every": 20}, [10, 30]),
        ({"keep_best": 1}, [20, 30]),
        ({"keep_best": 1, "mode": "max"}, [10, 30]),
        ({"keep_best": 2, "keep_every": 30}, [20]),
    ],
)
def test_what_no_rule_keeps_goes(rules: dict[str, object], removed: list[int]) -> None:
    scores = {10: 0.1, 20: 0.9, 40: 0.5, 5: 0.0}
    assert steps_to_remove([40, 10, 30, 20], scores, **{**RULES, **rules}) == removed


def test_the_newest_of_equal_scores_is_the_best() -> None:
    assert steps_to_remove([1, 2, 3], {1: 0.5, 2: 0.5}, **{**RULES, "keep_best": 1}) == [1]


def test_a_removed_folder_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "step_00000004").mkdir()
    (tmp_path / "step_00000004/x").write_text("x")
    remove_folder(tmp_path / "step_00000004")
    assert list(tmp_path.iterdir()) == []


def test_leftovers_of_a_kill_are_cleared_and_checkpoints_are_not(tmp_path: Path) -> None:
    for name in (".step_00000004.unfinished", ".step_00000002.removing", "step_00000003"):
        (tmp_path / name).mkdir()
    remove_leftovers(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["step_00000003"]


def test_scores_are_added_and_survive(tmp_path: Path) -> None:
    assert read_scores(tmp_path) == {}
    write_score(tmp_path, 10, 0.5)
    write_score(tmp_path, 20, 0.25)
    assert read_scores(tmp_path) == {10: 0.5, 20: 0.25}
