"""A score is computed from stored answers: with another rule, judge, metric or limit, or more videos, it is right and
new, and nothing that is there is lost or predicted again."""

import ast
import json
import math

import pytest
import torch

from divot_lightning.errors import UserError
from divot_lightning.evaluation.config import EvaluationConfig, GenerationConfig, JudgeConfig
from divot_lightning.evaluation.protocol import differing_protocols
from divot_lightning.evaluation.run import evaluate
from divot_lightning.evaluation.runners.question_runner import QuestionRunner
from divot_lightning.evaluation.scores import load_scores
from divot_lightning.evaluation.statistics.comparison import load_evaluation, shared_values
from divot_lightning.inference.loaded_run import LoadedRun


def rows_of(folder):
    return [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]


def scores_of(folder):
    return {score.name.partition("/")[2]: score for score in load_scores(folder / "scores.json")}


def values_of(folder):
    return {name: score.value for name, score in scores_of(folder).items()}


def say(folder, texts):
    """Replace the stored answer of each item."""
    rows = rows_of(folder)
    lines = [json.dumps({**row, "prediction": text}) + "\n" for row, text in zip(rows, texts, strict=True)]
    (folder / "predictions.jsonl").write_text("".join(lines))


@pytest.fixture
def no_predictions(monkeypatch):
    """Make a prediction an error."""

    def refuse():
        def predict(*args, **kwargs):
            raise AssertionError("predicted again")

        monkeypatch.setattr(QuestionRunner, "run", predict)
        finished = QuestionRunner.is_finished

        def is_finished(runner, row):
            assert "video_llm" not in vars(runner.models), "the language model was loaded"
            return finished(runner, row)

        monkeypatch.setattr(QuestionRunner, "is_finished", is_finished)
        monkeypatch.setattr(LoadedRun, "generate", predict)

    return refuse


def test_another_rule_gives_its_own_score_and_costs_no_predictions(tiny_run, mvbench, tmp_path, no_predictions):
    config = {"benchmark": "mvbench", "data": mvbench, "output": str(tmp_path / "out"), "max_new_tokens": 1}
    config |= {"max_clips": 1}
    evaluate(tiny_run, EvaluationConfig(**config))
    say(tmp_path / "out", ["Answer: (B)"] * 15 + ["(A)"] * 5)
    no_predictions()
    evaluate(tiny_run, EvaluationConfig(**config))
    assert (values_of(tmp_path / "out")["all"], scores_of(tmp_path / "out")["all"].protocol["choice_rule"]) == (
        0.75,
        "letter_or_text",
    )
    by_text = load_evaluation(tmp_path / "out")
    evaluate(tiny_run, EvaluationConfig(**config, choice_rule="first_letter"))
    by_letter = load_evaluation(tmp_path / "out")
    assert (values_of(tmp_path / "out")["all"], scores_of(tmp_path / "out")["all"].protocol["choice_rule"]) == (
        0.0,
        "first_letter",
    )
    rules, unreadable = (
        differing_protocols([each.scores[name] for each in (by_text, by_letter)])
        for name in ("mvbench/all", "mvbench/unreadable")
    )
    assert rules == {"choice_rule": ["letter_or_text", "first_letter"]}
    assert unreadable == {}
    evaluate(tiny_run, EvaluationConfig(**config))
    assert values_of(tmp_path / "out")["all"] == 0.75


def test_a_run_that_was_stopped_and_continues_with_another_rule_mixes_nothing(tiny_run, mvbench, tmp_path):
    config = {"benchmark": "mvbench", "data": mvbench, "output": str(tmp_path / "out"), "max_new_tokens": 2}
    config |= {"max_clips": 1}
    evaluate(tiny_run, EvaluationConfig(**config))
    rows = rows_of(tmp_path / "out")
    stale = [{**row, "prediction": "Answer: B", "chosen": 1, "judged": True, "scores": {"x": 1}} for row in rows[:10]]
    (tmp_path / "out" / "predictions.jsonl").unlink()
    lines = "".join(json.dumps(row) + "\n" for row in stale)
    (tmp_path / "out" / "predictions-rank0.jsonl").write_text(lines)
    evaluate(tiny_run, EvaluationConfig(**config, choice_rule="first_letter"))
    assert [row["chosen"] for row in rows_of(tmp_path / "out")] == [0] * 10 + [None] * 10
    assert values_of(tmp_path / "out")["all"] == 0.0
    assert not any("judged" in row or "x" in row["scores"] for row in rows_of(tmp_path / "out"))


