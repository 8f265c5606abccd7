import pytest

from divot_lightning.cli.ask import _line, main
from divot_lightning.errors import UserError
from divot_lightning.inference.results import Answer


def test_number_of_clips_is_checked():
    with pytest.raises(UserError, match="--max-clips is 0"):
        main(["run", "x.mp4", "--max-clips", "0"])


def test_a_missing_run_is_named(tmp_path):
    with pytest.raises(UserError, match="nowhere"):
        main([str(tmp_path / "nowhere"), "x.mp4"])


def test_one_answer_stands_alone_and_several_say_whose_they_are():
    answer = Answer("What ?", "red")
    assert _line("a.mp4", answer, jsonl=False, alone=True) == "red"
    assert _line("a.mp4", answer, jsonl=False, alone=False) == "a.mp4\tWhat ?\tred"
    expected = '{"video": "a.mp4", "question": null, "answer": "a red circle", "seed": 3}'
    assert _line("a.mp4", Answer("", "a red circle", {"seed": 3}), jsonl=True, alone=True) == expected


@pytest.mark.parametrize("words", [[], ["a.mp4", "--prompts", "p", "--output", "o"], ["--prompts", "p"]])
def test_videos_come_from_words_or_from_a_file(words):
    with pytest.raises(UserError, match="either videos, or --prompts FILE and --output FILE"):
        main(["run", *words])


@pytest.mark.parametrize("option", ["--together", "--turns"])
def test_options_without_effect_are_refused(option):
    with pytest.raises(UserError, match="belong to videos on the command line"):
        main(["run", "--prompts", "p", "--output", "o", option])
