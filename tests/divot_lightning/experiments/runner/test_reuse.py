"""What another experiment has done is linked where it is the same, and run where it is not."""

from pathlib import Path

import pytest

from divot_lightning.errors import UserError
from divot_lightning.experiments.plan.grid import make_grid
from divot_lightning.experiments.plan.recipe import parse_recipe
from divot_lightning.experiments.run import run_experiment
from divot_lightning.experiments.runner.records import StepRecord, is_done, recipe_sha256
from divot_lightning.experiments.runner.reuse import link_done_steps
from divot_lightning.experiments.runner.runner import StepRunner


def experiment(train, lr=0.1):
    """A recipe whose data are shared by both trials, and its tokenizer by none."""
    data = {"name": "data", "divot": "data toy {folder}", "options": {"train": train, "validation": 1, "held-out": 1}}
    tokenizer = {"name": "tokenizer", "fit": "toy/tokenizer_pretraining", "options": {"data.train": "{data}/train"}}
    measurement = {"name": "reconstruction", "benchmark": "toy-reconstruction"}
    return parse_recipe(
        {
            "title": "reuse",
            "steps": [data, tokenizer, {"name": "scores", "measure": [measurement], "options": {"run": "{tokenizer}"}}],
            "vary": {"lr": {"a": {}, "b": {"tokenizer": {"model.optimizer.lr": lr}}}},
            "scores": {"toy-reconstruction/all": "higher"},
        }
    )


@pytest.fixture
def first(tmp_path, monkeypatch):
    """The folder of an experiment that has made its data."""
    monkeypatch.chdir(tmp_path)
    folder = Path("first")
    folder.mkdir()
    (folder / "recipe.yaml").touch()
    StepRunner(make_grid(experiment(train=3), folder).shared_steps(), folder, jobs=1).run()
    return folder


def test_the_same_step_is_linked_and_does_not_run_again(first):
    second = Path("deeper/second")
    grid = make_grid(experiment(train=3, lr=0.5), second)
    (data,) = grid.shared_steps()
    assert link_done_steps(grid, second, [first]) == [data.name]
    assert link_done_steps(grid, second, [first]) == []
    assert is_done(second, data.name)
    assert StepRecord.read(second, data.name).command == data.command
    made = data.outputs[0]
    assert made.is_symlink()
    assert sorted(path.name for path in made.iterdir()) == sorted(
        path.name for path in (first / "shared" / made.name).iterdir()
    )
    StepRunner([data], second, jobs=1).run()
    assert made.is_symlink()
    assert StepRecord.read(second, data.name).attempts == 1


def test_a_step_with_other_settings_and_one_that_is_not_done_are_not_linked(first):
    grid = make_grid(experiment(train=4), Path("other"))
    assert link_done_steps(grid, Path("other"), [first]) == []
    (data,) = make_grid(experiment(train=3), first).shared_steps()
    (first / "steps" / f"{data.name}.json").unlink()
    grid = make_grid(experiment(train=3), Path("second"))
    assert link_done_steps(grid, Path("second"), [first]) == []
    assert not Path("second").exists()


def test_a_step_whose_recipe_has_changed_since_is_not_linked(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    recipe = Path("mine.yaml")
    recipe.write_text("seed_everything: 0")
    fit = {"name": "tokenizer", "fit": "mine.yaml"}
    measure = {"name": "scores", "measure": [{"benchmark": "toy-reconstruction"}], "options": {"run": "{tokenizer}"}}
    experiment = parse_recipe({"title": "reuse", "steps": [fit, measure], "vary": {"seed": {"a": {}, "b": {}}}})
    (done,) = [step for step in make_grid(experiment, Path("first")).shared_steps() if step.run]
    for made in (done.run, Path("first/steps")):
        made.mkdir(parents=True)
    record = StepRecord(done.name, done.command, True, 1.0, 1.0, 1.0, 1, 0.0, recipe_sha256=recipe_sha256(done.command))
    record.write(Path("first"))
    recipe.write_text("seed_everything: 1")
    assert link_done_steps(make_grid(experiment, Path("second")), Path("second"), [Path("first")]) == []
    recipe.write_text("seed_everything: 0  # as before")
    linked = link_done_steps(make_grid(experiment, Path("second")), Path("second"), [Path("first")])
    assert linked == [done.name]


def test_a_folder_without_an_experiment_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(UserError, match="holds no experiment"):
        run_experiment(experiment(train=3), tmp_path / "new", jobs=1, reuse=[tmp_path / "missing"])
    assert not (tmp_path / "new").exists()
