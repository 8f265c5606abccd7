"""The GPU benchmark runs as a whole at tiny size on a CPU, writes what it finds, and survives a step that fails."""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.gpu import measuring, run
from divot_lightning.training.reporting.speed import MEASURED_BATCHES
from tests.helpers.forks import forked_processes

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "gpu" / "run.py"
TRAININGS = ("llm_packed", "tokenizer_unet")


def _run(output: Path, *words: str) -> str:
    command = [sys.executable, str(SCRIPT), "--device", "cpu", "--size", "tiny", "--rows", "3", "--output", str(output)]
    with forked_processes():
        return subprocess.run([*command, *words], capture_output=True, text=True, check=True).stdout


def _result(output: Path, step: str) -> dict[str, Any]:
    result: dict[str, Any] = json.loads((output / f"{step}.json").read_text())
    assert len(result["commit"].split()[0]) == 40
    assert result["versions"]["torch"]
    return result


@pytest.mark.slow
def test_steps_write_speed_memory_and_the_prediction(tmp_path: Path) -> None:
    steps = (*TRAININGS, "zero2")
    told = _run(tmp_path, "--minutes", "60", "--only", *steps)
    assert told.splitlines() == ["inputs: done", *(f"{step}: done" for step in steps)]
    resumed = _result(tmp_path, "zero2")["result"]
    assert (resumed["steps_before"], resumed["steps_after"], resumed["steps"]) == (4, 7, 1)
    assert resumed["peak_memory_gib"] == pytest.approx(resumed["ratio"] * resumed["preflight_gib"])
    unit = {"llm_packed": "tokens_per_second", "tokenizer_unet": "clips_per_second"}
    assert _result(tmp_path, "llm_packed")["result"]["bar"]["tokens_per_second"] == 14_110
    for step in TRAININGS:
        found = _result(tmp_path, step)["result"]
        assert (found["steps_left_out"], found["steps"]) == (2, 1), "two of the three logged steps are for warming up"
        assert found[unit[step]] > 0
        assert 0 <= found["data_wait"] <= 1
        assert found["peak_memory_gib"] == pytest.approx(found["ratio"] * found["preflight_gib"])


@pytest.mark.slow
def test_numbers_agree_and_a_step_without_inputs_tells_why_it_failed(tmp_path: Path) -> None:
    folder = tmp_path / "work"
    folder.mkdir()
    step = ["--folder", str(folder), "--seconds", "600"]
    _run(tmp_path, "--step", "exactness", *step)
    found = _result(tmp_path, "exactness")["result"]
    for check in ("packed rows, beside a row for each sample", "4D mask, beside the causal flag"):
        assert max(found[check].values()) < 1e-5
    heads = found["heads, bfloat16 beside float32"]
    assert {"mse", "gmm", "diffusion"} <= set(heads)
    assert max(difference for head in heads.values() for difference in head.values()) < 0.1
    _run(tmp_path, "--step", "block_masks", *step)
    found = _result(tmp_path, "block_masks")["result"]
    assert found["block mask, beside the 4D mask, float32"]["loss"] < 1e-5
    assert found["block mask, beside the 4D mask, bfloat16"]["loss"] < 0.02
    with pytest.raises(subprocess.CalledProcessError):
        _run(tmp_path, "--step", "llm_packed", *step)
    assert "tokenizer" in _result(tmp_path, "llm_packed")["failed"]


def test_steps_in_which_operations_are_counted_are_left_out_on_a_gpu() -> None:
    assert measuring.COUNTING["gpu"] == MEASURED_BATCHES
    rows = [{"clips_per_second": 1.0}] * 8 + [{"clips_per_second": 5.0}] * 3
    assert measuring.steady(rows, "gpu") == {"steps_left_out": 8, "steps": 3, "clips_per_second": 5.0}
    assert measuring.steady(rows[:5], "gpu") == {"steps_left_out": 2, "steps": 3, "clips_per_second": 1.0}


@pytest.mark.parametrize(("seconds", "reason"), [(1.0, "no time was left"), (5.1, "stopped after 5 s")])
def test_a_step_without_a_result_tells_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seconds: float, reason: str
) -> None:
    sleeps = tmp_path / "sleeps.py"
    sleeps.write_text("import time; time.sleep(60)")
    monkeypatch.setattr(run, "__file__", str(sleeps))
    monkeypatch.setattr(run, "GRACE", -5.0)
    args = argparse.Namespace(device="cpu", size="tiny", rows=3, output=tmp_path / "results")
    run.start_step(args, "compiled", tmp_path, seconds)
    assert _result(args.output, "compiled")["failed"] == reason
