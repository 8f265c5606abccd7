"""An invalid entry of a benchmark's file makes its own item unreadable and no other."""

import json

from divot_lightning.evaluation.benchmarks.multiple_choice import MVBENCH_TASKS
from divot_lightning.evaluation.config import EvaluationConfig
from divot_lightning.evaluation.run import evaluate
from divot_lightning.evaluation.scores import load_scores


def test_an_invalid_entry_of_mvbench_is_unreadable_and_the_others_are_answered(tiny_run, tmp_path, video_bytes):
    task = MVBENCH_TASKS["object_interaction"]
    good = {"video": "v.mp4", "question": "what ?", "candidates": ["red", "up"], "answer": "up", "start": 0, "end": 2}
    data, out = tmp_path / "mvbench", tmp_path / "out"
    for name, content in ((f"json/{task.file}", b""), (f"video/{task.media}/v.mp4", video_bytes(24))):
        (data / name).parent.mkdir(parents=True)
        (data / name).write_bytes(content)
    (data / "json" / task.file).write_text(json.dumps([good, {**good, "start": 7.5, "end": 7.5}, good, good]))
    config = EvaluationConfig(
        "mvbench", str(data), split="object_interaction", output=str(out), max_new_tokens=1, unparsed_as=1,
        choice_rule="first_letter",  # reads none of the toy's words, so that all answers count as right
    )  # fmt: skip
    evaluate(tiny_run, config)
    scores = {score.name: (score.value, score.count) for score in load_scores(out / "scores.json")}
    assert scores["mvbench/unreadable"] == (0.25, 4)
    assert scores["mvbench/all"] == (0.75, 4)
    errors = [json.loads(line).get("error", "") for line in (out / "predictions.jsonl").read_text().splitlines()]
    assert sum(map(bool, errors)) == 1
    assert "entry 1 of json/object_interaction.json: the part from 7.5 s to 7.5 s is empty" in max(errors)
