"""Tables show what was measured, what failed, and compare only scores of one protocol."""

import csv
import io
import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from scipy.stats import ttest_1samp

from divot_lightning.errors import UserError
from divot_lightning.evaluation.scores import Score, save_scores
from divot_lightning.experiments.plan.grid import make_grid
from divot_lightning.experiments.plan.trials import Trial
from divot_lightning.experiments.report.content import Cell, Table
from divot_lightning.experiments.results.comparisons import compare_groups
from divot_lightning.experiments.results.formats import as_csv, as_latex, as_markdown
from divot_lightning.experiments.results.items import item_scores
from divot_lightning.experiments.results.tables import (
    baseline_of,
    failure_table,
    reference_tables,
    result_table,
    seed_table,
)
from divot_lightning.experiments.results.trials import (
    TrialResult,
    by_group,
    collect,
    find_score,
    num_parameters,
    paired_trials,
)
from tests.divot_lightning.experiments.plan.test_grid import recipe

KEY = "captions:captions/exact"
SCORES = {"captions/exact": "higher"}
ITEMS = {"mse-seed0": [1, 0, 0, 0], "mse-seed1": [1, 1, 0, 0], "gmm-seed0": [1, 1, 1, 0], "gmm-seed1": [1, 1, 1, 1]}


def write_trials(folder, grid, protocol=None):
    """Write what finished trials leave behind."""
    (folder / "steps").mkdir()
    for name, items in ITEMS.items():
        for what in grid.steps[name].values():
            record = {"name": what.step.name, "command": what.step.command, "done": True, "seconds": 2.0}
            record |= {"peak_mib": 100.0, "together_mib": 100.0, "attempts": 1, "started": 0.0, "failure": ""}
            (folder / "steps" / f"{what.step.name}.json").write_text(json.dumps(record))
        output = grid.steps[name]["scores"].folder / "captions"
        described = {"split": "held_out", "seed": int(name[-1])} | ((protocol or {}).get(name) or {})
        save_scores([Score("captions/exact", sum(items) / 4, 4, described)], output / "scores.json")
        rows = [json.dumps({"id": str(at), "scores": {"captions/exact": value}}) for at, value in enumerate(items)]
        (output / "predictions.jsonl").write_text("\n".join(rows) + "\n")


def seeds_of(values, better, *, items=None):
    """Return the table of two groups with these scores per seed, `mse` the baseline."""
    folders = {"mse": {}, "gmm": {}}
    results = [
        TrialResult(
            Trial((group,), seed),
            {"s": Score("s", value, 4, {})},
            {"s": dict(enumerate(items[group][seed]))} if items else {},
        )
        for group in folders
        for seed, value in enumerate(values[group])
    ]
    seeds = {"values": list(range(len(values["mse"]))), "options": {"llm": ["seed_everything"]}}
    return result_table(recipe(baseline="mse", scores={"s": better}, seeds=seeds), results)


def text(cell):
    return cell if isinstance(cell, str) else cell.text


@pytest.fixture
def grid(tmp_path):
    return make_grid(recipe(baseline="mse", scores=SCORES), tmp_path)


def test_a_row_is_mean_range_difference_and_cost(tmp_path, grid):
    write_trials(tmp_path, grid)
    table = result_table(recipe(baseline="mse", scores=SCORES), collect(grid, tmp_path))
    assert list(table.columns) == ["", "captions/exact (up)", "seconds", "peak MiB", "million parameters"]
    assert [[text(cell) for cell in row] for row in table.rows] == [
        ["mse", "0.375", "2", "100", "-"],
        ["gmm", "0.875", "2", "100", "-"],
    ]
    assert table.rows[0][1].detail == "0.250 to 0.500"
    assert table.rows[0][0].detail == "baseline"
    range_line, difference = table.rows[1][1].detail.splitlines()
    assert range_line == "0.750 to 1.00"
    assert difference.startswith("+0.500 [")


def test_two_seeds_allow_no_conclusion(tmp_path):
    table = seeds_of({"mse": [0.0, 0.01], "gmm": [0.9, 0.92]}, "higher")
    assert table.rows[1][1].good is None
    assert table.rows[1][1].detail.splitlines()[1] == "+0.905 [+0.841, +0.969]"  # 0.905 -+ 12.706 * 0.0071 / sqrt(2)
    assert "fewer than 3 seeds support no conclusion" in table.note


@pytest.mark.parametrize(("better", "good"), [("higher", True), ("lower", False)])
def test_three_seeds_that_agree_are_coloured(better, good):
    table = seeds_of({"mse": [0.0, 0.01, 0.02], "gmm": [0.9, 0.92, 0.9]}, better)
    assert table.rows[1][1].good is good
    assert table.rows[1][1].detail.endswith("p < 0.001")
    assert "Holm's correction over the 1 comparisons" in table.note


