"""Answers are read as a person would, and no letter is favoured."""

import json
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from divot_lightning.evaluation.answers.choice_reading import read_choice

LABELLED = [json.loads(line) for line in Path(__file__).with_name("choice_answers.jsonl").read_text().splitlines()]
"""Answers with the option that a person reads, written by somebody else than the author of the rule, before it."""

OPTIONS = ("a dog", "a red car", "A man is walking", "Both of them")
WEARER = (
    "C takes a break from scrolling on the phone to look around the room.",
    "C picks up a book and reads it.",
    "The phone rings and C answers it while walking.",
    "C briefly stops scrolling to adjust the phone's position.",
    "C and the man talk about the phone.",
)
"""EgoSchema calls the one who wears the camera C."""

QUESTIONS = (
    WEARER,
    ("A man is cooking", "A woman is washing dishes", "A child plays with a ball", "A dog runs", "A cat sleeps"),
    ("moving left", "moving right", "moving up", "moving down", "not moving"),
    ("yes", "no", "not sure", "maybe", "cannot be told"),
    ("red cube", "Red sphere", "the blue cylinder", "A green cone", "an object that is not there"),
    ("To impress C", "Because A and B are friends", "For fun", "C is bored", "They are late"),
    ("To clean the table.", "To hide the key from B", "He wants to leave", "So that E can see", "No reason is given"),
)

FORMS = (
    "{X}", "{x}", "({X})", "({x})", "{X}.", "{x}.", "({X}", "{X})", "[{X}]", "<{X}>", "{{{X}}}", "**{X}**", "'{X}'",
    "Answer: {X}", "ANSWER: {X}", "answer: {x}", "The answer is {X}.", "the answer is {x}", "THE ANSWER IS {X}",
    "Option {X}", "option {x}", "Option {X} is correct.", "{X} is correct.", "{X} is the best answer.",
    "The answer is {X} because the person moves.", "{X} because the person moves.", "{X}, because it moves.",
    "I choose {X}", "I think it is {X}.", "Sure, {X}", "So the answer must be {X}.", "Best option: ({X})",
    "Therefore, {X}.", "{X} best describes the video",
    "The best description is {X}.", "I believe {X} is right, as it shows it.",
    "The {nth} option", "{X}\n\nExplanation: the person moves.", "Not {Y}, but {X}.", "The answer is {X}, not {Y}.",
    "{Y} is wrong. {X} is right.", "It could be ({Y}), but the answer is ({X}).", "\\boxed{{{X}}}",
    "<think>{Y} perhaps, or {X}</think>{X}", "{X}. {text}", "({X}) {text}", "{X}: {text}", "{x}) {text}", "{X} {text}",
    "{X}, {text}", "{x}. {text}", "{X} - {text}", "Answer: {X}\n{text}", "{text}", "{TEXT}", "{Text}",
    "The answer is {text}", "{X}. {Text}", "The correct answer is {X}. {text}",
)  # fmt: skip
NTH = ("first", "second", "third", "fourth", "fifth")


@pytest.mark.parametrize("form", FORMS)
def test_no_letter_is_favoured(form):
    for question in QUESTIONS:
        for shift in range(5):  # every text under every letter
            options = question[shift:] + question[:shift]
            for index, letter in enumerate("ABCDE"):
                text, other = options[index].rstrip("."), "CDEAB"[index]
                spellings = {"text": text, "TEXT": text.upper(), "Text": text.title(), "nth": NTH[index]}
                answer = form.format(X=letter, x=letter.lower(), Y=other, **spellings)
                assert read_choice(answer, options) == index, (answer, options)


def test_answers_are_read_as_a_person_reads_them():
    assert len(LABELLED) >= 150
    wrong = [
        f"{row['answer']!r} of {row['options']}: a person reads {row['choice']}, the rule {read}"
        for row in LABELLED
        if (read := read_choice(row["answer"], row["options"])) != row["choice"]
    ]
    assert len(wrong) <= 0.05 * len(LABELLED), "\n".join(wrong)


