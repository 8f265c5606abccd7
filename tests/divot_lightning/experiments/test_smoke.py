"""The smoke run goes through every stage and ends with a report."""

import csv
import json
import subprocess
import sys

import pytest

from divot_lightning.cli.main import main
from divot_lightning.experiments.plan.grid import make_grid
from divot_lightning.experiments.plan.recipe import load_recipe
from divot_lightning.experiments.runner.records import StepRecord
from tests.helpers.forks import forked_processes


@pytest.mark.slow
def test_fast_quickstart_makes_the_report_and_a_second_start_finds_all_done(tmp_path, capsys):
    folder = tmp_path / "smoke"
    words = ["quickstart", "--fast", "--folder", str(folder)]
    command = [sys.executable, "-m", "divot_lightning", *words]
    with forked_processes():
        first = subprocess.run(command, capture_output=True, text=True, check=False)
    assert first.returncode == 0, first.stderr[-3000:]
    plan = make_grid(load_recipe("experiments/quickstart_fast"), folder).all_steps()
    records = [StepRecord.read(folder, step.name) for step in plan]
    assert all(record is not None and record.done and record.attempts == 1 for record in records)
    for step in plan:
        if step.run and step.name != "control_tokenizer":  # never trained, so that it has nothing to resume
            assert json.loads((step.run / "finished.json").read_text())["steps"] == 4
    html = (folder / "report.html").read_text(encoding="utf-8")
    assert "smoke run" in html
    assert html.count("data:image/webp") > 40
    rows = list(csv.DictReader((folder / "results.csv").open()))
    assert {row["head"] for row in rows if row["score"] == "toy/all"} == {"mse", "diffusion", "gmm", "gmm_clip"}

    assert main(words) == 0
    assert f"{len(plan)} of {len(plan)} steps are done already" in capsys.readouterr().err
    assert main([*words, "--dry-run"]) == 0
    assert "0 steps are left;" in capsys.readouterr().out
