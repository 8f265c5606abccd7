"""What is left of an experiment is counted, and costs what its like has cost."""

import json
from dataclasses import asdict, replace

import pytest

from divot_lightning.experiments.plan.commands import MEASURE
from divot_lightning.experiments.plan.estimate import describe_estimate, estimate_steps
from divot_lightning.experiments.plan.grid import make_grid
from divot_lightning.experiments.plan.matching import COST_FILE, _probe, planned_grid
from divot_lightning.experiments.plan.rates import Rate, kind_of, measured_rates
from divot_lightning.experiments.runner.records import StepRecord
from tests.divot_lightning.experiments.plan.test_grid import recipe


def finish(folder, step, seconds, mib=1, **trained):
    record = StepRecord(step.step.name, step.step.command, True, seconds, 1.0, 1.0, 1, 0.0)
    (folder / "steps").mkdir(exist_ok=True)
    (folder / "steps" / f"{record.name}.json").write_text(json.dumps(asdict(record)))
    step.folder.mkdir(parents=True)
    if step.step.run:
        (step.folder / "finished.json").write_text(json.dumps(trained))
    (step.folder / "weights").write_bytes(bytes(mib * 2**20))


def test_steps_that_are_left_cost_what_their_like_has_cost(tmp_path):
    grid = make_grid(recipe(), tmp_path)
    finish(tmp_path, grid.steps["mse-seed0"]["llm"], 70.0, 3, steps=600, seconds_since_start_or_resume=60.0)
    finish(tmp_path, grid.steps["gmm-seed0"]["llm"], 130.0, 1, steps=600, seconds_since_start_or_resume=120.0)
    finish(tmp_path, grid.steps["gmm-seed0"]["scores"], 10.0, 1)
    data, llm, scores = estimate_steps(grid, tmp_path, measured_rates(tmp_path))
    assert (data.name, data.left, data.seconds, data.mib, data.training_steps) == ("data", 1, None, None, 0)
    assert (llm.done, llm.left, llm.training_steps) == (2, 2, 1200)
    assert llm.seconds == pytest.approx(180.0)
    assert llm.mib == pytest.approx(4.0, abs=0.01)
    assert (scores.left, scores.seconds) == (3, 30.0)
    shown = describe_estimate([data, llm, scores], tmp_path, jobs=2)
    assert "6 steps are left; 5 of them take about 1:45 with --jobs 2." in shown
    assert "Disk: 7 MiB where a size is known" in shown


def test_without_a_measured_step_the_time_is_not_known(tmp_path):
    grid = make_grid(recipe(), tmp_path)
    shown = describe_estimate(estimate_steps(grid, tmp_path, measured_rates(tmp_path)), tmp_path, jobs=2)
    assert "9 steps are left; their time is not known. --rates FOLDER" in shown
    assert "Disk: what they need is not known, " in shown


def test_steps_that_are_matched_are_counted_as_they_will_be_trained(tmp_path):
    grid, unknown = planned_grid(recipe(amount=4, matched_steps=["llm"]), tmp_path)
    _, llm, _ = estimate_steps(grid, tmp_path, {}, unknown)
    assert (llm.left, llm.training_steps, unknown) == (4, 16, set())


def test_the_number_of_matched_steps_is_unknown_until_all_costs_are_measured(tmp_path):
    matched = recipe(matched_by="tokens", amount=400, matched_steps=["llm"])
    rates = {"toy/llm_pretraining": Rate(1.0, 1.0)}
    plain = make_grid(matched, tmp_path)
    for trial in plain.trials:
        grid, unknown = planned_grid(matched, tmp_path)
        _, llm, _ = estimate_steps(grid, tmp_path, rates, unknown)
        assert (llm.left, llm.training_steps, llm.seconds) == (4, None, None)
        assert [line.split()[3] for line in describe_estimate([llm], tmp_path, 1).splitlines()[1:2]] == ["?"]
        write_cost(tmp_path, plain, trial.name, tokens=100.0 if "mse" in trial.name else 50.0)
    grid, unknown = planned_grid(matched, tmp_path)
    _, llm, _ = estimate_steps(grid, tmp_path, rates, unknown)
    assert (llm.training_steps, llm.seconds) == (2 * 4 + 2 * 8, 24.0)


def write_cost(folder, grid, trial, **costs):
    trained = grid.steps[trial]["llm"]
    name = f"{trained.step.name}.cost"
    (folder / "steps").mkdir(exist_ok=True)
    StepRecord(name, (), True, 1.0, 1.0, 1.0, 1, 0.0).write(folder)
    output = trained.folder.with_name(f"{trained.folder.name}.{COST_FILE}")
    output.parent.mkdir(parents=True)
    output.write_text(json.dumps(costs))


def test_the_rate_of_another_experiment_counts_for_longer_training_too(tmp_path):
    other = make_grid(recipe(), tmp_path / "other", {"mse-seed0": {"llm": 100}})
    (tmp_path / "other").mkdir()
    finish(tmp_path / "other", other.steps["mse-seed0"]["llm"], 60.0, steps=100, seconds_since_start_or_resume=50.0)
    rates = measured_rates(tmp_path / "other")
    assert rates["toy/llm_pretraining"].seconds == 0.5
    data, llm, _ = estimate_steps(make_grid(recipe(), tmp_path / "new"), tmp_path / "new", rates)
    assert llm.seconds == pytest.approx(4 * 600 * 0.5)
    assert llm.mib == pytest.approx(4 * 1.0, abs=0.01)
    assert data.mib is None


def test_steps_that_do_not_train_cost_what_the_same_has_cost_in_another_experiment(tmp_path):
    """Other seeds and runs count as the same; other data do not."""
    (tmp_path / "other").mkdir()
    grid = make_grid(recipe(), tmp_path / "other")
    finish(tmp_path / "other", grid.steps["mse-seed0"]["data"], 20.0, 5)
    finish(tmp_path / "other", grid.steps["mse-seed0"]["scores"], 30.0, 2)
    rates = measured_rates(tmp_path / "other")
    new = tmp_path / "new"
    data, _, scores = estimate_steps(make_grid(recipe(), new), new, rates)
    assert (data.seconds, scores.seconds) == (20.0, 4 * 30.0)
    assert (data.mib, scores.mib) == (pytest.approx(5, abs=0.01), pytest.approx(8, abs=0.01))
    larger = recipe()
    step = replace(larger.steps[0], options={"train": 16})
    data, _, scores = estimate_steps(make_grid(replace(larger, steps=(step, *larger.steps[1:])), new), new, rates)
    assert (data.seconds, scores.seconds, scores.mib) == (None, None, None)


def test_measurements_of_fewer_items_are_another_kind(tmp_path):
    def kind(**settings):
        entry = {"benchmark": "toy", "data": "data", **settings}
        return kind_of("scores", (*MEASURE, json.dumps([entry])), tmp_path, ())

    assert kind(limit=8) != kind()
    assert kind(seed=1) == kind()


def test_measuring_the_cost_of_a_step_is_no_training(tmp_path):
    grid = make_grid(recipe(), tmp_path)
    finish(tmp_path, grid.steps["mse-seed0"]["llm"], 70.0, 3, steps=600, seconds_since_start_or_resume=60.0)
    probe = _probe(grid, "gmm-seed0", "llm")
    StepRecord(probe.name, probe.command, True, 30.0, 1.0, 1.0, 1, 0.0).write(tmp_path)
    rate = measured_rates(tmp_path)["toy/llm_pretraining"]
    assert (rate.seconds, rate.mib) == (0.1, pytest.approx(3, abs=0.01))
