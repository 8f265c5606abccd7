"""lmms-eval finds the model by its entry point and runs the toy tasks with it, on one and on two processes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from divot_lightning import DivotPipeline
from divot_lightning.cli.main import main
from tests.divot_lightning.inference.conftest import llm_run  # noqa: F401

pytest.importorskip("lmms_eval", reason="needs lmms-eval, in an environment of its own: see the README of this package")

TASKS = Path(__file__).parents[1] / "toy_task"
SCORES = {
    "divot_toy_video": "right",
    "divot_toy_frames": "right",
    "divot_toy_choice": "acc",
    "divot_toy_rounds": "right",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with the data of the toy tasks, where the commands run."""
    folder = tmp_path_factory.mktemp("toy")
    words = ["data", "toy", str(folder / "toy"), "--train", "1", "--validation", "1", "--held-out", "3"]
    assert main(words) == 0
    words = [str(folder / "toy/held_out"), str(folder / "data/lmms_eval_toy")]
    subprocess.run([sys.executable, str(TASKS / "make_data.py"), *words], check=True)
    return folder


def evaluate(folder, run, output, processes=1):
    """Run the command of lmms-eval; return the scores and the samples of each task, in order."""
    launch = ["-m", "accelerate.commands.launch", "--cpu", "--num_processes", str(processes), "-m", "lmms_eval"]
    words = ["--model", "divot", "--model_args", f"pretrained={run}", "--device", "cpu", "--batch_size", "3"]
    words += ["--tasks", ",".join(SCORES), "--include_path", str(TASKS), "--log_samples", "--output_path", str(output)]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "hf"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *launch, *words], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    [results] = output.rglob("*_results.json")
    scores = {task: json.loads(results.read_text())["results"][task][f"{name},none"] for task, name in SCORES.items()}
    samples = {}
    for task in SCORES:
        [file] = output.rglob(f"*_samples_{task}.jsonl")
        rows = [json.loads(line) for line in file.read_text().splitlines()]
        samples[task] = {row["doc_id"]: row for row in rows}
    return scores, samples


def ask_in_rounds(pipeline, video):
    """Ask as `divot_toy_rounds` does: the second question names the shape that was the first answer."""
    shape = pipeline.ask(video, "what shape is it ?", max_new_tokens=8).text
    later = [f"what colour is the {shape} ?", "where does it move ?"]
    return [shape, *(pipeline.ask(video, question, max_new_tokens=8).text for question in later)]


def test_scores_are_those_of_the_pipeline_on_any_number_of_processes(folder, llm_run, tmp_path):  # noqa: F811
    rows = [json.loads(line) for line in (folder / "data/lmms_eval_toy/questions.jsonl").read_text().splitlines()]
    pipeline = DivotPipeline.from_pretrained(llm_run)
    texts = [pipeline.ask(row["video"], row["question"], max_new_tokens=8).text for row in rows]
    chosen = []
    for row in rows:
        losses = [score.loss for score in pipeline.score_answers(row["video"], row["question"], row["options"])]
        chosen.append(losses.index(min(losses)))
    right = sum(text == row["answer"] for text, row in zip(texts, rows, strict=True)) / len(rows)
    accuracy = sum(option == row["gold"] for option, row in zip(chosen, rows, strict=True)) / len(rows)
    docs = [json.loads(line) for line in (folder / "data/lmms_eval_toy/rounds.jsonl").read_text().splitlines()]
    rounds = [ask_in_rounds(pipeline, doc["video"]) for doc in docs]
    known = [[doc["shape"], doc["colour"], doc["direction"]] for doc in docs]
    hits = [said == truth for pair in zip(rounds, known, strict=True) for said, truth in zip(*pair, strict=True)]
    for processes in (1, 2):
        scores, samples = evaluate(folder, llm_run, tmp_path / str(processes), processes)
        assert scores["divot_toy_video"] == pytest.approx(right)
        assert scores["divot_toy_choice"] == pytest.approx(accuracy)
        said = [samples["divot_toy_video"][number]["filtered_resps"] for number in range(len(rows))]
        assert said == texts
        assert len(samples["divot_toy_frames"]) == len(rows)
        assert [samples["divot_toy_rounds"][number]["filtered_resps"] for number in range(len(docs))] == rounds
        assert scores["divot_toy_rounds"] == pytest.approx(sum(hits) / len(hits))


def test_rounds_about_the_same_media_encode_it_once(folder, llm_run, monkeypatch):  # noqa: F811
    from divot_lmms_eval.model import DivotModel
    from lmms_eval.api.instance import Instance

    encoded, rounds = [], []
    real = DivotPipeline.encode
    monkeypatch.setattr(
        DivotPipeline, "encode", lambda self, media, **options: encoded.append(media) or real(self, media, **options)
    )
    first, second = [str(file) for file in sorted((folder / "data/lmms_eval_toy").glob("*.mp4"))[:2]]
    media = [[first], [first], [second]]

    def to_round(doc, previous_output, round_idx, previous_round_info):
        rounds.append((len(previous_output), round_idx, previous_round_info))
        if round_idx == len(media):
            return None, None, True, previous_output, None
        return media[round_idx], "where does it move ?", False, previous_output, f"after {round_idx}"

    arguments = ("what shape is it ?", {"max_new_tokens": 3}, lambda doc: media[0], to_round, 0, "toy", "test")
    about = {"task": "toy", "doc_id": 0, "repeats": 1}
    model = DivotModel(str(llm_run), device="cpu")
    model.task_dict = {"toy": {"test": [{}]}}
    request = Instance("generate_until_multi_round", arguments, 0, about)
    [answers] = model.generate_until_multi_round([request])
    assert len(answers) == 3
    assert encoded == [[first], [second]]
    assert rounds == [(1, 1, None), (2, 2, "after 1"), (3, 3, "after 2")]
