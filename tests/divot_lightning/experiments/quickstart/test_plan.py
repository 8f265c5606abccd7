"""The plan is runnable in order, trains with the shipped recipes, and writes only below its folder."""

from dataclasses import replace
from pathlib import Path

import pytest

from divot_lightning.experiments.quickstart.measure import KINDS
from divot_lightning.experiments.quickstart.plan import (
    FAST,
    FULL,
    HEAD_OPTIONS,
    MAIN_HEAD,
    QuickstartConfig,
    make_plan,
    recipe_steps,
)
from divot_lightning.experiments.runner.steps import Step, check_plan
from divot_lightning.training.recipe_files import recipe_names

FOLDER = Path("some/folder")


def options(step: Step) -> dict[str, str]:
    words = list(step.command)
    return {word[2:]: words[at + 1] for at, word in enumerate(words) if word.startswith("--")}


def fits(settings: QuickstartConfig = FULL) -> list[Step]:
    return [step for step in make_plan(FOLDER, settings) if "fit" in step.command]


@pytest.mark.parametrize("settings", [FULL, FAST])
def test_plan_can_be_run_in_order(settings):
    check_plan(make_plan(FOLDER, settings))


def test_every_stage_is_trained_by_a_shipped_recipe():
    recipes = {options(step)["config"] for step in fits()}
    only_ablated = {"toy/captioning_pretraining"}
    assert recipes == {name for name in recipe_names() if name.startswith("toy/")} - only_ablated


def test_every_head_is_trained_with_every_seed():
    trained = {(options(s).get("model.head"), options(s).get("seed_everything")) for s in fits() if "llm_" in s.name}
    assert trained == {(head, str(seed)) for head in FULL.heads for seed in FULL.seeds}


def test_settings_of_the_recipes_are_left_alone_but_for_paths_head_and_seed():
    allowed = {"config", "run", "model.head", "seed_everything", "data.seed", "model.previous", "data.train"}
    allowed |= {"data.validation", "data.tokenizer", "model.llm.text_tokenizer", "model.detokenizer"}
    allowed |= {option for sizes in HEAD_OPTIONS.values() for option in sizes}
    for step in fits():
        extra = set(options(step)) - allowed
        assert extra == ({"trainer.max_steps"} if step.name in ("control_tokenizer", "control_detokenizer") else set())


def test_control_learns_as_long_as_the_trained_one_and_its_tokenizer_not_at_all():
    steps = {step.name: options(step).get("trainer.max_steps") for step in fits()}
    together = recipe_steps("tokenizer_pretraining") + recipe_steps("detokenizer_refinement")
    assert steps["control_tokenizer"] == "0"
    assert steps["control_detokenizer"] == str(together)


def test_fast_steps_are_few_and_the_control_stays_untrained():
    for step in fits(FAST):
        assert int(options(step)["trainer.max_steps"]) == (0 if step.name == "control_tokenizer" else FAST.steps)


def test_training_steps_resume_their_own_run():
    for step in fits():
        assert step.resume[-2:] == ("resume", options(step)["run"])
        assert step.run == Path(options(step)["run"])


def test_everything_is_written_below_the_folder():
    for step in make_plan(FOLDER, FULL):
        written = [*step.outputs, *([step.run] if step.run else [])]
        assert written
        assert all(path.is_relative_to(FOLDER) for path in written)


def test_no_two_steps_write_the_same_place():
    written = [path for step in make_plan(FOLDER, FULL) for path in (*step.outputs, step.run) if path]
    assert len(written) == len(set(written))


@pytest.mark.parametrize("settings", [FULL, FAST])
def test_paths_that_are_read_are_written_by_a_step_that_is_waited_for(settings):
    plan = {step.name: step for step in make_plan(FOLDER, settings)}

    def before(step: Step) -> set[str]:
        return {step.name}.union(*(before(plan[name]) for name in step.after))

    for step in plan.values():
        written = [path for name in before(step) for path in (*plan[name].outputs, plan[name].run) if path]
        for word in step.command:
            if word.startswith(str(FOLDER)):
                assert any(Path(word).is_relative_to(path) for path in written), (step.name, word)


@pytest.mark.parametrize("settings", [FULL, FAST])
def test_measurements_are_of_known_kinds(settings):
    for step in make_plan(FOLDER, settings):
        if "divot_lightning.experiments.quickstart.measure" in step.command:
            places = [at for at, word in enumerate(step.command) if at == 2 or word == "then"]
            assert {step.command[at + 1] for at in places} <= set(KINDS)


def test_measurements_that_share_processes_are_the_same_ones():
    def measured(settings: QuickstartConfig) -> set[Path]:
        steps = [step for step in make_plan(FOLDER, settings) if step.name.startswith("measure")]
        assert all(step.after for step in steps)
        return {path for step in steps for path in step.outputs}

    assert measured(FAST) == measured(replace(FAST, few_processes=False))
    assert len(make_plan(FOLDER, FAST)) < len(make_plan(FOLDER, replace(FAST, few_processes=False)))


def test_instruction_tuning_starts_from_the_main_head():
    (step,) = (step for step in fits() if step.name == "instruction")
    assert MAIN_HEAD in options(step)["model.previous"]
