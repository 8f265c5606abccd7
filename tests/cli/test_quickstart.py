"""`divot quickstart` is a recipe: folders of others and wrong heads are refused before anything runs."""

import pytest
import yaml

from divot_lightning.cli import quickstart
from divot_lightning.errors import UserError
from divot_lightning.experiments import run as run_module
from divot_lightning.experiments.plan.recipe import load_recipe
from divot_lightning.parts.registries.kinds import HEADS
from divot_lightning.parts.registries.registry import Registry


@pytest.fixture(autouse=True)
def unchecked(monkeypatch):
    """Run nothing, and take settings for right, which spares a process that imports torch."""
    started = []
    monkeypatch.setattr(run_module, "wrong_settings", lambda steps: {})
    monkeypatch.setattr(run_module.StepRunner, "run", lambda self: started.extend(self.steps))
    return started


def test_folder_with_other_things_is_refused(tmp_path):
    (tmp_path / "thesis.txt").touch()
    with pytest.raises(UserError, match=str(tmp_path)):
        quickstart.main(["--folder", str(tmp_path)])
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_folder_of_a_smoke_run_is_refused_for_the_real_one(tmp_path):
    quickstart.main(["--folder", str(tmp_path / "x"), "--fast"])
    with pytest.raises(UserError, match=r"holds another experiment.*what differs is step data"):
        quickstart.main(["--folder", str(tmp_path / "x")])


@pytest.mark.parametrize("words", [[], ["--dry-run"]])
def test_wrong_number_of_jobs_leaves_nothing_behind(tmp_path, words):
    with pytest.raises(UserError, match="--jobs is 0"):
        quickstart.main(["--folder", str(tmp_path / "new"), "--jobs", "0", *words])
    assert not (tmp_path / "new").exists()


def test_a_dry_run_names_all_steps_and_leaves_nothing_behind(tmp_path, capsys):
    assert quickstart.main(["--folder", str(tmp_path / "new"), "--dry-run"]) == 0
    shown = capsys.readouterr().out
    assert all(f"\n{step.name} " in shown for step in load_recipe("experiments/quickstart").steps)
    assert "22 steps are left" in shown
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("heads", "message"),
    [
        (["gmm", "gmn"], "gmn"),
        (["mse", "diffusion"], "lacks gmm"),
        (["gmm", "GMMHead"], "GMMHead.*short name"),
        (["gmm", "gmm_clp"], "gmm_clip"),
    ],
)
def test_heads_that_cannot_be_compared_are_refused_and_nothing_is_written(tmp_path, heads, message):
    with pytest.raises(UserError, match=message):
        quickstart.main(["--folder", str(tmp_path / "new"), "--heads", *heads])
    assert not (tmp_path / "new").exists()


def test_chosen_heads_are_trained_with_the_options_of_the_recipe_and_the_choice_is_kept(tmp_path, unchecked):
    quickstart.main(["--folder", str(tmp_path / "x"), "--fast", "--heads", "diffusion", "gmm"])
    commands = {step.name: step.command for step in unchecked}
    assert [name for name in commands if name.startswith("llm_")] == ["llm_gmm_0", "llm_diffusion_0"]
    assert "--model.head.draws_per_token" in commands["llm_diffusion_0"]
    kept = yaml.safe_load((tmp_path / "x" / "recipe.yaml").read_text())
    assert list(kept["vary"]["head"]) == ["diffusion", "gmm"]


def test_variants_of_a_head_can_be_compared_by_their_names_in_the_ablation(tmp_path, unchecked):
    quickstart.main(["--folder", str(tmp_path / "x"), "--fast", "--heads", "gmm", "gmm_relaxed"])
    command = next(step.command for step in unchecked if step.name == "llm_gmm_relaxed_0")
    assert command[command.index("--model.head") + 1] == "gmm"
    assert command[command.index("--model.head.relaxation") + 1] == "0.1"


def test_a_variant_of_a_head_that_is_not_installed_is_refused(tmp_path, monkeypatch):
    here = [head for head in HEADS.installed() if head.name != "flow"]
    monkeypatch.setattr(Registry, "installed", lambda self: here)
    with pytest.raises(UserError, match="flow"):
        quickstart.main(["--folder", str(tmp_path / "new"), "--heads", "gmm", "flow"])
    assert not (tmp_path / "new").exists()