def test_a_score_with_a_best_value_is_judged_by_its_distance():
    overshooting = seeds_of({"mse": [0.90, 0.91, 0.92], "gmm": [1.88, 1.90, 1.91]}, {"near": 1})
    assert overshooting.columns[1] == "s (near 1)"
    assert overshooting.rows[1][1].good is False
    assert overshooting.rows[1][1].detail.splitlines()[1].startswith("distance to 1: +0.807 [")
    closer = seeds_of({"mse": [0.20, 0.21, 0.22], "gmm": [1.08, 1.05, 1.07]}, {"near": 1})
    assert closer.rows[1][1].good is True
    assert "compared by its distance to that value" in closer.note


def test_the_distance_is_that_of_a_seed_s_score_and_not_of_its_items():
    values = {"mse": [0.5, 0.5, 0.75], "gmm": [1.0, 1.0, 0.75]}
    items = {"mse": [[0, 1, 0, 1], [1, 0, 0, 1], [1, 1, 1, 0]], "gmm": [[2, 0, 2, 0], [0, 2, 0, 2], [1, 1, 1, 0]]}
    detail = seeds_of(values, {"near": 1}, items=items).rows[1][1].detail
    assert "distance to 1: -0.333 [" in detail


def test_many_comparisons_are_corrected():
    """A difference with p = 0.009 by itself is not clear among twenty of which the others are chance."""
    gains, chance = [0.9, 1.1, 1.25], np.random.default_rng(0).normal(size=(19, 3))
    names = [f"s{at}" for at in range(20)]
    results = []
    for seed, gain in enumerate(gains):
        of_gmm = dict(zip(names, [gain, *chance[:, seed]], strict=True))
        for group, values in (("mse", dict.fromkeys(names, 0.0)), ("gmm", of_gmm)):
            scores = {name: Score(name, float(value), 1) for name, value in values.items()}
            results.append(TrialResult(Trial((group,), seed), scores))
    alone, among = (
        compare_groups(dict.fromkeys(some, "higher"), by_group(results), "mse")["gmm", "s0"] for some in (["s0"], names)
    )
    assert alone.adjusted_p == pytest.approx(ttest_1samp(gains, 0.0).pvalue)
    assert alone.adjusted_p < 0.01
    assert among.adjusted_p == pytest.approx(20 * alone.adjusted_p)


def test_undefined_scores_have_neither_range_nor_difference(tmp_path, grid):
    write_trials(tmp_path, grid)
    results = collect(grid, tmp_path)
    nothing = [replace(r, scores={KEY: Score("captions/exact", math.nan, 0)}, items={}) for r in results]
    assert [row[1] for row in result_table(recipe(baseline="mse", scores=SCORES), nothing).rows] == [Cell("-")] * 2


def test_differences_are_paired_by_seed_and_item(tmp_path, grid):
    write_trials(tmp_path, grid)
    results = collect(grid, tmp_path)
    ours, theirs = paired_trials("captions:captions/exact", results[2:], results[:2])
    assert ours.tolist() == [ITEMS["gmm-seed0"], ITEMS["gmm-seed1"]]
    assert theirs.tolist() == [ITEMS["mse-seed0"], ITEMS["mse-seed1"]]


def test_items_are_paired_by_their_names_and_not_by_their_order(tmp_path, grid):
    write_trials(tmp_path, grid)
    path = grid.steps["gmm-seed0"]["scores"].folder / "captions" / "predictions.jsonl"
    path.write_text("".join(reversed(path.read_text().splitlines(keepends=True))))
    results = collect(grid, tmp_path)
    ours, theirs = paired_trials(KEY, results[2:], results[:2])
    assert ours.tolist() == [ITEMS["gmm-seed0"][::-1], ITEMS["gmm-seed1"][::-1]]
    assert theirs.tolist() == [ITEMS["mse-seed0"][::-1], ITEMS["mse-seed1"][::-1]]


def test_items_that_a_score_does_not_count_are_left_out_of_the_pairs(tmp_path, grid):
    write_trials(tmp_path, grid)
    for name, items in ITEMS.items():
        folder = grid.steps[name]["scores"].folder / "captions"
        rows = [{"id": str(at), "scores": {"captions/exact": value}} for at, value in enumerate(items)]
        rows[2 if name == "mse-seed0" else 3] = {"id": "unreadable", "error": "no video"}
        (folder / "predictions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    results = collect(grid, tmp_path)
    ours, theirs = paired_trials("captions:captions/exact", results[2:], results[:2])
    assert ours.tolist() == [ITEMS["gmm-seed0"][:2], ITEMS["gmm-seed1"][:2]]
    assert theirs.tolist() == [ITEMS["mse-seed0"][:2], ITEMS["mse-seed1"][:2]]


def test_a_failed_trial_is_shown_and_the_others_stand(tmp_path, grid):
    write_trials(tmp_path, grid)
    path = tmp_path / "steps" / "trials.gmm-seed1.llm.json"
    failure = "step 'x' failed with exit status 1:\nno such head\nlog"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"done": False, "failure": failure}))
    results = collect(grid, tmp_path)
    assert text(failure_table(results).rows[0][1]) == "llm: no such head"
    rows = result_table(recipe(scores=SCORES), results).rows
    assert rows[1][0].detail == "1 of 2 failed"
    assert rows[1][0].good is False
    assert text(rows[1][1]) == "0.750"
    assert "no such head" in as_csv(recipe(), results)


