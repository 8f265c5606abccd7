"""Settings that cannot work, or would do nothing, are refused by name."""

import subprocess
import sys

import pytest

from divot_lightning.cli.main import main
from divot_lightning.errors import UserError
from divot_lightning.evaluation.config import EvaluationConfig, GenerationConfig, JudgeConfig, check_config


@pytest.mark.parametrize(
    ("task", "changes", "shown"),
    [
        ("choice", {"max_clips": 0}, "max_clips is 0"),
        ("choice", {"limit": 0}, "limit is 0"),
        ("open", {"top_p": 0.0}, "top_p is 0.0"),
        ("open", {"temperature": -1.0}, "temperature is -1.0"),
        ("choice", {"prompt": "{question}"}, "lacks {options}"),
        ("open", {"prompt": "{question} {options}"}, "'options' that is not known; known here: {question}"),
        ("choice", {"judge": JudgeConfig("local", "m")}, "judge has no effect on b"),
        ("open", {"choice_rule": "first_letter"}, "choice_rule has no effect on b"),
        ("open", {"generation": GenerationConfig(clip_model="x")}, "generation has no effect"),
        ("generation", {"max_clips": 3}, "max_clips has no effect"),
        ("open", {"judge": JudgeConfig("endpoint", "m")}, "'endpoint', which needs judge.url"),
        ("open", {"judge": JudgeConfig(attempts=0)}, r"judge\.attempts is 0"),
        ("open", {"judge": JudgeConfig(temperature=-0.1)}, r"judge\.temperature is -0\.1"),
        ("open", {"judge": JudgeConfig(top_p=0.0)}, r"judge\.top_p is 0\.0"),
        ("open", {"judge": JudgeConfig(timeout=0.0)}, r"judge\.timeout is 0\.0"),
        ("open", {"judge": JudgeConfig("local", "m", max_tokens=None)}, r"judge\.max_tokens is null"),
        ("choice", {"unparsed_as": -1}, "unparsed_as is -1"),
    ],
)
def test_wrong_settings_are_named(task, changes, shown):
    with pytest.raises(UserError, match=shown):
        check_config(EvaluationConfig("b", "data", **changes), task)


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
        (["--benchmark", "mvbensh", "--data", "."], "no benchmark 'mvbensh'"),
        (["--benchmark", "toy", "--data", ".", "--split", "x"], "toy has no split 'x'"),
        (
            ["--benchmark", "toy", "--data", ".", "--max_clps", "3"],
            "'max_clps' is no setting. Did you mean 'max_clips'",
        ),
        (["--benchmark", "toy"], "not set: data"),
        (["--benchmark", "toy", "--data", ".", "--limit", "x"], "'limit' is x"),
        (["--config", "evaluation/nothing", "--data", "."], "'evaluation/nothing'"),
        (["--benchmark", "toy-questions", "--data", ".", "--judge.kind", "mine"], "'judge.kind' is mine"),
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
