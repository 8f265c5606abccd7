"""Each toy ablation, with little data and two steps of training, goes from its first step to its tables."""

import csv
from pathlib import Path
from typing import Any

import pytest
import yaml

from divot_lightning.cli.main import main
from divot_lightning.experiments.plan.experiment import PipelineStep
from divot_lightning.experiments.plan.grid import make_grid
from divot_lightning.experiments.plan.recipe import load_recipe
from divot_lightning.training.recipe_files import recipe_names
from tests.helpers.forks import forked_processes

TOY = [name for name in recipe_names() if name.startswith("ablations/") and "/paper/" not in name]
FEW_CLIPS = {"train": 64, "validation": 16, "held-out": 16}


def small_recipe(name: str) -> dict[str, Any]:
    """Return the recipe with one seed and two variants of each variable, one of them in the baseline.

    Variables that decide which steps there are keep all their variants.
    """
    experiment = load_recipe(name)
    in_baseline = experiment.baseline.split("-")
    deciding = {variable for step in experiment.steps for variable in step.only}
    vary = {}
    for variable, variants in experiment.vary.items():
        kinds = sorted(variants, key=lambda kind: kind not in in_baseline)
        vary[variable] = {kind: variants[kind] for kind in (kinds if variable in deciding else kinds[:2])}
    options = {step.name: fewer(step) for step in experiment.steps}
    seeds = {"values": [0], "options": {step: list(names) for step, names in experiment.seed_options.items()}}
    return {"extends": name, "options": {k: v for k, v in options.items() if v}, "vary": vary, "seeds": seeds}


def fewer(step: PipelineStep) -> dict[str, Any]:
    """Return the options that make a step small."""
    if step.kind == "fit":
        return {"trainer.max_steps": 2}
    return FEW_CLIPS if step.kind == "divot" and str(step.what).startswith("data toy") else {}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of all experiments, which take finished shared steps from each other."""
    return tmp_path_factory.mktemp("ablations")


@pytest.mark.slow
@pytest.mark.parametrize("name", TOY)
def test_a_toy_ablation_ends_with_tables_of_all_its_scores(name: str, place: Path, tmp_path: Path) -> None:
    recipe, folder = tmp_path / "small.yaml", place / Path(name).name
    recipe.write_text(yaml.safe_dump(small_recipe(name), sort_keys=False))
    others = [word for other in sorted(place.iterdir()) for word in ("--reuse", str(other))]
    with forked_processes():
        assert main(["ablate", str(recipe), "--folder", str(folder), "--jobs", "1", *others]) == 0
    experiment = load_recipe(str(recipe))
    trials = {trial.name for trial in make_grid(experiment, folder).trials}
    rows = list(csv.DictReader((folder / "results.csv").open()))
    measured = {(row["trial"], row["score"]) for row in rows}
    assert len(trials) > 1
    for score in experiment.scores:
        assert {trial for trial, name in measured if name in (score, score.partition(":")[2])} == trials, score
    assert all((folder / file).stat().st_size for file in ("table.md", "table.tex", "report.html"))
