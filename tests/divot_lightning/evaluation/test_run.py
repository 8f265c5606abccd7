"""Evaluations from the command line to the scores, with tiny untrained models."""

import json

import numpy as np
import pytest
import torch

from divot_datamodules.toy.world import ATTRIBUTES
from divot_lightning.checkpoint.run_components import weights_sha256
from divot_lightning.cli.main import main
from divot_lightning.errors import UserError
from divot_lightning.evaluation.benchmarks.multiple_choice import MVBENCH_TASKS
from divot_lightning.evaluation.config import EvaluationConfig, GenerationConfig, JudgeConfig
from divot_lightning.evaluation.run import evaluate
from divot_lightning.evaluation.scores import load_scores
from divot_lightning.testing.run_distributed import run_distributed


def rows_of(folder):
    return [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]


def values_of(folder):
    return {score.name.partition("/")[2]: score.value for score in load_scores(folder / "scores.json")}


def lay(folder, files):
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    return str(folder)


def test_a_score_carries_what_it_means(tiny_run, toy_data, tmp_path, capsys):
    words = ["--benchmark", "toy-questions", "--data", str(toy_data), "--output", str(tmp_path / "out")]
    assert main(["evaluate", str(tiny_run), *words, "--max_new_tokens", "3"]) == 0
    assert "toy-questions/normalised\t" in capsys.readouterr().out
    rows = rows_of(tmp_path / "out")
    assert len(rows) == 20
    score = next(s for s in load_scores(tmp_path / "out" / "scores.json") if s.name == "toy-questions/normalised")
    assert score.count == 20
    assert score.value == sum(row["scores"][score.name] for row in rows) / 20
    assert score.model["video_llm"] == weights_sha256(tiny_run / "video_llm")
    assert score.model["tokenizer"] == weights_sha256(tiny_run / "tokenizer")
    assert score.protocol["decoding"] == {"greedy": True, "max_new_tokens": 3}
    assert score.protocol["clips"]["frames"] == 5
    assert score.protocol["split"] == "held_out"
    assert set(score.protocol["files"]) == {path.name for path in (toy_data / "held_out").glob("*.tar")}
    assert "torch" in score.protocol["versions"]


def test_averaged_weights_are_another_protocol(tiny_run, toy_data, tmp_path):
    import shutil

    run = tmp_path / "run"
    shutil.copytree(tiny_run, run)
    (run / "finished.json").write_text(json.dumps({"weights": "averaged"}))
    kinds = []
    for number, folder in enumerate((tiny_run, run)):
        output = tmp_path / f"out{number}"
        evaluate(folder, EvaluationConfig("toy-questions", str(toy_data), output=str(output), limit=1))
        kinds.append(load_scores(output / "scores.json")[0].protocol["weights"])
    assert kinds == [dict.fromkeys(("video_llm", "tokenizer"), kind) for kind in ("trained", "averaged")]


def test_a_stopped_evaluation_continues_with_what_is_missing(tiny_run, toy_data, tmp_path):
    config = EvaluationConfig("toy-questions", str(toy_data), output=str(tmp_path / "out"), max_new_tokens=3)
    evaluate(tiny_run, config)
    whole = rows_of(tmp_path / "out")
    marked = [{**row, "prediction": "kept"} for row in whole[:7]]
    (tmp_path / "out" / "predictions.jsonl").unlink()
    cut = json.dumps(whole[8])[:20]
    (tmp_path / "out" / "predictions-rank0.jsonl").write_text("".join(json.dumps(r) + "\n" for r in marked) + cut)
    evaluate(tiny_run, config)
    again = rows_of(tmp_path / "out")
    assert [row["prediction"] for row in again] == ["kept"] * 7 + [row["prediction"] for row in whole[7:]]
    assert not list((tmp_path / "out").glob("predictions-rank*"))


def measured(rank, run, data, output):
    config = EvaluationConfig("toy-questions", data, output=output, max_new_tokens=3, temperature=0.8)
    evaluate(run, config)
    generation = EvaluationConfig("toy", data, output=f"{output}-clips")
    evaluate(run, generation)
    return rank


def test_two_processes_write_what_one_does(tiny_run, toy_data, tmp_path):
    measured(0, str(tiny_run), str(toy_data), str(tmp_path / "one"))
    run_distributed(measured, 2, str(tiny_run), str(toy_data), str(tmp_path / "two"))
    for kind in ("", "-clips"):
        for name in ("predictions.jsonl", "scores.json"):
            one, two = (tmp_path / f"{folder}{kind}" / name for folder in ("one", "two"))
            assert one.read_bytes() == two.read_bytes()


