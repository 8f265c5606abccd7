"""Settings that cannot work, or would do nothing, are refused by name."""

import subprocess
import sys

import pytest

from divot_lightning.cli.main import main
from divot_lightning.errors import UserError
from divot_lightning.evaluation.chosen_benchmark import find_benchmark
from divot_lightning.evaluation.config import EvaluationConfig, GenerationConfig, JudgeConfig


@pytest.mark.parametrize(
    ("name", "changes", "shown"),
    [
        ("mvbench", {"max_clips": 0}, "max_clips is 0"),
        ("mvbench", {"limit": 0}, "limit is 0"),
        ("msvd_qa", {"top_p": 0.0}, "top_p is 0.0"),
        ("msvd_qa", {"temperature": -1.0}, "temperature is -1.0"),
        ("msvd_qa", {"top_p": 0.5}, "top_p is 0.5, which has no effect at temperature 0"),
        ("mvbench", {"prompt": "{question}"}, "lacks {options}"),
        ("msvd_qa", {"prompt": "{question} {options}"}, "cannot be filled: 'options'; known here: {question}"),
        ("mvbench", {"judge": JudgeConfig("local", "m")}, "judge has no effect on mvbench"),
        ("msvd_qa", {"choice_rule": "first_letter"}, "choice_rule has no effect on msvd_qa"),
        ("msvd_qa", {"generation": GenerationConfig(clip_model="x")}, "generation.clip_model has no effect on msvd_qa"),
        ("toy", {"max_clips": 3}, "max_clips has no effect"),
        ("msvd_qa", {"prompt": "{question[x]}"}, r"prompt '\{question\[x\]\}' cannot be filled"),
        ("msvd_qa", {"prompt": "{question.x}"}, "known here: {question}"),
        ("msvd_qa", {"judge": JudgeConfig("endpoint", "m")}, "'endpoint', which needs judge.url"),
        ("msvd_qa", {"judge": JudgeConfig(attempts=0)}, r"judge\.attempts is 0"),
        ("msvd_qa", {"judge": JudgeConfig(temperature=-0.1)}, r"judge\.temperature is -0\.1"),
        ("msvd_qa", {"judge": JudgeConfig(top_p=0.0)}, r"judge\.top_p is 0\.0"),
        ("msvd_qa", {"judge": JudgeConfig(timeout=0.0)}, r"judge\.timeout is 0\.0"),
        ("msvd_qa", {"judge": JudgeConfig("local", "m", max_tokens=None)}, r"judge\.max_tokens is null"),
        ("mvbench", {"unparsed_as": -1}, "unparsed_as is -1"),
        ("msvd_qa", {"generation": GenerationConfig(kept_clips=3)}, "generation has no effect on msvd_qa"),
        ("reconstruction", {"temperature": 0.5}, "temperature has no effect on reconstruction"),
        ("reconstruction", {"generation": GenerationConfig(head={})}, "generation.head has no effect"),
        ("toy", {"generation": GenerationConfig(lpips="x.pth")}, "generation.lpips has no effect on toy"),
    ],
)
def test_wrong_settings_are_named(name, changes, shown):
    with pytest.raises(UserError, match=shown):
        find_benchmark(EvaluationConfig(name, "data", **changes))


def test_help_and_comparison_import_no_torch(tmp_path):
    code = (
        "import sys; from divot_lightning.cli import compare, evaluate\n"
        "try: evaluate.main(['--help'])\nexcept SystemExit: pass\n"
        "import divot_lightning.evaluation.statistics.comparison\nassert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


@pytest.mark.parametrize(
    ("words", "shown"),
    [
        (["--benchmark", "mvbensh", "--data", "."], "benchmark 'mvbensh' is not installed"),
        (["--benchmark", "toy", "--data", ".", "--split", "x"], "toy has no split 'x'"),
        (
            ["--benchmark", "toy", "--data", ".", "--max_clps", "3"],
            "'max_clps' is no setting. Did you mean 'max_clips'",
        ),
        (["--benchmark", "toy"], "not set: data"),
        (["--benchmark", "toy", "--data", ".", "--limit", "x"], "'limit' is 'x'; it must be a whole number"),
        (["--config", "evaluation/nothing", "--data", "."], "'evaluation/nothing'"),
        (
            ["--benchmark", "toy-questions", "--data", ".", "--judge.kind", "mine"],
            "'judge.kind' is 'mine'; it must be one of 'none', 'local', 'endpoint'",
        ),
        (
            ["--benchmark", "toy-questions", "--data", ".", "--judge.prompt_file", "nowhere.txt"],
            "nowhere.txt is not there",
        ),
    ],
)
def test_the_command_names_what_is_wrong(tmp_path, capsys, words, shown):
    assert main(["evaluate", str(tmp_path), *words]) == 2
    error = capsys.readouterr().err
    assert shown in error
    assert len(error.splitlines()) <= 5


def test_a_missing_run_is_named(tmp_path, capsys):
    assert main(["evaluate", str(tmp_path / "none"), "--benchmark", "toy", "--data", "."]) == 2
    assert "there is no run folder" in capsys.readouterr().err
