import numpy as np
import pytest

from divot_datamodules.tasks import segments as tasks
from divot_datamodules.tasks.segments import MissingText
from divot_lightning.parts.segments import Clips, Text

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


def test_pictures_are_prompted_for_as_pictures():
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


RELEASED = {
    "conversations": [
        {"from": "human", "value": "<video>\nwhat colour ?"},
        {"from": "gpt", "value": "red"},
        {"from": "human", "value": "what shape ?"},
        {"from": "gpt", "value": "circle"},
    ]
}


@pytest.mark.parametrize("sample", [SAMPLE, RELEASED])
def test_a_conversation_has_all_turns_behind_the_clips_and_teaches_all_answers(sample):
    segments = tasks.conversation_segments(sample, rng(), template="instruction", num_clips=3)
    assert joined(segments) == "[INST] <3> what colour ? [/INST]\nred[INST] what shape ? [/INST]\ncircle"
    assert [segment.text for segment in segments if segment.learn] == ["red", "circle"]
    bare = tasks.conversation_segments(sample, rng())
    assert joined(bare) == "<1>what colour ?redwhat shape ?circle"


def test_every_answer_of_a_conversation_ends_and_the_last_one_with_the_sequence():
    answers = [segment for segment in tasks.conversation_segments(SAMPLE, rng()) if segment.learn]
    assert [answer.ends for answer in answers] == [True, False]


@pytest.mark.parametrize("sample", [SAMPLE, RELEASED])
def test_a_sampled_question_has_the_form_of_the_released_data_or_of_ours(sample):
    seen = {joined(tasks.question_segments(sample, rng(seed))) for seed in range(20)}
    assert seen == {"<1>what colour ?red", "<1>what shape ?circle"}


def turns(*said):
    return {"conversations": [{"from": speaker, "value": value} for speaker, value in said]}


@pytest.mark.parametrize(
    ("sample", "message"),
    [
        ({"conversations": "what ?"}, "not turns"),
        ({"conversations": []}, "not turns"),
        ({"conversations": [3]}, "not turns"),
        (turns(("human", "a")), "not turns"),
        (turns(("gpt", "a"), ("human", "b")), "not turns"),
        (turns(("human", "a"), ("gpt", "b"), ("gpt", "c"), ("human", "d")), "not turns"),
        (turns(("human", "a"), ("gpt", " ")), "turn 1 .* is empty"),
        (turns(("human", "<video>\n"), ("gpt", "a")), "turn 0 .* is empty"),
        (turns(("human", "a"), ("gpt", 5)), "turn 1 .* is empty"),
    ],
)
def test_conversations_that_make_no_sense_are_missing(sample, message):
    for task in ("question", "conversation"):
        with pytest.raises(MissingText, match=message) as caught:
            tasks.TASKS[task](sample, rng())
        assert caught.value.reason == "missing_question"


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
