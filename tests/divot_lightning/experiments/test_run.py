"""An ablation runs through the command line: shared steps once, a failed trial alone, nothing twice."""

import csv
import json
import os
import re
import subprocess
from dataclasses import asdict
from types import SimpleNamespace

import pytest
import yaml

from divot_lightning.cli.main import main
from divot_lightning.errors import UserError
from divot_lightning.experiments import run as run_module
from divot_lightning.experiments.plan import matching, settings_check
from divot_lightning.experiments.plan.recipe import load_recipe
from divot_lightning.experiments.plan.trials import make_trials
from divot_lightning.experiments.run import run_experiment
from divot_lightning.experiments.runner.records import StepRecord
from tests.divot_lightning.experiments.plan.test_grid import recipe
from tests.divot_lightning.experiments.plan.test_recipe import RECIPE

TINY = {
    "title": "terminal timesteps",
    "steps": [
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
        {
            "name": "scores",
            "measure": [{"name": "reconstruction", "benchmark": "toy-reconstruction"}],
            "options": {"run": "{tokenizer}", "data": "{data}"},
        },
    ],
    "vary": {
        "share": {
            "none": {"tokenizer": {"model.terminal_timestep_prob": 0.0}},
            "most": {"tokenizer": {"model.terminal_timestep_prob": 0.9}},
            "impossible": {"tokenizer": {"model.terminal_timestep_probs": 2}},
        }
    },
    "matched_by": "samples",
    "amount": 6,
    "matched_steps": ["tokenizer"],
    "scores": {"toy-reconstruction/all": "higher", "toy-reconstruction/psnr": "higher"},
    "curves": {"tokenizer": ["train/loss"]},
}


@pytest.fixture
def checked_here(monkeypatch):
    """Check settings in this process, which spares one that imports torch."""

    def run(command, *, input, **ignored):
        return SimpleNamespace(returncode=0, stdout=json.dumps(settings_check.main(json.loads(input))))

    monkeypatch.setattr(settings_check, "subprocess", SimpleNamespace(run=run))


@pytest.mark.slow
@pytest.mark.usefixtures("checked_here")
def test_an_ablation_runs_continues_and_shows_what_failed(tmp_path, capsys):
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(TINY))
    folder = tmp_path / "out"
    words = ["ablate", str(tmp_path / "tiny.yaml"), "--folder", str(folder)]
    assert main(words) == 1
    shown = capsys.readouterr()
    assert shown.err.startswith("impossible-seed0 cannot run: tokenizer: 'model.terminal_timestep_probs' is no setting")
    assert re.search(r"failed: impossible-seed0: tokenizer: .*terminal_timestep_probs", shown.err)
    assert not list((folder / "steps").glob("*impossible*"))
    rows = list(csv.DictReader((folder / "results.csv").open()))
    assert {row["trial"] for row in rows if row["value"]} == {"none-seed0", "most-seed0"}
    assert [row["trial"] for row in rows if row["failure"]] == ["impossible-seed0"]
    steps = {path.stem for path in (folder / "steps").glob("*.json")}
    assert sum(name.startswith("shared.data") for name in steps) == 1
    metrics = list(csv.DictReader((folder / "trials/most-seed0/tokenizer/metrics.csv").open()))
    assert len([row for row in metrics if row["train/loss"]]) == 3  # 6 samples, 2 at a time
    page = (folder / "report.html").read_text()
    assert "<h1>terminal timesteps" in page
    assert page.count("data:image/webp") >= 8
    assert "none-seed0" in page

    again = tmp_path / "again"
    assert main(["fit", "--config", str(folder / "trials/most-seed0/tokenizer/config.yaml"), "--run", str(again)]) == 0
    for part in ("tokenizer", "detokenizer"):
        weights = [run / part / "model.safetensors" for run in (folder / "trials/most-seed0/tokenizer", again)]
        assert weights[0].read_bytes() == weights[1].read_bytes()

    before = (folder / "trials/none-seed0/tokenizer/finished.json").stat().st_mtime_ns
    assert main([*words, "--part", "none-seed0"]) == 0
    assert main([*words, "--part", "impossible-seed0"]) == 1
    assert (folder / "trials/none-seed0/tokenizer/finished.json").stat().st_mtime_ns == before


@pytest.fixture
def unchecked(monkeypatch):
    """Take settings for right, which spares a process that imports torch."""
    monkeypatch.setattr(run_module, "wrong_settings", lambda steps: {})


@pytest.mark.usefixtures("unchecked")
def test_another_recipe_in_the_same_folder_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(run_module.StepRunner, "run", lambda self: [])
    run_experiment(recipe(), tmp_path / "out", jobs=1)
    wider = {"head": {**RECIPE["vary"]["head"], "gmm": {"llm": {"model.head": "gmm", "model.head.width": 7}}}}
    with pytest.raises(UserError, match=r"holds another experiment.*differs is step trials\.gmm-seed0\.llm"):
        run_experiment(recipe(vary=wider), tmp_path / "out", jobs=1)
    with pytest.raises(UserError, match=r"differs is step trials\.\w+-seed1"):
        run_experiment(recipe(seeds={**RECIPE["seeds"], "values": [0]}), tmp_path / "out", jobs=1)
    with pytest.raises(UserError, match="differs is matched_by"):
        run_experiment(recipe(matched_by="samples", amount=8, matched_steps=["llm"]), tmp_path / "out", jobs=1)


