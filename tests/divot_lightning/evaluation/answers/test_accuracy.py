"""Answers are read and counted as the rules say."""

import math

import pytest

from divot_lightning.evaluation.answers.accuracy import (
    ChoiceAccuracy,
    OpenAnswerAccuracy,
    compare_answers,
    normalise_answer,
    parse_choice,
)
from divot_lightning.parts.benchmarks import BenchmarkItem, Prediction
from tests.divot_lightning.evaluation.measuring import scores_of

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


def choices(metric, chosen, correct, groups):
    items = [BenchmarkItem("", None, "", choice=c, group=g) for c, g in zip(correct, groups, strict=True)]
    return scores_of(metric, [Prediction(parsed=choice) for choice in chosen], items)


def test_shares_are_over_all_per_group_and_the_mean_of_groups():
    metric = ChoiceAccuracy(["count", "order", "unused"])
    choices(metric, [0, 1, None], [0, 0, 2], ["count", "count", "order"])
    shares = choices(metric, [3], [3], ["order"])
    assert math.isnan(shares.pop("unused"))
    assert shares == {"all": 0.5, "count": 0.5, "order": 0.5, "mean_of_groups": 0.5, "unparsed": 0.25}


def test_small_groups_count_as_much_as_large_ones_in_the_mean():
    shares = choices(ChoiceAccuracy(["large", "small"]), [0] * 10, [0] * 9 + [1], ["large"] * 9 + ["small"])
    assert shares["mean_of_groups"] == pytest.approx(0.5)
    assert shares["all"] == pytest.approx(0.9)


def test_questions_whose_answer_is_hidden_have_no_accuracy():
    metric = ChoiceAccuracy(unparsed_as=1)
    assert choices(metric, [None, 0], [None, None], ["", ""]) == {"unparsed": 0.5}
    assert choices(metric, [None, 0], [1, 1], ["", ""]) == {"all": 0.5, "unparsed": 0.5}
    assert metric.counts() == {"all": 2, "unparsed": 2, "mean_of_groups": 2}


def opens(metric, answers, correct, groups):
    items = [BenchmarkItem("", None, "", answer=c, group=g) for c, g in zip(correct, groups, strict=True)]
    return scores_of(metric, [Prediction(answer) for answer in answers], items)


def test_open_answers_are_exact_or_normalised_also_by_group():
    metric = OpenAnswerAccuracy(["x"])
    shares = opens(metric, ["a dog", "The dog", "puppy", "cat"], ["a dog"] * 4, ["x", "", "x", ""])
    assert shares == {"exact": 0.25, "normalised": 0.5, "normalised/x": 0.5}
    assert metric.counts() == {"exact": 4, "normalised": 4, "normalised/x": 2}


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
    shares = opens(OpenAnswerAccuracy(), [answer], [correct], [""])
    assert (shares["exact"], shares["normalised"]) == right