def test_a_trial_that_is_not_done_has_not_failed(tmp_path, grid):
    write_trials(tmp_path, grid)
    for seed in (0, 1):
        (tmp_path / "steps" / f"trials.gmm-seed{seed}.scores.json").unlink()
    results = collect(grid, tmp_path)
    row = result_table(recipe(scores=SCORES), results).rows[1]
    assert row[0] == Cell("gmm", None, "2 of 2 not done")
    assert row[1] == Cell("not done")
    assert failure_table(results) is None


def test_scores_of_other_protocols_are_refused_or_marked(tmp_path, grid):
    write_trials(tmp_path, grid, {"gmm-seed0": {"split": "validation"}})
    with pytest.raises(
        UserError, match=r"captions/exact was not measured with the same protocol .* different: split\.\n.*--mixed"
    ):
        collect(grid, tmp_path)
    table = result_table(recipe(scores=SCORES), collect(grid, tmp_path, mixed_protocols=True))
    assert table.columns[1] == "captions/exact * (up)"
    assert "captions:captions/exact differs in split" in table.note


def test_a_score_of_the_clips_that_can_be_read_counts_another_number_in_each_trial(tmp_path, grid):
    write_trials(tmp_path, grid, {name: {"counted": "items on which it is defined"} for name in ITEMS})
    path = grid.steps["gmm-seed0"]["scores"].folder / "captions" / "scores.json"
    path.write_text(path.read_text().replace('"count": 4', '"count": 3'))
    assert len(collect(grid, tmp_path)) == len(ITEMS)
    path.write_text(path.read_text().replace('"counted"', '"rule"'))
    with pytest.raises(UserError, match=r"different: .*count"):
        collect(grid, tmp_path)


def test_the_seed_of_a_trial_is_no_other_protocol_wherever_it_stands(tmp_path, grid):
    write_trials(tmp_path, grid, {name: {"decoding": {"seed": int(name[-1])}} for name in ITEMS})
    assert len(collect(grid, tmp_path)) == len(ITEMS)


def test_the_time_of_a_stopped_run_is_scaled_from_its_last_start(tmp_path, grid):
    write_trials(tmp_path, grid)
    run = grid.steps["gmm-seed0"]["llm"].folder
    run.mkdir(parents=True)
    finished = {"steps": 100, "seconds_since_start_or_resume": 5.0, "steps_since_start_or_resume": 25}
    (run / "finished.json").write_text(json.dumps({**finished, "peak_gpu_mib": 7.0}))
    results = collect(grid, tmp_path)
    assert [result.seconds for result in results] == [2.0, 2.0, 20.0, 2.0]
    table = result_table(recipe(scores=SCORES), results)
    assert [text(row[table.columns.index("peak GPU MiB")]) for row in table.rows] == ["-", "7"]


def test_csv_has_a_row_for_every_trial_and_score(tmp_path, grid):
    write_trials(tmp_path, grid)
    rows = list(csv.DictReader(io.StringIO(as_csv(recipe(), collect(grid, tmp_path)))))
    assert [(row["trial"], float(row["value"])) for row in rows] == [
        (name, sum(items) / 4) for name, items in ITEMS.items()
    ]
    assert {(row["head"], row["measurement"], row["score"]) for row in rows} == {
        (head, "captions", "captions/exact") for head in ("mse", "gmm")
    }
    assert {(row["seconds"], row["peak_mib"], row["parameters"]) for row in rows} == {("2.0", "100.0", "0")}


def test_parameters_are_read_from_the_files_headers(tmp_path):
    (tmp_path / "video_llm").mkdir()
    save_file({"a": torch.zeros(3, 4), "b": torch.zeros(5)}, tmp_path / "video_llm" / "model.safetensors")
    assert num_parameters(tmp_path) == 17


def test_published_tables_are_marked_as_another_scale():
    entry = {"title": "table 8", "columns": ["head", "FVD"], "rows": [["GMM", 366.6]], "note": "7B"}
    table = reference_tables(recipe(reference=[entry]))[0]
    assert table.title == "Published, at another scale: table 8"
    assert "| GMM | 366.6 |" in as_markdown([table])
    assert "GMM & 366.6 " in as_latex([table])