def test_predictions_of_another_way_are_not_mixed_in(tiny_run, toy_data, tmp_path):
    config = EvaluationConfig("toy-questions", str(toy_data), output=str(tmp_path), max_new_tokens=2, limit=2)
    evaluate(tiny_run, config)
    with pytest.raises(UserError, match=r"decoding\.max_new_tokens was 2, now it is 3\nGive another folder"):
        evaluate(tiny_run, EvaluationConfig(**{**vars(config), "max_new_tokens": 3}))
    evaluate(tiny_run, EvaluationConfig(**{**vars(config), "limit": 6}))
    assert len(rows_of(tmp_path)) == 6


def test_every_task_of_mvbench_is_asked_and_scored(tiny_run, mvbench, tmp_path):
    config = EvaluationConfig("mvbench", mvbench, output=str(tmp_path / "out"), max_new_tokens=2, max_clips=2)
    evaluate(tiny_run, config)
    rows, values = rows_of(tmp_path / "out"), values_of(tmp_path / "out")
    assert len(rows) == 20
    assert not any("error" in row for row in rows)
    assert set(MVBENCH_TASKS) <= set(values)
    right = [row["chosen"] == 1 for row in rows]
    assert values["all"] == values["mean_of_groups"] == pytest.approx(sum(right) / 20)
    assert values["unparsed"] == sum(row["chosen"] is None for row in rows) / 20
    protocol = load_scores(tmp_path / "out" / "scores.json")[0].protocol
    assert "only give the best option" in protocol["prompt"]
    assert protocol["clips"]["max_clips"] == 2


def test_a_video_that_cannot_be_read_is_a_wrong_answer_and_is_counted(tiny_run, mvbench, tmp_path):
    broken = tmp_path / "mvbench" / "video" / "ssv2_video" / "action_antonym.mp4"
    broken.write_bytes(b"no video")
    config = EvaluationConfig("mvbench", mvbench, split="action_antonym", output=str(tmp_path / "out"), unparsed_as=1)
    evaluate(tiny_run, config)
    assert rows_of(tmp_path / "out")[0]["error"].startswith("undecodable")
    assert values_of(tmp_path / "out") == {"all": 0.0, "unparsed": 0.0, "unreadable": 1.0}


def test_an_answer_without_a_choice_counts_as_the_option_that_is_set(tiny_run, mvbench, tmp_path):
    config = EvaluationConfig(
        "mvbench", mvbench, split="state_change", output=str(tmp_path / "out"), unparsed_as=1, max_new_tokens=1,
        choice_rule="first_letter",
    )  # fmt: skip
    evaluate(tiny_run, config)
    assert rows_of(tmp_path / "out")[0]["chosen"] is None  # the toy's words have no capital letters
    assert values_of(tmp_path / "out") == {"all": 1.0, "unparsed": 1.0, "unreadable": 0.0}


def test_missing_videos_are_refused_or_left_out_as_asked(tiny_run, tmp_path, video_bytes):
    questions = [{"question_id": n, "video_name": n, "question": "what colour ?"} for n in ("a", "b")]
    answers = [{"question_id": n, "answer": "red"} for n in ("a", "b")]
    data = lay(tmp_path / "data", {"test_q.json": questions, "test_a.json": answers, "videos/v_b.mp4": video_bytes(16)})
    config = EvaluationConfig("activitynet_qa", data, output=str(tmp_path / "out"), max_new_tokens=2)
    with pytest.raises(UserError, match="1 videos are not there, the first is videos/v_a"):
        evaluate(tiny_run, config)
    evaluate(tiny_run, EvaluationConfig(**{**vars(config), "missing": "skip"}))
    assert [row["id"] for row in rows_of(tmp_path / "out")] == ["b"]
    assert load_scores(tmp_path / "out" / "scores.json")[0].protocol["items_without_video"] == 1


def test_open_answers_are_judged_by_an_endpoint(tiny_run, toy_data, tmp_path, endpoint):
    judge = JudgeConfig("endpoint", "m", endpoint.url)
    config = EvaluationConfig(
        "toy-questions", str(toy_data), output=str(tmp_path), max_new_tokens=2, limit=4, judge=judge
    )
    evaluate(tiny_run, config)
    assert values_of(tmp_path)["judged"] == 0.0
    assert {row["judged"] for row in rows_of(tmp_path)} == {False}
    count = len(endpoint.requests)
    evaluate(tiny_run, config)
    assert len(endpoint.requests) == count  # not even to see whether it is there
    protocols = {score.name.partition("/")[2]: score.protocol for score in load_scores(tmp_path / "scores.json")}
    assert [name for name, protocol in protocols.items() if "judge" in protocol and "/" not in name] == [
        "judged",
        "unjudged",
    ]
    assert protocols["judged"]["judge"]["model"] == "m"


