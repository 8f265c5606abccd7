"""Answers are read and counted as the rules say."""

import math

import pytest

from divot_lightning.errors import UserError
from divot_lightning.evaluation.answers.accuracy import (
    ChoiceAccuracy,
    OpenAnswerAccuracy,
    compare_answers,
    normalise_answer,
    parse_choice,
)

OPTIONS = ["A red car.", "a red car and a cat", "nothing", "None of them"]


@pytest.mark.parametrize(
    ("answer", "choice"),
    [
        ("(B)", 1),
        ("B", 1),
        ("B. a red car and a cat", 1),
        ("The answer is (C), nothing", 2),
        ("Best option: (A) a red car", 0),
        ("A red car", 0),
        ("it shows a red car and a cat, clearly", 1),
        ("nothing", 2),
        ("A", 0),
        ("A.", 0),
        ("(A) or (B)", None),
        ("nothing or none of them", None),
        ("E", None),
        ("", None),
        ("I cannot say", None),
        ("Both", None),
    ],
)
def test_the_option_that_an_answer_names_is_found(answer, choice):
    assert parse_choice(answer, OPTIONS) == choice


@pytest.mark.parametrize(("answer", "choice"), [("(D)", 3), ("Answer: (D)", 0), ("yes", None), ("it is B", 1)])
def test_the_first_letter_rule_takes_any_capital(answer, choice):
    assert parse_choice(answer, OPTIONS, "first_letter") == choice


@pytest.mark.parametrize(
    ("text", "normal"), [("The Two  dogs!", "2 dogs"), ("t-shirt", "t shirt"), ("A", "a"), (" ", "")]
)
def test_normal_form_of_answers(text, normal):
    assert normalise_answer(text) == normal


def test_shares_are_over_all_per_group_and_the_mean_of_groups():
    metric = ChoiceAccuracy(["count", "order", "unused"])
    metric.update([0, 1, None], [0, 0, 2], ["count", "count", "order"])
    metric.update([3], [3], ["order"])
    shares = {name: value.item() for name, value in metric.compute().items()}
    assert math.isnan(shares.pop("unused"))
    assert shares == {"all": 0.5, "count": 0.5, "order": 0.5, "mean_of_groups": 0.5, "unparsed": 0.25}


def test_small_groups_count_as_much_as_large_ones_in_the_mean():
    metric = ChoiceAccuracy(["large", "small"])
    metric.update([0] * 10, [0] * 9 + [1], ["large"] * 9 + ["small"])
    assert metric.compute()["mean_of_groups"].item() == pytest.approx(0.5)
    assert metric.compute()["all"].item() == pytest.approx(0.9)


def test_answers_without_a_group_are_refused():
    with pytest.raises(UserError, match="2 answers were given with 1 groups"):
        ChoiceAccuracy(["a"]).update([0, 1], [0, 1], ["a"])


def test_open_answers_are_exact_normalised_or_judged():
    metric = OpenAnswerAccuracy()
    metric.update(["a dog", "The dog", "puppy", "cat"], ["a dog"] * 4, [True, None, True, False])
    shares = {name: value.item() for name, value in metric.compute().items()}
    assert shares == {"exact": 0.25, "normalised": 0.5, "judged": pytest.approx(2 / 3)}


def test_without_a_judge_nothing_is_judged():
    metric = OpenAnswerAccuracy()
    metric.update(["a"], ["a"])
    assert math.isnan(metric.compute()["judged"])


@pytest.mark.parametrize(
    ("answer", "correct", "right"),
    [
        ("a", "a", (True, True)),
        ("A.", "a", (False, True)),
        ("", "a", (False, False)),
        ("the", "a", (False, False)),
        ("", "", (False, False)),
        ("...", "the", (False, False)),
        ("+", "+", (True, True)),
        ("The two dogs", "2 dogs", (False, True)),
    ],
)
def test_short_and_empty_open_answers_are_compared_rightly(answer, correct, right):
    assert compare_answers(answer, correct) == right
    metric = OpenAnswerAccuracy()
    metric.update([answer], [correct])
    assert (metric.compute()["exact"], metric.compute()["normalised"]) == right
