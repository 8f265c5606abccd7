"""An ablation runs through the command line: shared steps once, a failed cell alone, nothing twice."""

import csv
import re

import pytest
import yaml

from divot_lightning.ablation import run as run_module
from divot_lightning.ablation.run import run_ablation
from divot_lightning.cli.main import main
from divot_lightning.errors import UserError
from tests.divot_lightning.ablation.test_grid import recipe

TINY = {
    "title": "terminal share",
    "pipeline": [
        {"name": "data", "divot": "data toy {folder}", "options": {"train": 8, "validation": 2, "held-out": 4}},
        {
            "name": "tokenizer",
            "fit": "toy/tokenizer_pretraining",
            "options": {
                "data.train": "{data}/train",
                "data.validation": "{data}/validation",
                "data.batch_size": 2,
                "trainer.log_every_n_steps": 1,
            },
        },
        {"name": "scores", "measure": "reconstruction", "options": {"run": "{tokenizer}", "clips": "{data}/held_out"}},
    ],
    "vary": {
        "share": {
            "none": {"tokenizer": {"model.terminal_share": 0.0}},
            "most": {"tokenizer": {"model.terminal_share": 0.9}},
            "impossible": {"tokenizer": {"model.terminal_sharee": 2}},
        }
    },
    "matched_by": "samples",
    "amount": 6,
    "matched_steps": ["tokenizer"],
    "scores": {"reconstruction/all": "higher", "reconstruction/psnr": "higher"},
    "curves": {"tokenizer": ["train/loss"]},
}


@pytest.mark.slow
def test_an_ablation_runs_goes_on_and_shows_what_failed(tmp_path, capsys):
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(TINY))
    folder = tmp_path / "out"
    words = ["ablate", str(tmp_path / "tiny.yaml"), "--folder", str(folder)]
    assert main(words) == 1
    shown = capsys.readouterr()
    assert re.search(r"failed: impossible-seed0: tokenizer: .*terminal_sharee", shown.err)
    rows = list(csv.DictReader((folder / "results.csv").open()))
    assert {row["cell"] for row in rows if row["value"]} == {"none-seed0", "most-seed0"}
    assert [row["cell"] for row in rows if row["failure"]] == ["impossible-seed0"]
    steps = {path.stem for path in (folder / "steps").glob("*.json")}
    assert sum(name.startswith("shared.data") for name in steps) == 1
    metrics = list(csv.DictReader((folder / "cells/most-seed0/tokenizer/metrics.csv").open()))
    assert len([row for row in metrics if row["train/loss"]]) == 3  # 6 samples, 2 at a time
    page = (folder / "report.html").read_text()
    assert "Ablation: terminal share" in page
    assert page.count("data:image/webp") >= 8
    assert "none-seed0" in page

    before = (folder / "cells/none-seed0/tokenizer/finished.json").stat().st_mtime_ns
    assert main([*words, "--part", "none-seed0"]) == 0
    assert main([*words, "--part", "impossible-seed0"]) == 1
    assert (folder / "cells/none-seed0/tokenizer/finished.json").stat().st_mtime_ns == before


def test_another_recipe_in_the_same_folder_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(run_module.StepRunner, "run", lambda self: [])
    run_ablation(recipe(), tmp_path / "out", jobs=1)
    with pytest.raises(UserError, match="holds an ablation of another recipe"):
        run_ablation(recipe(title="other"), tmp_path / "out", jobs=1)


def test_an_unknown_cell_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(run_module.StepRunner, "run", lambda self: [])
    with pytest.raises(UserError, match="there is no cell 'gmm-seed9'"):
        run_ablation(recipe(), tmp_path / "out", jobs=1, part="gmm-seed9")


def test_a_cell_alone_waits_for_what_other_cells_need_too(tmp_path, monkeypatch):
    started = []
    monkeypatch.setattr(run_module.StepRunner, "run", lambda self: started.extend(self.steps))
    with pytest.raises(UserError, match=r"cell 'gmm-seed0' needs 'shared\.data-\w+'.*\n.*--part shared"):
        run_ablation(recipe(), tmp_path / "out", jobs=1, part="gmm-seed0")
    by_tokens = recipe(matched_by="tokens", amount=100, matched_steps=["llm"])
    with pytest.raises(UserError, match=r"cell 'gmm-seed0' is matched by tokens.*\n.*--part shared"):
        run_ablation(by_tokens, tmp_path / "other", jobs=1, part="gmm-seed0")
    assert started == []


def test_an_array_job_has_one_task_per_cell(tmp_path, capsys):
    assert main(["ablate", "ablations/heads", "--list"]) == 0
    cells = capsys.readouterr().out.split()
    assert main(["ablate", "ablations/heads", "--folder", str(tmp_path / "out"), "--slurm"]) == 0
    script = (tmp_path / "out" / "array.sh").read_text()
    assert f"--array=0-{len(cells) - 1}" in script
    assert "--requeue" in script