def test_hidden_answers_give_a_file_for_the_server_and_no_accuracy(tiny_run, tmp_path, video_bytes):
    questions = [{"q_uid": n, "question": "?", **{f"option {k}": f"o{k}" for k in range(5)}} for n in ("u1", "u2")]
    files = {f"videos/{n}.mp4": video_bytes(16) for n in ("u1", "u2")}
    data = lay(tmp_path / "data", {"questions.json": questions, **files})
    config = EvaluationConfig("egoschema", data, split="full", output=str(tmp_path / "out"), max_new_tokens=1)
    evaluate(tiny_run, config)
    assert (tmp_path / "out" / "submission.csv").read_text().splitlines() == ["q_uid,answer", "u1,2", "u2,2"]
    assert values_of(tmp_path / "out") == {"unparsed": 1.0, "unreadable": 0.0}
    hidden = {"v": {"mc_question": [{"id": 3, "question": "?", "options": ["x", "y", "z"]}]}}
    data = lay(tmp_path / "p", {"mc_question_test.json": hidden, "videos/v.mp4": files["videos/u1.mp4"]})
    evaluate(tiny_run, EvaluationConfig("perception_test", data, split="test", output=str(tmp_path / "p_out")))
    submission = json.loads((tmp_path / "p_out" / "submission.json").read_text())
    assert submission == {"v": [{"id": 3, "answer_id": 2, "answer": "z"}]}


def test_settings_of_the_head_stand_in_the_model_of_a_score_and_not_in_its_protocol(tiny_run, toy_data, tmp_path):
    """Two heads, or one with two guidance scales, are two models measured in one way."""
    scores = []
    for number, head in enumerate((None, {"variance_scale": 0.7})):
        output = str(tmp_path / str(number))
        chosen = GenerationConfig(head=head)
        config = EvaluationConfig("toy", str(toy_data), output=output, limit=1, generation=chosen)
        scores.append(evaluate(tiny_run, config).scores[0])
    assert [score.model["head"] for score in scores] == [{"variance_scale": 0.1}, {"variance_scale": 0.7}]
    assert scores[0].protocol == scores[1].protocol
    refused = GenerationConfig(head={"guidance": 2})
    with pytest.raises(UserError, match="GMMHead has no sampling setting guidance"):
        evaluate(tiny_run, EvaluationConfig("toy", str(toy_data), output=str(tmp_path / "x"), generation=refused))


def test_clips_are_asked_for_as_released_and_the_protocol_says_so(tiny_run, toy_data, tmp_path):
    from divot_lightning.inference.clip_requests import ClipOpening

    protocols = []
    for number, asked in enumerate(({}, {"request": "Generate a video of {}", "opening": ClipOpening(2)})):
        config = EvaluationConfig(
            "toy",
            str(toy_data),
            output=str(tmp_path / str(number)),
            limit=1,
            template="instruction",
            generation=GenerationConfig(**asked),
        )
        protocols.append(dict(evaluate(tiny_run, config).scores[0].protocol))
    assert protocols[1].pop("request") == "Generate a video of {}"
    assert protocols[1].pop("opening") == {"max_new_tokens": 2, "text_temperature": 0.7, "top_p": 0.5}
    assert protocols[1] == protocols[0]


def test_toy_clips_are_scored_as_the_clips_themselves_are(tiny_run, toy_data, tmp_path):
    from divot_datamodules.decoding.samples import SampleDecoder
    from divot_datamodules.shards.sources import read_all
    from divot_lightning.evaluation.metrics.frechet import feature_distance
    from divot_lightning.evaluation.metrics.toy_features import toy_clip_features
    from divot_lightning.evaluation.metrics.toy_oracle import read_clips
    from divot_lightning.evaluation.runners.question_runner import item_seed
    from divot_lightning.inference.loaded_run import LoadedRun

    for limit in (2, None):  # what is kept is kept when items are added
        evaluate(tiny_run, EvaluationConfig("toy", str(toy_data), output=str(tmp_path), seed=3, limit=limit))
    models = LoadedRun(tiny_run)
    samples = [SampleDecoder(models.decoded_clip)(raw, None) for raw in read_all(toy_data / "held_out")]
    real, texts = torch.cat([sample.video for sample in samples]), [sample.text for sample in samples]
    generated = torch.stack(
        [next(models.generate([text["caption"]], seed=item_seed(3, number)))[0] for number, text in enumerate(texts)]
    )
    readings, values = read_clips(generated), values_of(tmp_path)
    pairs = list(zip(readings, texts, strict=True))
    rights = [[r.valid and getattr(r, name) == t["attributes"][name] for name in ATTRIBUTES] for r, t in pairs]
    assert [values[name] for name in ATTRIBUTES] == np.mean(rights, axis=0).tolist()
    assert values["all"] == np.mean([all(row) for row in rights])
    assert values["invalid"] == np.mean([not reading.valid for reading in readings])
    with np.load(tmp_path / "generation" / "clips.npz") as kept:
        np.testing.assert_array_equal(kept["generated"], generated[:6].numpy())
    shown = json.loads((tmp_path / "generation" / "texts.json").read_text())
    described = [(n, t["caption"], all(row)) for n, (t, row) in enumerate(zip(texts, rights, strict=True))]
    assert [(text["number"], text["caption"], text["right"]) for text in shown] == described[:6]
    assert [text["media"] for text in shown] == [row["media"] for row in rows_of(tmp_path)][:6]
    assert not (tmp_path / ".clips").exists()
    distance = feature_distance(toy_clip_features(real), toy_clip_features(generated), scaled=True)
    assert values["frechet"] == pytest.approx(distance.item(), rel=1e-6)


