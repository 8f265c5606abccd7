import numpy as np
import pytest

from divot_datamodules import tasks
from divot_datamodules.tasks import MissingText
from divot_lightning.models.sequences import Clips, Text

SAMPLE = {
    "caption": " a red circle moves ",
    "questions": [{"question": "what colour ?", "answer": "red"}, {"question": "what shape ?", "answer": "circle"}],
    "story": {"instruction": "tell of a circle", "texts": ["it came", "it went"]},
}


def rng(seed=0):
    return np.random.default_rng(seed)


def joined(segments):
    return "".join(segment.text if isinstance(segment, Text) else f"<{segment.count}>" for segment in segments)


def test_pretraining_forms_are_bare():
    caption = "a red circle moves"
    assert tasks.caption_segments(SAMPLE, rng(), num_clips=3) == [Clips(3, "read"), Text(caption, True)]
    assert tasks.generation_segments(SAMPLE, rng()) == [Text(caption, False), Clips(1, "generate")]
    question, answer = ("what shape ?", "circle") if rng().integers(2) else ("what colour ?", "red")
    assert tasks.question_segments(SAMPLE, rng()) == [Clips(1, "read"), Text(question, False), Text(answer, True)]


def test_instruction_forms_follow_the_template():
    caption = tasks.caption_segments(SAMPLE, rng(), template="instruction")
    assert joined(caption) in {f"[INST] <1> {i} [/INST]\na red circle moves" for i in tasks.CAPTION_INSTRUCTIONS}
    generation = tasks.generation_segments(SAMPLE, rng(), template="instruction")
    assert joined(generation) in {f"[INST] {p} a red circle moves [/INST]\n<1>" for p in tasks.VIDEO_PREFIXES}
    question = tasks.question_segments(SAMPLE, rng(), template="instruction")
    assert joined(question) in {
        f"[INST] <1> {turn['question']} [/INST]\n{turn['answer']}" for turn in SAMPLE["questions"]
    }


@pytest.mark.parametrize("task", ["caption", "question"])
@pytest.mark.parametrize("template", ["pretraining", "instruction"])
def test_only_answers_are_learned_in_comprehension(task, template):
    segments = tasks.TASKS[task](SAMPLE, rng(), template=template)
    assert [segment.learn for segment in segments] == [False] * (len(segments) - 1) + [True]


def test_the_tokens_that_announce_a_clip_are_learned_in_the_instruction_form_only():
    assert tasks.generation_segments(SAMPLE, rng(), template="pretraining")[-1].learn is False
    assert tasks.generation_segments(SAMPLE, rng(), template="instruction")[-1].learn is True


def test_pictures_are_asked_for_as_pictures():
    segments = tasks.generation_segments(SAMPLE, rng(), template="instruction", kind="image")
    assert segments[-1] == Clips(1, "generate", "image", learn=True)
    assert any(segments[0].text.startswith(f"[INST] {prefix}") for prefix in tasks.IMAGE_PREFIXES)


def test_stories_alternate_sentences_and_clips():
    segments = tasks.story_segments(SAMPLE, rng(), template="instruction", num_clips=2)
    assert joined(segments) == "[INST] tell of a circle [/INST]\nit came<1>it went<1>"
    assert [segment.learn for segment in segments] == [False, True, True, True, True]


def test_every_question_comes_up():
    seen = {tasks.question_segments(SAMPLE, rng(seed))[1].text for seed in range(20)}
    assert seen == {"what colour ?", "what shape ?"}


def test_a_single_question_may_stand_beside_the_caption():
    sample = {"question": "who ?", "answer": "she"}
    assert tasks.question_segments(sample, rng())[1:] == [Text("who ?", False), Text("she", True)]


@pytest.mark.parametrize(
    ("task", "sample", "message"),
    [
        ("caption", {}, "no caption"),
        ("caption", {"caption": "  "}, "no caption"),
        ("generate", {"caption": 3}, "no caption"),
        ("question", {"caption": "x"}, "no question"),
        ("question", {"questions": [{"question": "x"}]}, "no question"),
        ("story", {"story": {"texts": []}}, "no story"),
        ("story", SAMPLE, "2 texts and 1 clips"),
    ],
)
def test_missing_texts_are_named(task, sample, message):
    with pytest.raises(MissingText, match=message):
        tasks.TASKS[task](sample, rng())
