"""The report shows the results as they are: targets marked, seeds summarised, controls beside."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from divot_datamodules.toy.world import ATTRIBUTES
from divot_lightning.errors import UserError
from divot_lightning.evaluation.scores import Score, save_scores
from divot_lightning.experiments.quickstart.collect import build_report
from divot_lightning.experiments.quickstart.plan import Layout, QuickstartConfig, make_plan
from divot_lightning.experiments.quickstart.results import Results
from divot_lightning.experiments.report.content import Cell, Report, Table
from divot_lightning.experiments.report.numbers import number
from divot_lightning.experiments.report.rendering import render_report
from divot_lightning.experiments.runner.records import StepRecord

SETTINGS = QuickstartConfig(held_out=4)
CLIPS = 4


def write(folder: Path, name: str, kind: str, values: dict[str, float], seed: int = 0) -> None:
    scores = [Score(key, value, CLIPS, {"noise_seed": seed}) for key, value in values.items()]
    save_scores(scores, folder / "results" / name / kind / "scores.json")
    common = {"question": "what ?", "caption": "a b", "expected": "a", "right": True}
    rows = [{**common, "key": f"k{at}", "said": "ab"[at % 2]} for at in range(CLIPS)]
    (folder / "results" / name / kind / "texts.json").write_text(json.dumps(rows))
    clips = np.zeros((CLIPS, 4, 3, 8, 8), np.uint8)
    np.savez(folder / "results" / name / kind / "clips.npz", original=clips, made=clips)


def named(prefix: str, names: tuple[str, ...], value: float) -> dict[str, float]:
    return {f"{prefix}/{name}": value for name in names}


@pytest.fixture(scope="module")
def report(tmp_path_factory) -> Report:
    folder = tmp_path_factory.mktemp("results")
    generated = named("generation", (*ATTRIBUTES, "all", "invalid", "spread", "frechet"), 0.5)
    shown = ("start_error_pixels", "psnr")
    for name, value in (("reconstruction", 0.9), ("control_reconstruction", 0.25)):
        scores = named("reconstruction", (*ATTRIBUTES, "all", "invalid", *shown), value)
        write(folder, name, "reconstruction", scores | generated)
    write(folder, "world", "world", generated)
    for name, value in (("world", 0.75), ("control_probe", 0.7)):
        write(folder, name, "probe", named("probe", ATTRIBUTES, value))
    for name, value in (("instruction", 0.95), ("control_questions", 0.3)):
        write(folder, name, "questions", named("questions", ("all", *ATTRIBUTES), value))
    captions = (*ATTRIBUTES, "exact", "invalid")
    write(folder, "control_captions", "captions", named("captions", captions, 0.1))
    for head in SETTINGS.heads:
        for seed in SETTINGS.seeds:
            write(folder, f"llm_{head}_{seed}", "captions", named("captions", captions, 0.6 + 0.2 * seed), seed)
            write(folder, f"llm_{head}_{seed}", "generation", generated, seed)
    write(folder, "adapted", "generation", generated)
    for run in ("tokenizer", "llm_gmm_0"):
        (folder / run).mkdir()
        with (folder / run / "metrics.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerows([["step", "train/loss", "train/head_loss"], [0, 1.0, -1.5], [9, "", -2.0], [19, 0.5, ""]])
    plan = make_plan(folder, SETTINGS)
    records = [StepRecord(step.name, step.command, True, 60.0, 500.0, 900.0, 1, 0.0) for step in plan]
    return build_report(folder, SETTINGS, records, 1100.0)


def table(report: Report, title: str) -> Table:
    return next(table for table in report.tables if table.title == title)


def cell(entry: Cell | str) -> Cell:
    return entry if isinstance(entry, Cell) else Cell(entry)


def test_targets_are_marked_met_or_missed(report):
    met = {line.label: line.met for line in report.headlines}
    assert met["reconstruction: shape"] is True
    assert met["reconstruction: colour"] is False
    assert met["questions: speed"] is True
    assert met["captions: exact"] is False
    assert met["wall time"] is True


def test_controls_stand_beside_every_tokenizer_score(report):
    for title, value in (("Reconstruction", "0.25"), ("Questions", "0.30"), ("Linear probe of the tokens", "0.70")):
        assert {cell(row[2]).text for row in table(report, title).rows} == {value}
    rows = {cell(row[0]).text: cell(row[1]).text for row in table(report, "Captions").rows}
    assert rows["gmm on a random-init tokenizer"] == "0.10"


def test_heads_are_given_as_mean_and_range_over_seeds(report):
    (row,) = (row for row in table(report, "Captions").rows if row[0] == "diffusion")
    assert (cell(row[1]).text, cell(row[1]).detail) == ("0.70", "0.60 to 0.80")


def test_every_head_has_a_row_of_generation_scores(report):
    rows = [cell(row[0]).text for row in table(report, "Generation").rows]
    assert set(SETTINGS.heads) <= set(rows)
    assert len(rows) == len(SETTINGS.heads) + 3


def test_curves_hold_the_logged_points_only(report):
    lines = {chart.title: chart for chart in report.charts}
    assert set(lines) == {"Tokenizer pretraining", "LLM pretraining: gmm head"}
    (line,) = lines["Tokenizer pretraining"].lines
    assert (line.x, line.y) == ([0.0, 19.0], [1.0, 0.5])
    assert lines["Tokenizer pretraining"].logarithmic
    assert not lines["LLM pretraining: gmm head"].logarithmic


def test_right_and_wrong_texts_are_told_apart(report):
    right = [saying[3] for answered in report.answers for saying in answered.texts]
    assert True in right
    assert False in right


def test_report_can_be_rendered(report):
    assert "<h1>Divot quickstart" in render_report(report)


@pytest.mark.parametrize(("value", "text"), [(float("nan"), "-"), (0.123, "0.12"), (12.34, "12.3"), (1234.5, "1234")])
def test_numbers_have_their_telling_digits(value, text):
    assert number(value) == text


def test_seeds_that_were_measured_differently_are_not_summarised(tmp_path):
    settings = QuickstartConfig(heads=("mse",))
    for seed, steps in ((0, 10), (1, 50)):
        scores = [Score("generation/all", 0.5, CLIPS, {"noise_seed": seed, "steps": steps})]
        save_scores(scores, tmp_path / "results" / f"llm_mse_{seed}" / "generation" / "scores.json")
    with pytest.raises(UserError, match="'steps': 50"):
        Results(Layout(tmp_path), settings).over_seeds("mse", "generation")
