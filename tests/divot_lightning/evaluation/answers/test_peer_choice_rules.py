"""The rules named after VideoLLaMA 2 and lmms-eval read as these do: compared with re-derivations by other means."""

import json
from itertools import pairwise, product
from pathlib import Path

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from divot_lightning.evaluation.answers.accuracy import parse_choice
from divot_lightning.evaluation.answers.peer_choice_rules import PEER_RULES
from divot_lightning.evaluation.benchmarks.multiple_choice import EgoSchema
from divot_lightning.evaluation.chosen_benchmark import find_benchmark
from divot_lightning.evaluation.config import EvaluationConfig
from divot_lightning.parts.benchmarks import BenchmarkItem

RECIPES = Path(__file__).parents[4] / "recipes" / "evaluation"
LABELLED = [json.loads(line) for line in Path(__file__).with_name("choice_answers.jsonl").read_text().splitlines()]
ANSWERS = sorted({row["answer"] for row in LABELLED})
FIVE = ("a dog", "a red car", "A man is walking", "Both of them", "C looks at a card")


def run_of(text, place, sides):
    """The longest stretch of the characters `sides` around the character at a place."""
    first = last = place
    while first > 0 and text[first - 1] in sides[0]:
        first -= 1
    while last + 1 < len(text) and text[last + 1] in sides[1]:
        last += 1
    return text[first : last + 1]


def first_capital(text, letters, sides):
    """VideoLLaMA 2: the first capital letter with what surrounds it; read if only brackets and outer spaces do."""
    place = next((place for place, char in enumerate(text) if char in letters), None)
    if place is None:
        return "nothing"
    left = run_of(text, place, sides).strip().strip("()")
    return letters.index(left) if left in list(letters) else None


def videollama2(version, benchmark, answer, options):
    if version == "v1.5":
        answer = "".join("".join(answer.split("answer")).split("Answer"))
    letters = "ABCDE"[: len(options)]
    sides = {"mvbench": ("(, ", "), "), "egoschema": ("( ", ") "), "perception_test": ("(", ")")}[benchmark]
    choice = first_capital(answer, letters, sides)
    if choice != "nothing":
        return choice
    for index, text in enumerate(options):
        if benchmark == "perception_test" and text.lower() == answer.lower():
            return index
        if benchmark == "mvbench" and version == "v1.5" and answer.lower().find(text.lower()) >= 0:
            return index
    return None


def lone_letters(text, letters):
    """Letters between characters that are neither letters, digits nor underscores."""
    padded = f" {text} "
    word = [char.isalnum() or char == "_" for char in padded]
    return [
        char for at, char in enumerate(padded) if char in letters and word[at] and not word[at - 1] and not word[at + 1]
    ]


def lmms_mvbench(answer, options):
    text = answer.strip()
    rest = text[2:].lstrip()
    if text[:1].upper() in tuple("ABCDE") and text[1:2] == "." and rest and "\n" not in rest:
        letter = text[0]
    else:
        text = " ".join(text.replace("\t", "\n").split("\n")).strip()
        thousands = any(
            text[at] == "," and text[at - 1].isdecimal() and text[at + 1].isdecimal() for at in range(1, len(text) - 1)
        )
        cleaned = text
        for sign in ';/[]"{}()=+\\_-><@`,?!':
            glued = thousands or any(sign in pair and " " in pair for pair in pairwise(text))
            cleaned = ("" if glued else " ").join(cleaned.split(sign))
        dots = 0
        for at in reversed(range(len(cleaned))):
            if cleaned[at] == "." and not cleaned[at + 1 : at + 2].isdecimal():
                dots += 1
                cleaned = cleaned[:at] + cleaned[at + 1 :]
        assert dots <= 32
        letter = next(iter(lone_letters(cleaned, "ABCDEabcde")), "")
    index = "ABCDE".find(letter.upper()) if letter else -1
    return index if 0 <= index < len(options) else None


def lmms_egoschema(answer, options):
    for sign in ",.!?;:'":
        answer = answer.strip(sign)
    answer, found = f" {answer} ", []
    for shape, letter in product(("({})", "{} ", "{}."), "ABCDE"):
        if shape.format(letter) in answer:
            found.append((answer.rindex(shape.format(letter)), letter))
    if not found and len(answer.split()) >= 6:
        for letter, text in zip("ABCDE", options, strict=False):
            if f"{letter}. {text}".lower() in answer.lower():
                found.append((answer.lower().rindex(f"{letter}. {text}".lower()), letter))
    first = min((place for place, _ in found), default=None)
    index = next(("ABCDE".index(letter) for place, letter in found if place == first), len(options))
    return index if index < len(options) else None