@pytest.mark.parametrize(
    ("answer", "choice"),
    [
        ("option 2", 1),
        ("2", 1),
        ("Option two", 1),
        ("The last one.", 3),
        ("A or B", None),
        ("Both A and B", None),
        ("A, B, and D are incorrect. C.", 2),
        ("Options A and C are wrong; D is wrong too. So it must be B", 1),
        ("Neither A nor B", None),
        ("It's not B", None),
        ("A? No, B.", 1),
        ("A. No wait, B.", 1),
        ("A: wrong, B: correct", 1),
        ("There is no doubt that the answer is B", 1),
        ("It is not a dog, it is a red car", 1),
        ("A MAN IS WALKING", 2),
        ("The answer is a red car", 1),
        ("the dog", 0),
        ("walking", 2),
        ("I see a red car.", 1),
        ("a dog or a red car", None),
        ("Both", None),
        ("None of the above", None),
        ("I cannot tell.", None),
        ("E", None),
        ("ABCD", None),
        ("A B C D", None),
        ("A. a dog\nB. a red car\nC. A man is walking\nD. Both of them", None),
        ("A. a dog B. a red car C. A man is walking D. Both of them. The answer is B", 1),
        ("B. There is a red car, not a dog.", 1),
        ("B.\nExplanation: A shows a dog, which is not there.", 1),
        ("\uff08B\uff09", 1),
        ("【B】", 1),
        ('{"answer": "B"}', 1),
        ("<answer>B</answer>", 1),
        ("<think>It is A.", None),
        ("B</s>", 1),
        ("\ue001", None),
    ],
)  # fmt: skip
def test_what_an_answer_says_decides(answer, choice):
    assert read_choice(answer, OPTIONS) == choice


@pytest.mark.parametrize(
    ("answer", "choice"),
    [
        ("D. C briefly stops scrolling to adjust the phone's position.", 3),
        ("D: C briefly stops", 3),
        ("C takes a break from scrolling on the phone to look around the room", 0),
        ("C takes a break from scr", 0),
        ("The answer is C takes a break", 0),
        ("C is looking at the phone", None),
        ("C", 2),
        ("C.", 2),
        ("C is correct.", 2),
        ("The answer is C", 2),
    ],
)
def test_a_letter_that_names_a_person_in_the_options_is_no_choice_by_itself(answer, choice):
    assert read_choice(answer, WEARER) == choice


@pytest.mark.parametrize(
    ("answer", "options", "choice"),
    [
        ("", ("A", "x", "t"), None),
        (" \n", ("The", "x", ""), None),
        ("...", ("a", "?", "!"), None),
        ("A", ("A", "x", "t"), 0),
        ("x", ("A", "x", "t"), 1),
        ("b", ("b", "c", "a"), 0),
        ("B", ("b", "c", "a"), 1),
        ("a -> c -> b", ("b -> a -> c", "a -> b -> c", "a -> c -> b"), 2),
        ("3", ("3", "2", "4"), 0),
        ("two", ("3", "2", "4"), 1),
        ("The answer is 2.", ("3", "2", "4"), 1),
        ("3", ("3 times", "2 times", "once"), 0),
        ("The answer is 3.", ("3 times", "2 times", "once"), 0),
        ("Option 3", ("3 times", "2 times", "once"), 2),
        ("Yes", ("Yes, he does.", "No, he does not.", "Nobody knows."), 0),
        ("No.", ("Yes, he does.", "No, he does not.", "Nobody knows."), 1),
        ("Yes, there is no car.", ("yes", "no", "not sure"), 0),
        ("I am not sure", ("yes", "no", "not sure"), 2),
        ("turn left and go", ("turn left", "go", "turn left and go"), 2),
        ("the same", ("the same", "The same.", "other"), None),
    ],
)
def test_short_and_nested_options_are_told_apart(answer, options, choice):
    assert read_choice(answer, options) == choice


@example(answer="11", options=["ß"])
@given(
    answer=st.text(alphabet=st.sampled_from("ABCDEabc .,:;()[]<>{}\\*'\"?!\n12th isnoa\ue000\u2019")),
    options=st.lists(st.text(max_size=8), min_size=1, max_size=6),
)
@settings(max_examples=200, deadline=None, database=None)
def test_any_answer_gives_an_option_or_none(answer, options):
    choice = read_choice(answer, options)
    assert choice is None or (0 <= choice < len(options) and answer.strip())
