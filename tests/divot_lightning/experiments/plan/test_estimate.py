"""What is left of an experiment is counted, and costs what the steps that are done have cost."""

import json
from dataclasses import asdict

from divot_lightning.experiments.plan.estimate import describe_estimate, estimate_steps
from divot_lightning.experiments.plan.grid import make_grid
from divot_lightning.experiments.runner.records import StepRecord
from tests.divot_lightning.experiments.plan.test_grid import recipe


def test_steps_that_are_left_cost_what_their_like_has_cost(tmp_path):
    grid = make_grid(recipe(), tmp_path)
    (tmp_path / "steps").mkdir()
    for head, seconds, size in (("mse", 60.0, 3), ("gmm", 120.0, 1)):
        step = grid.steps[f"{head}-seed0"]["llm"]
        record = StepRecord(step.step.name, step.step.command, True, seconds, 1.0, 1.0, 1, 0.0)
        (tmp_path / "steps" / f"{record.name}.json").write_text(json.dumps(asdict(record)))
        step.folder.mkdir(parents=True)
        (step.folder / "weights").write_bytes(bytes(size * 2**20))
    data, llm, scores = estimate_steps(grid, tmp_path)
    assert (data.name, data.left, data.seconds) == ("data", 1, None)
    assert (llm.done, llm.left, llm.seconds, llm.mib) == (2, 2, 90.0, 2.0)
    assert (scores.done, scores.left) == (0, 4)
    shown = describe_estimate([data, llm, scores], tmp_path, jobs=2)
    assert "7 steps are left: 2 take about 1:30 with --jobs 2 and 4 MiB;" in shown
    assert "5 are of a kind that was not measured here" in shown
