"""What `divot evaluate` prints: warnings, the benchmark's main score with its fractions, then the rest."""

import json

import pytest

from divot_lightning.cli.evaluate import shown
from divot_lightning.cli.main import main
from divot_lightning.evaluation.headline import headline_first, warnings
from divot_lightning.evaluation.scores import Score
from divot_lightning.evaluation.scoring import EvaluationResult

MAIN_SCORES = (
    *("mean_of_groups", "judged", "frechet_video_distance", "cider_d", "all", "normalised", "bleu_4"),
    "clip_similarity",
)


@pytest.mark.parametrize(
    ("names", "first"),
    [
        (["task", "all", "mean_of_groups", "unparsed"], "mean_of_groups"),
        (["all", "unparsed"], "all"),
        (["exact", "normalised", "unjudged", "judged"], "judged"),
        (["exact", "normalised"], "normalised"),
        (["bleu_1", "bleu_4", "rouge_l"], "bleu_4"),
        (["bleu_4", "cider_d"], "cider_d"),
        (["clip_similarity", "frechet_video_distance"], "frechet_video_distance"),
        (["colour", "all", "frechet"], "all"),
        (["unparsed", "unreadable"], "unparsed"),
        (["unparsed", "of a stranger", "unreadable"], "of a stranger"),
    ],
)
def test_the_score_that_papers_print_comes_first(names, first):
    found = headline_first(dict.fromkeys(names, 0), MAIN_SCORES)
    assert next(iter(found)) == first
    assert set(found) == set(names)


@pytest.mark.parametrize(
    ("name", "value", "protocol", "line"),
    [
        ("unparsed", 0.05, {}, None),
        ("unparsed", 0.06, {"unparsed_as": None}, "6 of 100 answers chose no option; they count as wrong"),
        ("unparsed", 1.0, {"unparsed_as": 2}, "100 of 100 answers chose no option; they count as option C"),
        ("unreadable", 0.5, {}, "50 of 100 videos could not be read; they count as wrong"),
        ("unreadable", 0.5, {"real_clips": ""}, "50 of 100 videos could not be read; they are left out"),
        (
            "unjudged",
            0.5,
            {"judge": {"unjudged_as": "left_out"}},
            "left_out; the replies: judge_reply in predictions.jsonl",
        ),
        (
            "non_finite_features",
            0.5,
            {},
            "clips have features that are not finite; the distance is undefined",
        ),
        ("all", 0.5, {}, None),
    ],
)
def test_a_fraction_above_five_percent_gets_a_warning(name, value, protocol, line):
    found = warnings([Score(f"b/{name}", value, 100, protocol)])
    assert len(found) == (line is not None)
    assert line is None or (found[0].startswith(f"WARNING: {value:.1%} of b: ") and found[0].endswith(line))


def test_every_line_says_what_it_is(tmp_path):
    scores = [Score("mvbench/mean_of_groups", 0.25, 40), Score("mvbench/unparsed", 0.5, 40, {"unparsed_as": 2})]
    assert shown(EvaluationResult(scores, tmp_path, ("2 items have no video",))).splitlines() == [
        "WARNING: 50.0% of mvbench: 20 of 40 answers chose no option; they count as option C",
        "mvbench/mean_of_groups\t0.2500\t40\tunparsed 50.0%",
        "mvbench/unparsed\t0.5000\t40",
        "note: 2 items have no video",
        f"predictions and scores: {tmp_path}",
    ]


def test_a_benchmark_with_hidden_answers_prints_the_file_for_its_server_and_what_was_filled_in(
    tiny_run, tmp_path, video_bytes, capsys
):
    questions = [{"q_uid": n, "question": "?", **{f"option {k}": f"o{k}" for k in range(5)}} for n in ("u1", "u2")]
    (tmp_path / "data" / "videos").mkdir(parents=True)
    (tmp_path / "data" / "questions.json").write_text(json.dumps(questions))
    for name in ("u1", "u2"):
        (tmp_path / "data" / "videos" / f"{name}.mp4").write_bytes(video_bytes(16))
    words = ["--benchmark", "egoschema", "--data", str(tmp_path / "data"), "--split", "full", "--unparsed_as", "3"]
    words += ["--output", str(tmp_path / "out"), "--max_new_tokens", "1"]
    assert main(["evaluate", str(tiny_run), *words, "--unparsed_as", "5"]) == 2
    assert "unparsed_as is 5, counted from 0, but 'u1' has 5 options" in capsys.readouterr().err
    assert main(["evaluate", str(tiny_run), *words]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "WARNING: 100.0% of egoschema: 2 of 2 answers chose no option; they count as option D"
    assert lines[-2] == (
        f"submission: {tmp_path / 'out' / 'submission.csv'}; "
        "2 (100.0%) of its 2 answers chose no option and count as option D"
    )
    assert (tmp_path / "out" / "submission.csv").read_text().splitlines() == ["q_uid,answer", "u1,3", "u2,3"]


def test_missing_tasks_and_items_are_reported(tiny_run, mvbench, tmp_path, capsys):
    import shutil

    shutil.rmtree(tmp_path / "mvbench" / "video" / "nturgbd")
    words = ["--benchmark", "mvbench", "--data", mvbench, "--missing", "skip", "--output", str(tmp_path / "out")]
    assert main(["evaluate", str(tiny_run), *words, "--max_new_tokens", "1", "--max_clips", "1"]) == 0
    out = capsys.readouterr().out
    assert "note: 1 of 20 items have no video and are skipped\n" in out
    assert "note: 19 of 20 groups are there; without any item: fine_grained_pose\n" in out
    first = next(line for line in out.splitlines() if not line.startswith("WARNING"))
    assert first.startswith("mvbench/mean_of_groups\t")
