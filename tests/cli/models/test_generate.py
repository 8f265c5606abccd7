import pytest

from divot_lightning.cli.generate import main
from divot_lightning.errors import UserError


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--num", "0"], "--num is 0"),
        (["--temperature", "-1"], r"--temperature is -1\.0"),
        (["--temperature", "nan"], "--temperature is nan"),
        (["--prompt", " "], "--prompt is empty"),
        (["--output", "clip.txt"], r"clip\.txt"),
        (["--output", "/proc/x.mp4"], r"/proc/.* cannot be written"),
        (["--output", __file__ + "/x.mp4"], "a file where a folder is needed"),
        (["--seed", str(2**64)], rf"--seed: {2**64} is not from 0 to {2**64 - 1}"),
        (["--seed", "-1"], "--seed: -1 is not from 0"),
        (["--head.variance_scale"], "--head.variance_scale lacks a value"),
        (["--head.", "1"], "--head. lacks a name"),
        (["--head.steps", "1", "--head.steps=2"], "--head.steps is given twice, as 1 and 2"),
    ],
)
def test_arguments_are_checked_before_anything_is_loaded(words, named):
    with pytest.raises(UserError, match=named):
        main(["no_run", "--prompt", "a red circle", "--output", "x.mp4", *words])


def test_a_missing_run_is_named_and_nothing_is_written(tmp_path):
    with pytest.raises(UserError, match="nowhere"):
        main([str(tmp_path / "nowhere"), "--prompt", "a red circle", "--output", str(tmp_path / "x.mp4")])
    assert list(tmp_path.iterdir()) == []


def test_prompts_come_from_words_or_from_a_file(tmp_path):
    for words in ([], ["--prompt", "a", "--prompts", "x"]):
        with pytest.raises(UserError, match="either --prompt TEXT, or --prompts FILE"):
            main(["no_run", "--output", "x.mp4", *words])
    for content, problem in (
        ("", "has no prompt"),
        ('{"prompt": 3}', "line 1 of .* has no fitting prompt"),
        ('a\n{"prompt": "b", "sed": 3}', "line 2 of .* has the unknown name sed"),
        ('{"prompt": "b", "seed": "x"}', "line 1 of .* has no fitting seed"),
        ('{"prompt": "b", "seed": true}', "line 1 of .* has no fitting seed"),
        (f'{{"prompt": "b", "seed": {2**64}}}', f"the seed in line 1 of .* is {2**64}; it must be from 0"),
        ("{oops", "begins like JSON"),
    ):
        (tmp_path / "p.txt").write_text(content)
        with pytest.raises(UserError, match=problem):
            main(["no_run", "--output", "x.mp4", "--prompts", str(tmp_path / "p.txt")])
    with pytest.raises(UserError, match="cannot be read as a file of prompts"):
        main(["no_run", "--output", "x.mp4", "--prompts", str(tmp_path / "nowhere")])