def test_a_limit_scores_the_first_items_and_loses_none(tiny_run, toy_data, tmp_path, no_predictions):
    config = {"benchmark": "toy-questions", "data": str(toy_data), "output": str(tmp_path), "max_new_tokens": 2}
    evaluate(tiny_run, EvaluationConfig(**config))
    whole, scores = rows_of(tmp_path), scores_of(tmp_path)
    no_predictions()
    found = evaluate(tiny_run, EvaluationConfig(**config, limit=3))
    assert scores_of(tmp_path)["normalised"].count == 3
    assert scores_of(tmp_path)["normalised"].protocol["limit"] == 3
    assert found.remarks == ("only the first 3 of 20 items (limit)",)
    kept = rows_of(tmp_path)
    assert [row["prediction"] for row in kept] == [row["prediction"] for row in whole]
    assert ["scores" in row for row in kept] == [True] * 3 + [False] * 17
    evaluate(tiny_run, EvaluationConfig(**config))
    assert rows_of(tmp_path) == whole
    assert scores_of(tmp_path) == scores


@pytest.fixture
def questions(tmp_path, video_bytes):
    """A folder of ActivityNet-QA with the videos of some questions, and what lays the others."""
    names = ["a", "b", "c", "d"]
    data = tmp_path / "questions"
    (data / "videos").mkdir(parents=True)
    questions = [{"question_id": n, "video_name": n, "question": "what colour ?"} for n in names]
    (data / "test_q.json").write_text(json.dumps(questions))
    (data / "test_a.json").write_text(json.dumps([{"question_id": n, "answer": "red"} for n in names]))

    def lay(names, frames=16):
        for name in names:
            (data / "videos" / f"v_{name}.mp4").write_bytes(video_bytes(frames))

    lay("bd")
    return str(data), lay


def test_videos_that_come_later_are_added_and_draw_as_if_they_had_always_been_there(tiny_run, questions, tmp_path):
    data, lay = questions
    config = {"benchmark": "activitynet_qa", "data": data, "max_new_tokens": 6, "missing": "skip"}
    config |= {"temperature": 1.0, "seed": 5}
    found = evaluate(tiny_run, EvaluationConfig(**config, output=str(tmp_path / "out")))
    assert found.remarks == ("2 of 4 items have no video and are skipped",)
    first = {row["id"]: row["prediction"] for row in rows_of(tmp_path / "out")}
    lay("ac")
    found = evaluate(tiny_run, EvaluationConfig(**config, output=str(tmp_path / "out")))
    evaluate(tiny_run, EvaluationConfig(**config, output=str(tmp_path / "fresh")))
    assert found.remarks == ()
    later = {row["id"]: row["prediction"] for row in rows_of(tmp_path / "out")}
    assert list(later) == ["a", "b", "c", "d"]
    assert {name: later[name] for name in first} == first
    assert rows_of(tmp_path / "out") == rows_of(tmp_path / "fresh")
    assert scores_of(tmp_path / "out") == scores_of(tmp_path / "fresh")


def test_a_video_that_was_replaced_or_mended_is_asked_about_again(tiny_run, questions, tmp_path):
    data, lay = questions
    broken = tmp_path / "questions" / "videos" / "v_d.mp4"
    broken.write_bytes(b"no video")
    config = EvaluationConfig("activitynet_qa", data, output=str(tmp_path / "out"), missing="skip", max_new_tokens=2)
    evaluate(tiny_run, config)
    assert values_of(tmp_path / "out")["unreadable"] == 0.5
    assert "error" in rows_of(tmp_path / "out")[1]
    say(tmp_path / "out", ["kept", "-"])
    lay("d")
    evaluate(tiny_run, config)
    assert values_of(tmp_path / "out")["unreadable"] == 0.0
    assert rows_of(tmp_path / "out")[0]["prediction"] == "kept"
    lay("b", frames=24)
    evaluate(tiny_run, config)
    assert rows_of(tmp_path / "out")[0]["prediction"] != "kept"


def test_a_later_version_scores_what_an_earlier_one_predicted_and_says_so(tiny_run, toy_data, tmp_path, monkeypatch):
    config = {"benchmark": "toy-questions", "data": str(toy_data), "output": str(tmp_path), "max_new_tokens": 2}
    evaluate(tiny_run, EvaluationConfig(**config, limit=4))
    before = scores_of(tmp_path)["exact"].protocol
    for module in ("chosen_items", "scoring"):
        monkeypatch.setattr(
            f"divot_lightning.evaluation.{module}.library_versions", lambda: {**before["versions"], "torch": "9"}
        )
    evaluate(tiny_run, EvaluationConfig(**config, limit=3))
    protocol = scores_of(tmp_path)["exact"].protocol
    assert (protocol["versions"], protocol["scored_with"]) == (before["versions"], {"torch": "9"})
    with pytest.raises(UserError, match=r"versions\.torch was"):
        evaluate(tiny_run, EvaluationConfig(**config))


