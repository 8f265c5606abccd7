"""What a stranger sends is refused unless it is a short text or a number in its range."""

import math

import pytest

from divot_lightning.demo.limits import Limits, number, text, whole_number
from divot_lightning.errors import UserError

LIMITS = Limits(characters=5)


@pytest.mark.parametrize("value", [None, 3, "", "  ", ["a"], "abcdef"])
def test_a_text_is_there_and_short(value):
    with pytest.raises(UserError, match="prompt"):
        text({"prompt": value}, "prompt", LIMITS, "prompt")
    assert text({"prompt": " abc "}, "prompt", LIMITS, "prompt") == "abc"


@pytest.mark.parametrize("value", [0, 5, -1, 2.0, True, "2", None, math.nan, [1]])
def test_a_whole_number_is_in_its_range(value):
    with pytest.raises(UserError, match=r"num is .*; it must be a whole number from 1 to 4"):
        whole_number({"num": value}, "num", 4)
    assert whole_number({"num": 4}, "num", 4) == 4
    assert whole_number({}, "num", 4, default=2) == 2


@pytest.mark.parametrize("value", [-0.1, 10.1, math.inf, math.nan, "1", False, None])
def test_a_number_is_in_its_range(value):
    with pytest.raises(UserError, match=r"t is .*; it must be a number from 0 to 10"):
        number({"t": value}, "t", 10.0, 1.0)
    assert number({"t": 3}, "t", 10.0, 1.0) == 3.0
    assert number({}, "t", 10.0, 1.0) == 1.0


@pytest.mark.parametrize(("name", "option"), [("upload_mb", "--max-upload-mb"), ("waiting", "--max-queue")])
def test_a_limit_without_room_is_refused(name, option):
    with pytest.raises(UserError, match=f"{option} is 0"):
        Limits(**{name: 0})
