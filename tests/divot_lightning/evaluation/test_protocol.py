"""What two protocols differ in is found wherever it is."""

from divot_lightning.evaluation.protocol import differing


def test_what_differs_is_found_at_any_depth():
    assert differing([{"a": {"b": 1, "c": [1]}}, {"a": {"b": 1, "c": [2]}}, {"a": {}}]) == {
        "a.b": [1, 1, "(not stated)"],
        "a.c": [[1], [2], "(not stated)"],
        "a": ["(not stated)", "(not stated)", {}],
    }
    assert differing([{"a": 1}, {"a": 1}]) == {}