def test_the_default_folder_names_the_split(tiny_run, mvbench, tmp_path):
    import shutil

    run = tmp_path / "run"
    shutil.copytree(tiny_run, run)
    config = {"benchmark": "mvbench", "data": mvbench, "max_new_tokens": 1, "max_clips": 1}
    folders = [
        evaluate(run, EvaluationConfig(**config, split=split)).folder for split in ("state_change", "action_count")
    ]
    assert [str(folder.relative_to(run)) for folder in folders] == [
        "evaluation/mvbench-state_change",
        "evaluation/mvbench-action_count",
    ]


def test_the_mean_of_groups_has_values_per_item_that_can_be_paired(tiny_run, mvbench, tmp_path):
    config = {"benchmark": "mvbench", "data": mvbench, "max_new_tokens": 1, "max_clips": 1}
    for name in ("a", "b"):
        evaluate(tiny_run, EvaluationConfig(**config, output=str(tmp_path / name)))
        rows = rows_of(tmp_path / name)
        (tmp_path / name / "predictions.jsonl").write_text(
            "".join(json.dumps({**row, "prediction": "B" if n % (2 if name == "a" else 3) else "A"}) + "\n"
                    for n, row in enumerate(rows))
        )  # fmt: skip
        evaluate(tiny_run, EvaluationConfig(**config, output=str(tmp_path / name)))
        score = scores_of(tmp_path / name)["mean_of_groups"]
        values = [row["scores"][score.name] for row in rows_of(tmp_path / name)]
        assert score.value == pytest.approx(sum(values) / len(values))
    one, other = shared_values(
        [load_evaluation(tmp_path / name).values("mvbench/mean_of_groups") for name in ("a", "b")]
    )
    assert len(one) == 20
    assert (other - one).mean() == pytest.approx(13 / 20 - 10 / 20)


def test_groups_of_unequal_size_weigh_alike_in_the_values_of_items():
    """The mean over items of these values is the mean of the groups' means, whatever the sizes are."""
    from divot_lightning.evaluation.benchmarks.multiple_choice import MVBench
    from divot_lightning.parts.benchmarks import BenchmarkItem

    sizes = {"x": 1, "y": 3, "z": 8}
    items = [
        BenchmarkItem(f"{group}{n}", None, "v", options=("p", "q"), choice=n % 2, group=group)
        for group, size in sizes.items()
        for n in range(size)
    ]
    benchmark = MVBench()
    measured = [{"chosen": 0} for _ in items]
    metrics = benchmark.make_metrics(items)
    values = benchmark.score(metrics, measured, items)
    assert values["mean_of_groups"] == (pytest.approx((1 + 2 / 3 + 1 / 2) / 3), 12)
    own = metrics[0].item_values(measured, items)
    assert sum(row["mean_of_groups"] for row in own) / 12 == pytest.approx(values["mean_of_groups"][0])


# Judges


def judged(data, folder, **judge):
    config = {"benchmark": "toy-questions", "data": str(data), "output": str(folder), "max_new_tokens": 2, "limit": 8}
    return EvaluationConfig(**config, judge=JudgeConfig(**judge))


def test_a_verdict_does_not_outlive_its_judge(tiny_run, toy_data, tmp_path, endpoint, no_predictions):
    endpoint.reply = lambda prompt: "yes"
    evaluate(tiny_run, judged(toy_data, tmp_path, kind="endpoint", model="m", url=endpoint.url))
    assert values_of(tmp_path)["judged"] == 1.0
    with_judge = load_evaluation(tmp_path)
    no_predictions()
    evaluate(tiny_run, judged(toy_data, tmp_path))
    assert not {"judged", "unjudged"} & set(values_of(tmp_path))
    assert not any({"judged", "judge_reply"} & set(row) for row in rows_of(tmp_path))
    for name in values_of(tmp_path):
        shared = [with_judge, load_evaluation(tmp_path)]
        assert differing_protocols([each.scores[f"toy-questions/{name}"] for each in shared]) == {}
    count = len(endpoint.requests)
    evaluate(tiny_run, judged(toy_data, tmp_path, kind="endpoint", model="m", url=endpoint.url))
    assert values_of(tmp_path)["judged"] == 1.0  # read from what was kept
    assert len(endpoint.requests) == count
    endpoint.reply = lambda prompt: "no"
    evaluate(tiny_run, judged(toy_data, tmp_path, kind="endpoint", model="other", url=endpoint.url))
    assert values_of(tmp_path)["judged"] == 0.0
    assert scores_of(tmp_path)["judged"].protocol["judge"]["model"] == "other"


