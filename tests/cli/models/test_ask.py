import pytest

from divot_lightning.cli.ask import _line, main
from divot_lightning.errors import UserError
from divot_lightning.inference.results import Answer


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--max-clips", "0"], "max_clips is 0"),
        (["--max-new-tokens", "0"], "max_new_tokens is 0"),
        (["--temperature", "-1"], r"temperature is -1\.0"),
        (["--temperature", "nan"], "temperature is nan"),
        (["--temperature", "1", "--top-p", "2"], r"top_p is 2\.0"),
        (["--top-p", "0.5"], r"top_p is 0\.5, which has no effect at temperature 0"),
    ],
)
def test_numbers_are_checked_before_anything_is_loaded(words, named):
    with pytest.raises(UserError, match=named):
        main(["no_run", "x.mp4", *words])


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


@pytest.mark.parametrize("option", ["--together", "--turns", "--jsonl"])
def test_options_without_effect_are_refused(option):
    with pytest.raises(UserError, match="belong to videos on the command line"):
        main(["run", "--prompts", "p", "--output", "o", option])


def test_answers_are_not_added_to_the_prompts(tmp_path):
    file = tmp_path / "p.jsonl"
    file.write_text("a.mp4\n")
    with pytest.raises(UserError, match="is the file of the prompts"):
        main(["no_run", "--prompts", str(file), "--output", f"{tmp_path}/../{tmp_path.name}/p.jsonl"])
    assert file.read_text() == "a.mp4\n"


def test_a_question_that_no_prompt_needs_is_refused(tmp_path):
    words = ["no_run", "--prompts", str(tmp_path / "p"), "--output", str(tmp_path / "o"), "--question", "what ?"]
    (tmp_path / "p").write_text('{"video": "a.mp4", "question": "where ?"}')
    with pytest.raises(UserError, match="--question has no effect: each line"):
        main(words)
    (tmp_path / "p").write_text('{"video": "a.mp4", "question": "where ?"}\nb.mp4')
    with pytest.raises(UserError, match="no_run"):
        main(words)
    assert not (tmp_path / "o").exists()


def test_a_device_that_this_machine_lacks_is_named(tmp_path):
    for device in ("nope", "cuda:99"):
        with pytest.raises(UserError, match=f"device '{device}' cannot be used"):
            main([str(tmp_path), "x.mp4", "--device", device])
