"""The report shows the results as they are: targets marked, seeds summarised, controls beside."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from divot_datamodules.toy.world import ATTRIBUTES
from divot_lightning.evaluation.scores import Score, save_scores
from divot_lightning.experiments.plan.grid import make_grid
from divot_lightning.experiments.plan.recipe import parse_recipe, recipe_content
from divot_lightning.experiments.plan.report_recipe import AnswersRecipe, PicturesRecipe
from divot_lightning.experiments.report.content import Cell, Report, Table
from divot_lightning.experiments.report.illustrations import answered_clips, default_pictures, picture_rows
from divot_lightning.experiments.report.numbers import number
from divot_lightning.experiments.report.page import build_report
from divot_lightning.experiments.report.rendering import render_report
from divot_lightning.experiments.results.trials import collect
from divot_lightning.experiments.runner.records import StepRecord
from divot_lightning.training.recipe_files import find_recipe

CLIPS = 4


def write(folder: Path, values: dict[str, float], seed: int = 0, caption: str = "a b") -> None:
    save_scores([Score(key, value, CLIPS, {"seed": seed}) for key, value in values.items()], folder / "scores.json")
    rows = [{"media": f"s.tar/k{at}", "caption": caption, "right": bool(at % 2)} for at in range(CLIPS)]
    (folder / "generation").mkdir()
    (folder / "generation" / "texts.json").write_text(json.dumps(rows))
    clips = {"generated": np.zeros((CLIPS, 4, 3, 8, 8), np.uint8)}
    np.savez(
        folder / "generation" / "clips.npz",
        **clips,
        **({"original": clips["generated"]} if "reconstruction" in folder.name else {}),
    )


def predict(folder: Path, values: dict[str, float], prompt: dict[str, str]) -> None:
    save_scores([Score(key, value, CLIPS) for key, value in values.items()], folder / "scores.json")
    rows = [
        {"id": str(at), "media": f"s.tar/k{at}", "prediction": ("a b", "a")[at % 2], **prompt} for at in range(CLIPS)
    ]
    (folder / "predictions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def named(prefix: str, names: tuple[str, ...], value: float) -> dict[str, float]:
    return {f"{prefix}/{name}": value for name in names}


@pytest.fixture(scope="module")
def report(tmp_path_factory) -> Report:
    folder = tmp_path_factory.mktemp("results")
    content = recipe_content(find_recipe("experiments/quickstart"))
    content["seeds"]["values"] = [0, 1]  # so that scores have a range
    recipe = parse_recipe(content)
    grid, results = make_grid(recipe, folder), folder / "results"
    generated = (*ATTRIBUTES, "all", "invalid", "spread", "frechet")
    for name, value in (("reconstruction", 0.9), ("control_reconstruction", 0.25)):
        scores = named("toy-reconstruction", (*generated, "start_error_pixels", "psnr"), value)
        write(results / "tokenizers" / name, scores)
    write(results / "tokenizers" / "world", named("toy-real-clips", generated, 1.0))
    generated = named("toy", generated, 0.5)
    for name, value in (("probe", 0.75), ("control_probe", 0.7)):
        save_scores([Score(key, v, CLIPS) for key, v in named("toy-probe", ATTRIBUTES, value).items()],
                    results / "tokenizers" / name / "scores.json")  # fmt: skip
    for where, value in (("tuned/questions", 0.95), ("controls/control_questions", 0.3)):
        names = ("exact", *(f"normalised/{name}" for name in ATTRIBUTES))
        predict(results / where, named("toy-questions", names, value), {"question": "what ?", "target": "a"})
    captions = (*ATTRIBUTES, "exact", "invalid")
    predict(results / "controls" / "control_captions", named("toy-captions", captions, 0.1), {})
    for head in ("mse", "diffusion", "gmm"):
        for seed in (0, 1):
            own = results / f"llm_{head}_{seed}"
            predict(own / "captions", named("toy-captions", captions, 0.6 + 0.2 * seed), {})
            write(own / "generation", generated, seed)
    write(results / "tuned" / "adapted_generation", generated)
    for run in ("tokenizer", "llm_gmm_0"):
        (folder / run).mkdir()
        with (folder / run / "metrics.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerows([["step", "train/loss", "train/head_loss"], [0, 1.0, -1.5], [9, "", -2.0], [19, 0.5, ""]])
    (folder / "llm_gmm_0" / "finished.json").write_text('{"steps": 600}')
    (folder / "steps").mkdir()
    records = [StepRecord(step.name, step.command, True, 60.0, 500.0, 900.0, 1, 0.0) for step in grid.all_steps()]
    for record in records:
        record.write(folder)
    return build_report(recipe, grid, collect(grid, folder), records, 400.0)


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
    assert met["peak memory"] is True
    rows = {cell(row[0]).text: [cell(entry).good for entry in row[1:]] for row in table(report, "Reconstruction").rows}
    assert rows["colour"] == [False, None, None]
    assert rows["PSNR (dB)"] == [None, None, None]


def test_controls_stand_beside_every_tokenizer_score(report):
    for title, value in (("Reconstruction", "0.25"), ("Questions", "0.30"), ("Linear probe of the tokens", "0.70")):
        assert {cell(row[2]).text for row in table(report, title).rows} == {value}
    rows = {cell(row[0]).text: cell(row[1]) for row in table(report, "Captions").rows}
    assert rows["gmm on a random-init tokenizer"] == Cell("0.10")
    assert rows["target"] == Cell(">= 0.8")


def test_heads_are_given_as_mean_and_range_over_seeds(report):
    (row,) = (row for row in table(report, "Captions").rows if row[0] == "diffusion")
    assert cell(row[1]) == Cell("0.70", False, "0.60 to 0.80")


def test_every_head_has_a_row_of_generation_scores(report):
    rows = {cell(row[0]).text: cell(row[1]).text for row in table(report, "Generation").rows}
    assert {"mse", "diffusion", "gmm", "gmm_clip"} <= set(rows)
    assert len(rows) == 4 + 3
    assert [rows[name] for name in ("other real clips of the same captions", "real tokens, decoded", "mse")] == [
        *("1.00", "0.90", "0.50"),
    ]


def test_curves_hold_the_logged_points_only(report):
    lines = {chart.title: chart for chart in report.charts}
    assert set(lines) == {"Tokenizer pretraining", "LLM pretraining: gmm head"}
    (line,) = lines["Tokenizer pretraining"].lines
    assert (line.x, line.y) == ([0.0, 19.0], [1.0, 0.5])
    assert lines["Tokenizer pretraining"].logarithmic
    assert not lines["LLM pretraining: gmm head"].logarithmic


def test_right_and_wrong_texts_are_told_apart(report):
    texts = [saying for answered in report.answers for saying in answered.texts]
    assert ("caption", "a b", "a b", True) in texts
    assert ("caption", "a b", "a", False) in texts
    assert ("what ?", "a", "a", True) in texts
    assert len(texts) == 2 * CLIPS


def test_a_prompt_is_shown_by_all_heads_beside_the_real_clip_and_several_times(report):
    first = report.generations[0]
    assert [picture.label for picture in first.pictures] == ["a real clip", "mse", "diffusion", "gmm", "gmm, adapted"]
    assert [row.title for row in report.generations[4:]] == [
        "real: a b", *(f"{head}: the same prompt 4 times" for head in ("mse", "diffusion", "gmm", "gmm, adapted"))
    ]  # fmt: skip
    assert [picture.label for picture in report.reconstructions[0].pictures] == ["trained", "random-init tokenizer"]


def test_steps_have_their_training_steps_time_and_memory(report):
    rows = {row[0]: list(row[1:]) for row in report.steps.rows}
    assert rows["llm_gmm_0"] == ["600", "1:00", "500", "1"]
    assert rows["data"] == ["", "1:00", "500", "1"]


def test_clips_are_shown_without_a_recipe_for_them_also_if_the_first_trial_has_none(tmp_path):
    content = {"title": "t", "steps": [{"name": "a", "command": "x {folder}", "options": {"p": 1}}]}
    grid = make_grid(parse_recipe({**content, "vary": {"p": {"one": {}, "two": {"a": {"p": 2}}}}}), tmp_path)
    folder = grid.steps["two-seed0"]["a"].folder
    folder.mkdir(parents=True)
    write(folder, {"x": 1.0})
    assert picture_rows(default_pictures(grid, reconstructed=True), grid) == []
    rows = picture_rows(default_pictures(grid, reconstructed=False), grid)
    assert [[picture.label for picture in row.pictures] for row in rows] == [["two"]] * CLIPS


def test_measurements_with_other_prompts_have_rows_of_their_own(tmp_path):
    content = {"title": "t", "steps": [{"name": name, "command": f"{name} {{folder}}"} for name in ("a", "b", "c")]}
    grid = make_grid(parse_recipe({**content, "vary": {"p": {"one": {}}}}), tmp_path)
    for name, step in grid.steps["one-seed0"].items():
        step.folder.mkdir(parents=True)
        write(step.folder, {"x": 1.0}, caption="c d" if name == "b" else "a b")
    rows = picture_rows(default_pictures(grid, reconstructed=False), grid)
    labels = [(row.title, [picture.label for picture in row.pictures]) for row in rows]
    assert labels == [("a b", ["a, one", "c, one"])] * CLIPS + [("c d", ["b, one"])] * CLIPS


def test_fewer_originals_than_clips_are_shown_as_far_as_there_are(tmp_path):
    steps = [{"name": name, "command": f"{name} {{folder}}"} for name in ("clips", "reconstruction")]
    grid = make_grid(parse_recipe({"title": "t", "steps": steps}), tmp_path)
    for step in grid.steps["all-seed0"].values():
        step.folder.mkdir(parents=True)
        write(step.folder, {"x": 1.0})
    file = tmp_path / "reconstruction" / "generation" / "clips.npz"
    np.savez(file, original=np.load(file)["original"][:1])
    for originals, shown in (("reconstruction", 1), ("clips", 0)):
        rows = picture_rows(PicturesRecipe({"ours": "clips"}, originals, repeated=CLIPS), grid)
        labels = [picture.label for row in rows[:CLIPS] for picture in row.pictures]
        assert (labels.count("a real clip"), labels.count("ours")) == (shown, CLIPS)
        assert [len(row.pictures) for row in rows[CLIPS:]] == [shown, CLIPS][1 - shown :]
    assert answered_clips(AnswersRecipe("clips", captions="reconstruction"), grid) == []


def test_report_can_be_rendered(report):
    assert "<h1>Divot quickstart" in render_report(report)


@pytest.mark.parametrize(("value", "text"), [(float("nan"), "-"), (0.123, "0.12"), (12.34, "12.3"), (1234.5, "1234")])
def test_numbers_have_their_telling_digits(value, text):
    assert number(value) == text