def test_what_no_verdict_could_be_read_from_is_a_share_and_counts_as_the_rule_says(
    tiny_run, toy_data, tmp_path, endpoint
):
    endpoint.reply = lambda prompt: "yes" if "Correct answer: red\n" in prompt else "hm"
    config = {"kind": "endpoint", "model": "m", "url": endpoint.url, "attempts": 2}
    evaluate(tiny_run, judged(toy_data, tmp_path, **config))
    rows = rows_of(tmp_path)
    read = [row for row in rows if row["judged"] is not None]
    assert values_of(tmp_path)["judged"] == len(read) / 8
    assert values_of(tmp_path)["unjudged"] == 1 - len(read) / 8 > 0.05
    assert {row["judge_reply"] for row in rows} <= {"hm", "yes"}
    found = evaluate(tiny_run, judged(toy_data, tmp_path, **config, unjudged_as="left_out"))
    assert scores_of(tmp_path)["judged"].count == len(read)
    assert values_of(tmp_path)["judged"] == 1.0 if read else math.isnan(values_of(tmp_path)["judged"])
    assert scores_of(tmp_path)["judged"].protocol["judge"]["unjudged_as"] == "left_out"
    assert found.scores[0].name == "toy-questions/judged"


def test_scores_that_need_no_judge_are_written_before_it_is_asked(tiny_run, toy_data, tmp_path, endpoint):
    endpoint.script = [(200, {}, None), (401, {}, "")]
    with pytest.raises(UserError, match="HTTP 401"):
        evaluate(tiny_run, judged(toy_data, tmp_path, kind="endpoint", model="m", url=endpoint.url, concurrency=1))
    assert {"exact", "normalised"} <= set(values_of(tmp_path))
    assert len(rows_of(tmp_path)) == 8


def test_a_judge_that_cannot_be_asked_is_told_before_anything_is_predicted(
    tiny_run, toy_data, tmp_path, endpoint, no_predictions
):
    no_predictions()
    endpoint.script = [(404, {}, "no such model")]
    with pytest.raises(UserError, match="no such model"):
        evaluate(tiny_run, judged(toy_data, tmp_path, kind="endpoint", model="m", url=endpoint.url))
    with pytest.raises(UserError, match="cannot be loaded"):
        evaluate(tiny_run, judged(toy_data, tmp_path, kind="local", model=str(tmp_path)))


REPLIES = [
    "{'pred': 'yes', 'score': 5}", "{'pred': 'yes', 'score': 4.8}", "{'pred': 'no', 'score': 2.9}",
    "{'pred': 'No', 'score': 0}", "{'pred': 'YES', 'score': 4}", "{'pred': 'yes', 'score': 3}",
    "{'pred': 'no', 'score': 1}", "{'pred': 'no', 'score': 0}",
]  # fmt: skip


def test_accuracy_and_score_are_those_of_video_chatgpt_s_script(tiny_run, toy_data, tmp_path, endpoint):
    """Its rule, from its description: the reply is a Python dictionary; accuracy is the fraction of `yes` among yes and
    no, and the score loses its fraction before it is averaged."""
    given = iter(REPLIES)
    replied = {}
    endpoint.reply = lambda prompt: (
        replied.setdefault(prompt, None) or replied.update({prompt: next(given)}) or replied[prompt]
    )
    endpoint.script = [(200, {}, '{"choices": [{"message": {"content": "{}"}}]}')]  # the small request beforehand
    config = {"kind": "endpoint", "model": "m", "url": endpoint.url, "prompt": "video_chatgpt", "concurrency": 1}
    evaluate(tiny_run, judged(toy_data, tmp_path, **config))
    replies = [ast.literal_eval(row["judge_reply"]) for row in rows_of(tmp_path)]
    yes = sum(reply["pred"].lower() == "yes" for reply in replies)
    no = sum(reply["pred"].lower() == "no" for reply in replies)
    assert values_of(tmp_path)["judged"] == yes / (yes + no)
    assert values_of(tmp_path)["judged_score"] == sum(int(reply["score"]) for reply in replies) / len(replies)
    assert len({row["judge_reply"] for row in rows_of(tmp_path)}) > 2
    for name in ("judged", "judged_score"):
        groups = [score for kind, score in scores_of(tmp_path).items() if kind.startswith(f"{name}/")]
        assert len(groups) == 4
        assert sum(score.value * score.count for score in groups) / 8 == pytest.approx(values_of(tmp_path)[name])
        assert all("judge" in score.protocol for score in groups)
    roles = [message["role"] for message in endpoint.requests[-1][1]["messages"]]
    assert roles == ["system", "user"]
    assert "{'pred': 'yes', 'score': 5}" in endpoint.requests[-1][1]["messages"][1]["content"]