def lmms_perception_test(answer, options):
    letter = next(iter(lone_letters(answer, "ABCD")), None)
    return "ABCD".index(letter) if letter and "ABCD".index(letter) < len(options) else None


def expected(rule, answer, options):
    if rule.startswith("lmms"):
        return {
            "lmms_eval_mvbench": lmms_mvbench,
            "lmms_eval_egoschema": lmms_egoschema,
            "lmms_eval_perception_test": lmms_perception_test,
        }[rule](answer, options)
    return videollama2(rule.split("_")[1], rule.split("_", 2)[2], answer, options)


def options_for(rule, options=FIVE):
    return options[: 5 if rule.endswith("egoschema") else 4 if rule.endswith("mvbench") else 3]


@pytest.mark.parametrize("rule", PEER_RULES)
def test_a_peers_rule_reads_the_labelled_answers_as_its_rederivation_does(rule):
    assert len(ANSWERS) >= 100
    options = options_for(rule)
    got = {answer: parse_choice(answer, options, rule) for answer in ANSWERS}
    assert got == {answer: expected(rule, answer, options) for answer in ANSWERS}
    assert len(set(got.values())) >= len(options)  # every option, so that nothing is right by chance
    for row in LABELLED:
        if len(row["options"]) == len(options):
            assert parse_choice(row["answer"], row["options"], rule) == expected(rule, row["answer"], row["options"])


PIECES = [*"ABCDEabcde .,:;()[]-_!?'\n/", "1,000", "answer", "Answer", "the", "option", *FIVE, "A. a dog", "no"]


@pytest.mark.parametrize("rule", PEER_RULES)
@given(answer=st.lists(st.sampled_from(PIECES), max_size=12).map("".join))
@example(answer="(B )")
@example(answer="D. C looks at a card and at the dog")
@settings(max_examples=150, deadline=None, database=None)
def test_a_peers_rule_reads_any_answer_as_its_rederivation_does(rule, answer):
    options = options_for(rule)
    assert parse_choice(answer, options, rule) == expected(rule, answer, options)


@pytest.mark.parametrize(
    ("answer", "mvbench", "egoschema", "perception_test"),
    [
        ("Answer: B", (0, 1), (0, 1), (0, 1)),
        ("B, a red car", (None, None), (1, 1), (1, 1)),
        ("a red car", (None, 1), (None, None), (1, 1)),
        ("it is a red car", (None, 1), (None, None), (None, None)),
        ("( B )", (None, None), (None, None), (1, 1)),
        ("yes", (None, None), (None, None), (None, None)),
    ],
)
def test_the_versions_of_videollama2_differ_where_its_history_says(answer, mvbench, egoschema, perception_test):
    for benchmark, choices in (("mvbench", mvbench), ("egoschema", egoschema), ("perception_test", perception_test)):
        rules = [f"videollama2_{version}_{benchmark}" for version in ("v1.0", "v1.5")]
        assert tuple(parse_choice(answer, options_for(rules[0]), rule) for rule in rules) == choices


def test_videollama2_counts_what_it_cannot_read_as_its_third_option():
    for rule, option, expected in (
        ("videollama2_v1.5", None, 2),
        ("videollama2_v1.0", 0, 0),
        ("lmms_eval", None, None),
    ):
        config = EvaluationConfig("mvbench", "d", choice_rule=f"{rule}_mvbench", unparsed_as=option)
        assert find_benchmark(config)[0].unparsed_as == expected


@pytest.mark.parametrize("benchmark", ["mvbench", "egoschema", "perception_test"])
def test_recipes_take_the_rule_of_their_benchmark_in_its_newest_version(benchmark):
    recipe = yaml.safe_load((RECIPES / f"{benchmark}.yaml").read_text())
    assert recipe["choice_rule"] == f"videollama2_v1.5_{benchmark}"
    assert find_benchmark(EvaluationConfig(**recipe))[0].unparsed_as == 2


def test_the_recipe_of_egoschema_asks_as_videollama2_does_since_v1_5():
    prompt = yaml.safe_load((RECIPES / "egoschema.yaml").read_text())["prompt"]
    prompt_lines = EgoSchema().prompt(BenchmarkItem("1", None, "v", "why ?", ("x", "y")), prompt).split("\n")
    assert prompt_lines[1:5] == ["why ?", "Options:", "(A) x", "(B) y"]
    assert prompt_lines[0].startswith("Select the best answer")
    assert prompt_lines[5].endswith("The best answer is: ")