@pytest.mark.usefixtures("unchecked")
def test_an_ablation_takes_more_seeds_and_variants_and_another_text(tmp_path, monkeypatch):
    monkeypatch.setattr(run_module.StepRunner, "run", lambda self: [])
    run_experiment(recipe(), tmp_path / "out", jobs=1)
    more = {"head": {**RECIPE["vary"]["head"], "flow": {"llm": {"model.head": "flow"}}}}
    seeds = {**RECIPE["seeds"], "values": [0, 1, 2]}
    results = run_experiment(recipe(vary=more, seeds=seeds, title="more"), tmp_path / "out", jobs=1)
    assert len(results) == 9
    with pytest.raises(UserError, match="another experiment"):
        run_experiment(recipe(), tmp_path / "out", jobs=1)


@pytest.mark.usefixtures("unchecked")
def test_an_unknown_trial_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(run_module.StepRunner, "run", lambda self: [])
    with pytest.raises(UserError, match="there is no trial 'gmm-seed9'"):
        run_experiment(recipe(), tmp_path / "out", jobs=1, part="gmm-seed9")


@pytest.mark.usefixtures("unchecked")
def test_a_trial_alone_waits_for_what_other_trials_need_too(tmp_path, monkeypatch):
    started = []
    monkeypatch.setattr(run_module.StepRunner, "run", lambda self: started.extend(self.steps))
    with pytest.raises(UserError, match=r"trial 'gmm-seed0' needs 'shared\.data-\w+'.*\n.*--part shared"):
        run_experiment(recipe(), tmp_path / "out", jobs=1, part="gmm-seed0")
    by_tokens = recipe(matched_by="tokens", amount=100, matched_steps=["llm"])
    with pytest.raises(UserError, match=r"trial 'gmm-seed0' is matched by tokens.*\n.*--part shared"):
        run_experiment(by_tokens, tmp_path / "other", jobs=1, part="gmm-seed0")
    assert started == []


class CostsOfGMMFail:
    """Run no step, but write the results of measuring costs, in which the GMM trials cannot be built."""

    def __init__(self, steps, folder, **settings):
        self.steps, self.folder = steps, folder

    def run(self):
        (self.folder / "steps").mkdir(exist_ok=True)
        for step in self.steps:
            failure = "step failed:\nno such setting\nlog" if "gmm" in step.name else ""
            for output in step.outputs if not failure else ():
                output.parent.mkdir(parents=True, exist_ok=True)
                output.write_text('{"tokens": 10.0, "flops": 1.0}')
            record = StepRecord(step.name, step.command, not failure, 1.0, 1.0, 1.0, 1, 0.0, failure)
            (self.folder / "steps" / f"{step.name}.json").write_text(json.dumps(asdict(record)))


@pytest.mark.usefixtures("unchecked")
def test_a_trial_whose_cost_cannot_be_measured_fails_alone_and_does_not_train(tmp_path, monkeypatch):
    started = []
    monkeypatch.setattr(matching, "StepRunner", CostsOfGMMFail)
    monkeypatch.setattr(run_module.StepRunner, "run", lambda self: started.extend(self.steps))
    by_tokens = recipe(matched_by="tokens", amount=500, matched_steps=["llm"])
    results = run_experiment(by_tokens, tmp_path / "out", jobs=1)
    failed = {result.trial.name: result.failure for result in results if result.failure}
    assert failed == {f"gmm-seed{n}": "the cost of a training step: no such setting" for n in (0, 1)}
    trained = {step.name: " ".join(step.command) for step in started if step.name.endswith(".llm")}
    assert list(trained) == ["trials.mse-seed0.llm", "trials.mse-seed1.llm"]
    assert "--trainer.max_steps 50" in trained["trials.mse-seed0.llm"]


@pytest.mark.usefixtures("unchecked")
def test_trials_with_wrong_settings_fail_before_anything_runs_and_others_continue(tmp_path, monkeypatch, capsys):
    started, looked_at = [], []

    def wrong(steps):
        looked_at.extend(step.name for step in steps)
        return {step.name: "no such setting" for step in steps if "gmm-seed0" in step.name}

    monkeypatch.setattr(run_module, "wrong_settings", wrong)
    monkeypatch.setattr(run_module.StepRunner, "run", lambda self: started.extend(step.name for step in self.steps))
    results = run_experiment(recipe(), tmp_path / "out", jobs=1)
    failed = {result.trial.name: result.failure for result in results if result.failure}
    assert failed == {"gmm-seed0": "llm: no such setting"}
    assert capsys.readouterr().err == "gmm-seed0 cannot run: llm: no such setting\n"
    assert {"trials.mse-seed0.llm", "trials.gmm-seed1.llm"} < set(started)
    assert "trials.gmm-seed0.llm" in looked_at
    assert "trials.gmm-seed0.llm" not in started