# Clips


def clips(data, folder, **generation):
    chosen = GenerationConfig(**generation)
    return EvaluationConfig("msrvtt-generation", data, output=str(folder), generation=chosen)


@pytest.fixture
def captions(tmp_path, video_bytes):
    """A folder of MSR-VTT with three videos."""
    names = [f"video{n}" for n in range(3)]
    info = {
        "videos": [{"video_id": name, "split": "test"} for name in names],
        "sentences": [{"video_id": name, "caption": "a red circle"} for name in names],
    }
    data = tmp_path / "msrvtt"
    (data / "TestVideo").mkdir(parents=True)
    (data / "test_videodatainfo.json").write_text(json.dumps(info))
    for at, name in enumerate(names):
        (data / "TestVideo" / f"{name}.mp4").write_bytes(video_bytes(24 + 8 * at))
    return str(data)


class Colours(torch.nn.Module):
    """Mean colour; not a number where `broken` and the clip is dark."""

    def __init__(self, broken: bool = False):
        super().__init__()
        self.broken = broken

    def forward(self, x: torch.Tensor, rescale: bool = False, resize: bool = False, return_features: bool = False):
        mean = x.flatten(2).mean(dim=2)
        return mean / 0.0 * 0.0 if self.broken else mean


@pytest.fixture
def networks(tmp_path):
    names = {}
    for name, broken in (("fine", False), ("broken", True)):
        names[name] = str(tmp_path / f"{name}.pt")
        torch.jit.script(Colours(broken)).save(names[name])
    return names


@pytest.mark.parametrize("store", [True, False])
def test_a_metric_that_is_added_later_measures_the_same_clips(
    tiny_run, captions, clip_folder, networks, tmp_path, no_predictions, store
):
    both = {"clip_model": str(clip_folder), "video_features": networks["fine"], "kept_clips": 1}
    evaluate(tiny_run, clips(captions, tmp_path / "at_once", **both))
    first = {"clip_model": str(clip_folder), "kept_clips": 1, "store_clips": store}
    evaluate(tiny_run, clips(captions, tmp_path / "later", **first))
    assert "frechet_video_distance" not in values_of(tmp_path / "later")
    assert len(list((tmp_path / "later" / "clips").glob("*.npz"))) == (3 if store else 1)
    if store:
        no_predictions()
    evaluate(tiny_run, clips(captions, tmp_path / "later", **{**first, **both}))
    assert scores_of(tmp_path / "later") == scores_of(tmp_path / "at_once")
    evaluate(tiny_run, clips(captions, tmp_path / "later", **first))
    assert set(values_of(tmp_path / "later")) == {"clip_similarity", "unreadable"}


def test_features_of_another_network_are_never_taken_for_those_of_this_one(
    tiny_run, captions, networks, tmp_path, no_predictions
):
    evaluate(tiny_run, clips(captions, tmp_path / "out", video_features=networks["fine"]))
    fine = values_of(tmp_path / "out")["frechet_video_distance"]
    no_predictions()
    evaluate(tiny_run, clips(captions, tmp_path / "out", video_features=networks["broken"]))
    assert math.isnan(values_of(tmp_path / "out")["frechet_video_distance"])
    evaluate(tiny_run, clips(captions, tmp_path / "out", video_features=networks["fine"]))
    assert values_of(tmp_path / "out")["frechet_video_distance"] == fine


def test_features_that_are_not_finite_are_counted_and_leave_the_distance_undefined(
    tiny_run, captions, networks, tmp_path
):
    found = evaluate(tiny_run, clips(captions, tmp_path / "out", video_features=networks["broken"]))
    assert found.scores[0].name == "msrvtt-generation/frechet_video_distance"
    assert math.isnan(found.scores[0].value)
    assert values_of(tmp_path / "out")["non_finite_features"] == 1.0


def test_clips_are_not_generated_if_nothing_would_be_measured(captions, tmp_path):
    with pytest.raises(UserError, match=r"give generation\.clip_model or\ngeneration\.video_features"):
        evaluate(tmp_path / "no run", clips(captions, tmp_path / "out"))
    assert not (tmp_path / "out").exists()