def test_an_unknown_baseline_or_score_is_refused(tmp_path, grid):
    write_trials(tmp_path, grid)
    results = collect(grid, tmp_path)
    with pytest.raises(UserError, match="baseline is 'flow'; the combinations are mse, gmm"):
        baseline_of(recipe(baseline="flow"), results)
    with pytest.raises(UserError, match="no trial has: captions/exactt; there are captions:captions/exact"):
        result_table(recipe(scores={"captions/exactt": "higher"}), results)


def test_latex_tables_have_rows_ranges_differences_and_note_and_no_raw_marks():
    detail = "0.4 to 0.6\n+0.1 [0.0, 0.2] p < 0.001"
    rows = [[Cell("x", None, "baseline"), Cell("0.5", True, detail)], ["y", "-"]]
    text = as_latex([Table("50% & more", ["", "a_b (up)"], rows, "Holm's correction, 5%.")])
    assert "\n\\scriptsize baseline & \\scriptsize 0.4 to 0.6 \\\\\n" in text
    assert "\n & \\scriptsize +0.1 [0.0, 0.2] p \\textless{} 0.001 \\\\\ny & - \\\\\n" in text
    assert "\\par\\smallskip{\\footnotesize Holm's correction, 5\\%.\\par}" in text
    lines = text.splitlines()
    assert r" & a\_b (up) \\" in lines
    assert r"x & 0.5 \\" in lines
    assert r"\caption{50\% \& more}" in lines
    assert r"\begin{tabular}{lr}" in lines


def test_a_score_of_several_measurements_is_that_of_the_measurement_of_its_name_or_must_be_named():
    trial = Trial(("mse",), 0)
    keys = ["reconstruction:generation/all", "generation:generation/all", "a:probe/all", "b:probe/all"]
    results = [TrialResult(trial, {key: Score(key, 0.5, 1) for key in keys})]
    assert find_score("generation/all", results) == "generation:generation/all"
    assert find_score("reconstruction:generation/all", results) == "reconstruction:generation/all"
    with pytest.raises(UserError, match=r"several measurements have the score probe/all; name one: a:probe/all, b:"):
        find_score("probe/all", results)


def test_the_items_of_groups_are_means_over_seeds_those_of_trials_their_own_with_their_captions(tmp_path, grid):
    write_trials(tmp_path, grid)
    path = grid.steps["mse-seed0"]["scores"].folder / "captions/predictions.jsonl"
    rows = [
        json.loads(line) | {"prompt": name} for line, name in zip(path.read_text().splitlines(), "abcd", strict=True)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = item_scores(recipe(baseline="mse", scores=SCORES), grid, collect(grid, tmp_path))
    assert found["captions/exact"].labels == ["0: a", "1: b", "2: c", "3: d"]
    values = dict(found["captions/exact"].values)
    assert {name: values.pop(name) for name in ("mse", "gmm")} == {
        "mse": [1.0, 0.5, 0.0, 0.0],
        "gmm": [1.0, 1.0, 1.0, 0.5],
    }
    assert list(values) == ["mse-seed0", "mse-seed1", "gmm-seed0", "gmm-seed1"]
    for head in ("mse", "gmm"):
        pairs = zip(values[f"{head}-seed0"], values[f"{head}-seed1"], strict=True)
        assert [(a + b) / 2 for a, b in pairs] == found["captions/exact"].values[head]


def test_the_power_table_pools_the_deviation_of_the_seeds_differences():
    def results(values):
        return [
            TrialResult(Trial((group,), seed), {"s": Score("s", value, 4, {})})
            for group, row in values.items()
            for seed, value in enumerate(row)
        ]

    values = {"mse": [0.1, 0.2, 0.3], "gmm": [0.4, 0.4, 0.7]}
    table = seed_table(recipe(baseline="mse", scores={"s": "higher"}), results(values))
    deviation = np.std([0.3, 0.2, 0.4], ddof=1)
    assert [text(cell) for cell in table.rows[0][:3]] == ["s", f"{deviation:.3f}", "2"]
    seen = float(text(table.rows[0][3]))
    assert ttest_power(seen, deviation, 3) == pytest.approx(0.8, abs=0.01)
    assert seed_table(recipe(baseline="mse", scores={"s": "higher"}), results({"mse": [0.1], "gmm": [0.4]})) is None


def ttest_power(difference, deviation, seeds):
    samples = np.random.default_rng(0).normal(difference, deviation, (40_000, seeds))
    return (ttest_1samp(samples, 0.0, axis=1).pvalue < 0.05).mean()
