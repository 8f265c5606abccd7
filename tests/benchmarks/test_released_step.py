"""The benchmark of the released way runs at tiny size, and requires that both ways compute the same loss."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.forks import forked_processes

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "released_step.py"


@pytest.mark.slow
def test_every_source_and_the_mixture_have_a_ratio() -> None:
    with forked_processes():
        words = [sys.executable, str(SCRIPT), "--tiny", "--rounds", "1"]
        result = json.loads(subprocess.run(words, capture_output=True, text=True, check=True).stdout)
    sources = ["video captions", "text to video", "image captions", "text to image", "mixture"]
    assert all(result[name]["time"] > 0 for name in sources)
