"""The benchmark of training steps runs as a whole at tiny size, and requires that both ways compute the same."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.forks import forked_processes

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "training_step.py"


def _run(*words: str) -> list[str]:
    with forked_processes():
        result = subprocess.run(
            [sys.executable, str(SCRIPT), "--tiny", *words], capture_output=True, text=True, check=True
        )
    return result.stdout.splitlines()


@pytest.mark.slow
@pytest.mark.parametrize("head", ["gmm16", "gmm2", "mse"])
def test_a_step_with_packed_rows_is_that_of_the_plain_loop(head: str) -> None:
    lines = _run("--parts", "llm", "--heads", head)
    sources = ["video captions", "text to video", "image captions", "text to image", "mixture"]
    assert [line.removeprefix(head).split("plain")[0].strip() for line in lines] == sources
    assert all(len(re.findall(r"plain / (?:ours|floor) \d+\.\d+ \(", line)) == 2 for line in lines)


@pytest.mark.slow
def test_stages_train_as_plain_loops_with_the_same_modules() -> None:
    lines = [line for line in _run("--parts", "stages") if "divot fit / plain" in line]
    assert [line.split(":")[0] for line in lines] == ["tokenizer_pretraining", "detokenizer_refinement"]