def test_a_dry_run_names_the_trials_that_cannot_run_and_writes_nothing(tmp_path, monkeypatch, capsys):
    path, folder = tmp_path / "recipe.yaml", tmp_path / "out"
    path.write_text(yaml.safe_dump(RECIPE))
    wrong = lambda steps: {s.name: "no such setting" for s in steps if s.name == "trials.gmm-seed1.llm"}  # noqa: E731
    monkeypatch.setattr(run_module, "wrong_settings", wrong)
    assert main(["ablate", str(path), "--folder", str(folder), "--dry-run"]) == 1
    shown = capsys.readouterr()
    assert shown.err == "gmm-seed1 cannot run: llm: no such setting\n"
    assert "9 steps are left" in shown.out
    assert not folder.exists()


@pytest.mark.usefixtures("unchecked")
def test_a_dry_run_refuses_what_a_run_refuses(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(run_module.StepRunner, "run", lambda self: [])
    run_experiment(recipe(), tmp_path / "out", jobs=1)
    path, words = tmp_path / "recipe.yaml", ["--folder", str(tmp_path / "out"), "--dry-run"]
    path.write_text(yaml.safe_dump(RECIPE | {"baseline": "gmmm"}, sort_keys=False))
    assert main(["ablate", str(path), *words]) == 2
    assert "baseline is 'gmmm'; the combinations are mse, gmm" in capsys.readouterr().err
    path.write_text(yaml.safe_dump(RECIPE).replace("train: 8", "train: 16"))
    assert main(["ablate", str(path), *words]) == 2
    assert "holds another experiment" in capsys.readouterr().err
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").touch()
    assert main(["ablate", str(path), "--folder", str(tmp_path / "full"), "--dry-run"]) == 2
    assert "holds no experiment" in capsys.readouterr().err


@pytest.mark.parametrize(("status", "left", "queued"), [(0, 0, False), (1, 1, False), (130, 0, True)])
def test_a_task_of_the_array_runs_its_trial_and_queues_itself_again_if_it_was_stopped(tmp_path, status, left, queued):
    folder = tmp_path / "an ablation"
    assert main(["ablate", "ablations/heads", "--folder", str(folder), "--slurm"]) == 0
    trials = [trial.name for trial in make_trials(load_recipe("ablations/heads"))]
    listing = f'case "$*" in *--list) echo {" ".join(trials)} | tr " " "\\n"; exit;; esac'
    stubs = {
        "divot": f'{listing}\necho $6 > "$OUT"; exit {status}',
        "srun": 'exec "$@"',
        "scontrol": 'echo "$@" >> "$OUT"',
    }
    for name, script in stubs.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / name).chmod(0o755)
    known = {"SLURM_ARRAY_TASK_ID": "4", "SLURM_JOB_ID": "77", "OUT": str(tmp_path / "out")}
    environment = os.environ | known | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    assert subprocess.run(["bash", folder / "array.sh"], env=environment, timeout=120).returncode == left
    assert (tmp_path / "out").read_text().split() == [trials[4], *(["requeue", "77"] if queued else [])]


@pytest.mark.usefixtures("unchecked")
def test_an_array_job_has_one_task_per_trial_and_its_folder_takes_the_ablation(tmp_path, capsys, monkeypatch):
    assert main(["ablate", "ablations/heads", "--list"]) == 0
    trials = capsys.readouterr().out.split()
    words = ["ablate", "ablations/heads", "--folder", str(tmp_path / "out")]
    assert main([*words, "--slurm"]) == 0
    script = (tmp_path / "out" / "array.sh").read_text()
    assert f"--array=0-{len(trials) - 1}" in script
    assert "--requeue" in script
    monkeypatch.setattr(run_module.StepRunner, "run", lambda self: [])
    assert main([*words, "--part", "shared"]) == 0


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--dry-run", "--part", "shared"], "--part has no effect with --dry-run"),
        (["--list", "--jobs", "3"], "--jobs has no effect with --list"),
        (["--slurm", "--mixed-protocols"], "--mixed-protocols has no effect with --slurm"),
        (["--rates", "x"], "--rates has no effect without --dry-run"),
        (["--list", "--slurm"], "not allowed with argument --list"),
        (["--dry-run", "--jobs", "0"], "--jobs is 0"),
    ],
)
def test_options_that_do_not_fit_each_other_are_refused(tmp_path, capsys, words, told):
    assert main(["ablate", "ablations/heads", "--folder", str(tmp_path / "new"), *words]) == 2
    assert told in capsys.readouterr().err
    assert not (tmp_path / "new").exists()
