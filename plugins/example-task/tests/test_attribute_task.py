"""The task keeps the contract of a task, and `divot fit` trains on it by its name alone."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from divot_task_attribute import AttributeTask

from divot_lightning.cli.main import main
from divot_lightning.errors import UserError
from divot_lightning.parts.segments import Clips, Text
from divot_lightning.testing import TaskConformance
from divot_lightning.testing.toy_shards import make_toy_shards

SAMPLE = {"attributes": {"colour": "red", "shape": "circle"}}


class TestAttributeTask(TaskConformance):
    """The contract of a task."""

    num_clips = 2

    def make_task(self, template):
        """All attributes."""
        return AttributeTask(template)

    def make_text(self):
        """Two attributes."""
        return SAMPLE


def test_the_attribute_of_the_question_is_the_answer():
    """With one attribute and one phrase nothing is left to chance."""
    task = AttributeTask("USER: {} ASSISTANT: ", attributes=["shape"], prompts=["Which {} ?"])
    assert task.segments(SAMPLE, np.random.default_rng(0)) == [
        Text("USER: ", learn=False),
        Clips(1, "read"),
        Text(" Which shape ? ASSISTANT: ", learn=False),
        Text("circle", learn=True),
    ]


def test_every_attribute_comes_up():
    """Over some generators."""
    answers = {AttributeTask().segments(SAMPLE, np.random.default_rng(seed))[-1].text for seed in range(20)}
    assert answers == {"red", "circle"}


def test_divot_fit_trains_on_it_by_name(tmp_path, monkeypatch):
    """Two steps of the toy captioner, with phrases and a template from the command line."""
    monkeypatch.chdir(tmp_path)
    make_toy_shards("data", train=8, validation=4)
    task = {"weight": 1.0, "init_args": {"attributes": ["colour"], "prompts": ["Name the {} ."]}}
    tasks = ["--data.tasks", json.dumps({"attribute": task}), "--data.template", "USER: {} ASSISTANT: "]
    assert main([*words("run"), *tasks]) == 0
    header, *rows = Path("run/metrics.csv").read_text().splitlines()
    losses = [float(row.split(",")[header.split(",").index("train/loss")]) for row in rows]
    assert len(losses) == 2
    assert all(map(math.isfinite, losses))


def test_a_misspelt_name_is_refused_before_any_step(tmp_path, monkeypatch):
    """The message lists what is installed."""
    monkeypatch.chdir(tmp_path)
    make_toy_shards("data", train=8, validation=4)
    with pytest.raises(UserError, match=r"task 'attributee' is not installed; .*mean 'attribute'\?"):
        main([*words("run"), "--data.tasks", json.dumps({"attributee": 1.0})])


def words(run):
    """The words of a run of two steps."""
    data = ["--data.train", "data/train", "--data.validation", "null", "--data.batch_size", "4"]
    steps = ["--trainer.max_steps", "2", "--trainer.log_every_n_steps", "1", "--trainer.enable_progress_bar", "false"]
    text_tokenizer = ["--model.llm.text_tokenizer", "data/text_tokenizer"]
    return ["fit", "--config", "toy/captioning_pretraining", "--run", run, *data, *steps, *text_tokenizer]