@pytest.fixture
def msrvtt(tmp_path, video_bytes):
    names = [f"video{n}" for n in range(3)]
    info = {
        "videos": [{"video_id": name, "split": "test"} for name in names],
        "sentences": [{"video_id": name, "caption": text} for name in names for text in ("a red circle", "blue up")],
    }
    files = {f"TestVideo/{name}.mp4": video_bytes(24 + 8 * at) for at, name in enumerate(names)}
    return lay(tmp_path / "msrvtt", {"test_videodatainfo.json": info, **files})


class MeanColour(torch.nn.Module):
    """A stand-in for I3D with the same arguments."""

    def forward(self, x: torch.Tensor, rescale: bool = False, resize: bool = False, return_features: bool = False):
        return x.flatten(2).mean(dim=2)


def test_clips_from_captions_have_a_similarity_and_a_distance(tiny_run, msrvtt, clip_folder, tmp_path):
    torch.jit.script(MeanColour()).save(str(tmp_path / "i3d.pt"))
    chosen = GenerationConfig(clip_model=str(clip_folder), video_features=str(tmp_path / "i3d.pt"))
    config = EvaluationConfig("msrvtt-generation", msrvtt, output=str(tmp_path / "out"), generation=chosen)
    evaluate(tiny_run, config)
    rows, values = rows_of(tmp_path / "out"), values_of(tmp_path / "out")
    assert values["clip_similarity"] == pytest.approx(sum(row["clip_similarity"] for row in rows) / 3)
    real, generated = (torch.tensor([row[key] for row in rows]).double() for key in ("real_features", "features"))
    assert generated.shape == (3, 3)
    assert values["frechet_video_distance"] > (real.mean(0) - generated.mean(0)).square().sum().item() > 0
    texts = json.loads((tmp_path / "out" / "generation" / "texts.json").read_text())
    expected = [{"number": n, "media": r["media"], "caption": r["prompt"], "right": None} for n, r in enumerate(rows)]
    assert texts == expected
    protocols = {
        score.name.partition("/")[2]: score.protocol for score in load_scores(tmp_path / "out" / "scores.json")
    }
    assert protocols["frechet_video_distance"]["video_features"]["network"] == "i3d.pt"
    assert len(protocols["frechet_video_distance"]["video_features"]["sha256"]) == 64
    assert len(protocols["clip_similarity"]["clip_model"]["sha256"]) == 64
    assert "video_features" not in protocols["clip_similarity"]
    assert protocols["clip_similarity"]["real_clips"].startswith("the middle 2 s")


def test_captions_are_compared_with_all_references(tiny_run, msrvtt, tmp_path):
    evaluate(tiny_run, EvaluationConfig("msrvtt", msrvtt, output=str(tmp_path / "out"), max_new_tokens=4))
    values = values_of(tmp_path / "out")
    assert set(values) >= {"bleu_1", "bleu_2", "bleu_3", "bleu_4", "rouge_l", "unreadable"}
    rows = rows_of(tmp_path / "out")
    assert values["rouge_l"] == pytest.approx(sum(row["scores"]["msrvtt/rouge_l"] for row in rows) / 3)


def test_toy_captions_name_attributes(tiny_run, toy_data, tmp_path):
    evaluate(tiny_run, EvaluationConfig("toy-captions", str(toy_data), output=str(tmp_path), max_new_tokens=3))
    assert {"colour", "exact", "invalid", "bleu_4"} <= set(values_of(tmp_path))
