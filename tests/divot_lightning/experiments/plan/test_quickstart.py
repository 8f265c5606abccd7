"""The recipe of the quickstart trains with the shipped recipes, in order, and writes only below its folder."""

import json
from pathlib import Path

import pytest
import yaml

from divot_lightning.experiments.plan.commands import MEASURE, SEVERAL
from divot_lightning.experiments.plan.grid import make_grid
from divot_lightning.experiments.plan.recipe import load_recipe
from divot_lightning.experiments.runner.steps import Step, check_plan
from divot_lightning.training.recipe_files import find_recipe, recipe_names

FOLDER = Path("some/folder")
RECIPES = ["experiments/quickstart", "experiments/quickstart_fast"]


def plan(recipe: str = RECIPES[0]) -> list[Step]:
    return make_grid(load_recipe(recipe), FOLDER).all_steps()


def options(step: Step) -> dict[str, str]:
    words = list(step.command)
    return {word[2:]: words[at + 1] for at, word in enumerate(words) if word.startswith("--")}


def fits(recipe: str = RECIPES[0]) -> list[Step]:
    return [step for step in plan(recipe) if step.run is not None]


def trains_llm(step: Step) -> bool:
    return options(step)["config"] in ("toy/llm_pretraining", "toy/instruction_tuning")


@pytest.mark.parametrize("recipe", RECIPES)
def test_plan_can_be_run_in_order(recipe):
    check_plan(plan(recipe))


def test_every_stage_is_trained_by_a_shipped_recipe():
    recipes = {options(step)["config"] for step in fits()}
    only_ablated = {"toy/captioning_pretraining", "toy/open_captions", "toy/story_tuning", "toy/story_detokenizer"}
    assert recipes == {name for name in recipe_names() if name.startswith("toy/")} - only_ablated


def test_every_head_is_trained_with_the_seed():
    trained = {(options(s)["model.head"], options(s)["seed_everything"], s.name) for s in fits() if "llm_" in s.name}
    heads = {"mse": "mse", "diffusion": "diffusion", "gmm": "gmm", "gmm_clip": "gmm"}
    assert trained == {(head, "0", f"llm_{name}_0") for name, head in heads.items()}


def test_settings_of_the_recipes_are_left_alone_but_for_paths_head_and_seed():
    allowed = {"config", "run", "model.head", "seed_everything", "data.seed", "model.previous", "data.train"}
    allowed |= {"data.validation", "data.tokenizer", "model.llm.text_tokenizer", "model.detokenizer"}
    allowed |= {"model.head.width", "model.head.draws_per_token"}  # a head that is too large for two CPU cores
    allowed |= {"model.head.shared_component", "model.head.relaxation"}  # what makes gmm_clip of gmm
    for step in fits():
        extra = set(options(step)) - allowed
        other_length = step.name in ("control_tokenizer", "control_detokenizer") or trains_llm(step)
        assert extra == ({"trainer.max_steps"} if other_length else set())


def test_all_heads_and_the_control_train_the_llm_for_equally_many_steps():
    trained = [step for step in fits() if trains_llm(step)]
    assert len(trained) == 4 + 1 + 2  # heads, their control, and instruction tuning with its control
    assert {options(step)["trainer.max_steps"] for step in trained} == {"300"}


def test_control_learns_as_long_as_the_trained_one_and_its_tokenizer_not_at_all():
    def recipe_steps(name: str) -> int:
        return yaml.safe_load(find_recipe(f"toy/{name}").read_text())["trainer"]["max_steps"]

    steps = {step.name: options(step).get("trainer.max_steps") for step in fits()}
    together = recipe_steps("tokenizer_pretraining") + recipe_steps("detokenizer_refinement")
    assert steps["control_tokenizer"] == "0"
    assert steps["control_detokenizer"] == str(together)


def test_fast_steps_are_few_and_the_control_stays_untrained():
    for step in fits(RECIPES[1]):
        assert options(step)["trainer.max_steps"] == ("0" if step.name == "control_tokenizer" else "4")


@pytest.mark.parametrize("recipe", RECIPES)
def test_everything_is_written_below_the_folder_and_in_no_place_twice(recipe):
    written = [path for step in plan(recipe) for path in (*step.outputs, *([step.run] if step.run else []))]
    assert all(path.is_relative_to(FOLDER) for path in written)
    assert len(written) == len(set(written)) == len(plan(recipe))


def words_of(step: Step) -> list[str]:
    """Return all words of a step, those inside of commands and measurements too."""
    if step.command[: len(SEVERAL)] == SEVERAL:
        return " ".join(step.command[len(SEVERAL) :]).split()
    if step.command[: len(MEASURE)] == MEASURE:
        return [str(value) for entry in json.loads(step.command[-1]) for value in entry.values()]
    return list(step.command)


@pytest.mark.parametrize("recipe", RECIPES)
def test_paths_that_are_read_are_written_by_a_step_that_is_waited_for(recipe):
    steps = {step.name: step for step in plan(recipe)}

    def before(step: Step) -> set[str]:
        return {step.name}.union(*(before(steps[name]) for name in step.after))

    read = 0
    for step in steps.values():
        written = [path for name in before(step) for path in (*steps[name].outputs, steps[name].run) if path]
        for word in words_of(step):
            if word.startswith(str(FOLDER)):
                read += 1
                assert any(Path(word).is_relative_to(path) for path in written), (step.name, word)
    assert read > 50


def test_later_stages_start_from_the_first_seed_of_the_papers_head():
    previous = {step.name: options(step).get("model.previous") for step in fits()}
    assert previous["instruction"] == previous["adapted"] == str(FOLDER / "llm_gmm_0")
