"""Everything that prompts the model warns of words that it reads as <unk>, once for each word."""

import logging

import numpy as np
import pytest
import torch

from divot_datamodules.decoding.video_writing import write_video
from divot_datamodules.toy.text_tokenizer import toy_text_tokenizer, toy_texts
from divot_lightning.inference.ask import answer, question_prompt
from divot_lightning.inference.loaded_run import LoadedRun
from divot_lightning.inference.pipeline import DivotPipeline
from divot_lightning.inference.run_config import run_tasks
from divot_lightning.inference.unknown_words import MOST_NAMED, unknown_words, warn_of_unknown_words
from divot_lightning.parts.segments import Clips, Text


@pytest.fixture
def tokenizer():
    return toy_text_tokenizer()


@pytest.mark.parametrize(
    "text",
    ["What colour is the shape ?", "What color is the shape?", "a purple dog and a purple cat", ""],
)
def test_words_are_unknown_if_they_are_not_in_the_vocabulary(tokenizer, text):
    texts = {word for known in toy_texts() for word in known.split()}
    assert unknown_words(tokenizer, text) == [word for word in dict.fromkeys(text.split()) if word not in texts]


def test_a_tokenizer_without_an_unknown_token_knows_everything():
    class Bytes:
        unk_token_id = None

    assert unknown_words(Bytes(), "anything") == []


def test_each_word_is_named_once_and_their_number_is_bounded(tokenizer, caplog):
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            warn_of_unknown_words(tokenizer, [[Text("a zebra\x1b[2J", False), Clips(1, "read")]])
        assert len(caplog.records) == 1
        assert "does not know 'zebra\\\\x1b[2J'; the model reads <unk>" in caplog.text
        for number in range(100):
            warn_of_unknown_words(tokenizer, [[Text(f"word{number}", False)]])
    assert len(caplog.records) == MOST_NAMED + 1
    assert "not named any more" in caplog.records[-1].getMessage()


def test_answering_and_generating_warn(llm_run, tmp_path, caplog):
    models = LoadedRun(llm_run)
    prompt = question_prompt("What color is it ?", 1, "pretraining")
    features = models.encode(torch.zeros(1, 16, 3, 32, 32, dtype=torch.uint8))
    with caplog.at_level(logging.WARNING):
        answer(models.video_llm, [prompt], [features], max_new_tokens=1)
        assert "'color'" in caplog.text
        list(models.generate(["a purple giraffe"]))
    assert "'giraffe'" in caplog.text


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ("tasks: {question: 1.0}", {"question"}),
        ("train: [{path: a, tasks: {caption: 1.0}}, {path: b}], tasks: {generate: 1.0}", {"caption", "generate"}),
        ("train: [a, b], tasks: {question: 1.0}", {"question"}),
        ("tasks: null", set()),
    ],
)
def test_the_tasks_of_a_run_are_those_of_all_its_sources(tmp_path, settings, expected):
    assert run_tasks(tmp_path) == {}
    (tmp_path / "config.yaml").write_text(f"data: {{class_path: x.Y, init_args: {{{settings}}}}}")
    assert set(run_tasks(tmp_path)) == expected


@pytest.mark.parametrize(
    ("tasks", "questions", "warned"),
    [
        ({"question"}, [""], True),
        ({"question"}, ["What colour is it ?"], False),
        ({"question", "caption"}, [""], False),
        ({"conversation"}, [""], False),
        ((), [""], False),
    ],
)
def test_a_run_that_learned_questions_alone_says_so_when_it_is_asked_none(
    llm_run, tmp_path, caplog, tasks, questions, warned
):
    pipeline = DivotPipeline.from_pretrained(llm_run)
    pipeline.models.tasks = {task: {} for task in tasks}
    video = write_video(tmp_path / "v.mp4", np.zeros((16, 3, 32, 32), np.uint8), 8)
    with caplog.at_level(logging.WARNING):
        assert len(pipeline.ask(video, questions)) == 1
    assert ("trained on the task question, not to describe videos" in caplog.text) == warned
