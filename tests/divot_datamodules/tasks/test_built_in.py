import numpy as np
import pytest

from divot_datamodules.tasks import built_in as tasks
from divot_lightning.errors import UserError
from divot_lightning.parts.registries.kinds import TASKS
from divot_lightning.parts.segments import Clips, Text
from divot_lightning.parts.sources import SampleError

SAMPLE = {
    "caption": " a red circle moves ",
    "questions": [{"question": "what colour ?", "answer": "red"}, {"question": "what shape ?", "answer": "circle"}],
    "story": {"instruction": "tell of a circle", "texts": ["it came", "it went"]},
}


def rng(seed=0):
    return np.random.default_rng(seed)


def segments_of(task, sample, rng, template="pretraining", **media):
    return TASKS.load(task)(template).segments(sample, rng, **media)


def joined(segments):
    return "".join(segment.text if isinstance(segment, Text) else f"<{segment.count}>" for segment in segments)


def test_pretraining_forms_are_bare():
    caption = "a red circle moves"
    assert segments_of("caption", SAMPLE, rng(), num_clips=3) == [Clips(3, "read"), Text(caption, True)]
    assert segments_of("generate", SAMPLE, rng()) == [Text(caption, False), Clips(1, "generate")]
    question, answer = ("what shape ?", "circle") if rng().integers(2) else ("what colour ?", "red")
    assert segments_of("question", SAMPLE, rng()) == [Clips(1, "read"), Text(question, False), Text(answer, True)]


def test_instruction_forms_follow_the_template():
    caption = segments_of("caption", SAMPLE, rng(), template="instruction")
    assert joined(caption) in {f"[INST] <1> {i} [/INST]\na red circle moves" for i in tasks.CAPTION_PROMPTS}
    generation = segments_of("generate", SAMPLE, rng(), template="instruction")
    assert joined(generation) in {f"[INST] {p.format('a red circle moves')} [/INST]\n<1>" for p in tasks.VIDEO_PROMPTS}
    question = segments_of("question", SAMPLE, rng(), template="instruction")
    assert joined(question) in {
        f"[INST] <1> {turn['question']} [/INST]\n{turn['answer']}" for turn in SAMPLE["questions"]
    }


@pytest.mark.parametrize("task", ["caption", "question"])
@pytest.mark.parametrize("template", ["pretraining", "instruction"])
def test_only_answers_are_learned_in_comprehension(task, template):
    segments = segments_of(task, SAMPLE, rng(), template=template)
    assert [segment.learn for segment in segments] == [False] * (len(segments) - 1) + [True]


def test_the_tokens_that_announce_a_clip_are_learned_in_the_instruction_form_only():
    assert segments_of("generate", SAMPLE, rng(), template="pretraining")[-1].learn is False
    assert segments_of("generate", SAMPLE, rng(), template="instruction")[-1].learn is True


def test_pictures_are_prompted_for_as_pictures():
    segments = segments_of("generate", SAMPLE, rng(), template="instruction", kind="image")
    assert segments[-1] == Clips(1, "generate", "image", learn=True)
    assert segments[0].text in {f"[INST] {p.format('a red circle moves')} [/INST]\n" for p in tasks.IMAGE_PROMPTS}


def test_stories_alternate_sentences_and_clips():
    segments = segments_of("story", SAMPLE, rng(), template="instruction", num_clips=2)
    assert joined(segments) == "[INST] tell of a circle [/INST]\nit came<1>it went<1>"
    assert [segment.learn for segment in segments] == [False, True, True, True, True]


def test_every_question_comes_up():
    seen = {segments_of("question", SAMPLE, rng(seed))[1].text for seed in range(20)}
    assert seen == {"what colour ?", "what shape ?"}


def test_a_single_question_may_stand_beside_the_caption():
    sample = {"question": "who ?", "answer": "she"}
    assert segments_of("question", sample, rng())[1:] == [Text("who ?", False), Text("she", True)]


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
    segments = segments_of("conversation", sample, rng(), template="instruction", num_clips=3)
    assert joined(segments) == "[INST] <3> what colour ? [/INST]\nred[INST] what shape ? [/INST]\ncircle"
    assert [segment.text for segment in segments if segment.learn] == ["red", "circle"]
    bare = segments_of("conversation", sample, rng())
    assert joined(bare) == "<1>what colour ?redwhat shape ?circle"


def test_every_answer_of_a_conversation_ends_and_the_last_one_with_the_sequence():
    answers = [segment for segment in segments_of("conversation", SAMPLE, rng()) if segment.learn]
    assert [answer.ends for answer in answers] == [True, False]


@pytest.mark.parametrize("sample", [SAMPLE, RELEASED])
def test_a_sampled_question_has_the_form_of_the_released_data_or_of_ours(sample):
    seen = {joined(segments_of("question", sample, rng(seed))) for seed in range(20)}
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
        with pytest.raises(SampleError, match=message) as caught:
            segments_of(task, sample, rng())
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
    with pytest.raises(SampleError, match=message):
        segments_of(task, sample, rng())


@pytest.mark.parametrize(
    "sample",
    [
        {"questions": ["<image> what ?", "where ?"], "answers": ["a dog", "here"]},
        {"data": ["<image>\nwhat ?", "a dog", "where ?", "here"]},
    ],
)
def test_lists_of_the_released_data_are_turns(sample):
    said = [part.text for part in segments_of("conversation", sample, rng()) if isinstance(part, Text)]
    assert said == ["what ?", "a dog", "where ?", "here"]


@pytest.mark.parametrize(
    "sample",
    [
        {"questions": ["what ?", "where ?"], "answers": ["a dog"]},
        {"questions": ["what ?"], "answers": [" "]},
        {"data": ["what ?"]},
        {"data": []},
        {"questions": "what ?", "answers": ["a dog"]},
    ],
)
def test_lists_that_do_not_fit_are_missing(sample):
    with pytest.raises(SampleError) as caught:
        segments_of("question", sample, rng())
    assert caught.value.reason == "missing_question"


def test_each_caption_of_a_list_comes_up():
    task = TASKS.build("caption", {}, template="pretraining")
    found = {task.segments({"caption": ["one", "two"]}, rng(seed))[1].text for seed in range(20)}
    assert found == {"one", "two"}
    with pytest.raises(SampleError, match="no caption"):
        task.segments({"caption": []}, rng())


def test_a_conversation_of_the_released_form_ends_once():
    task = TASKS.build("conversation", {"end_after": "last", "separator": "\n"}, template="instruction")
    segments = task.segments({"questions": ["what ?", "where ?"], "answers": ["a dog", "here"]}, rng())
    assert not any(part.ends for part in segments if isinstance(part, Text))
    written = "".join(part.text for part in segments if isinstance(part, Text))
    assert written == "[INST]  what ? [/INST]\na dog\n[INST] where ? [/INST]\nhere"
    with pytest.raises(UserError, match="end_after is 'all'; choose one of: every, last"):
        TASKS.build("conversation", {"end_after": "all"}, template="instruction")


def test_phrases_may_stand_in_a_file(tmp_path):
    file = tmp_path / "phrases.txt"
    file.write_text("Generate a video of {}\n\nFilm {}\n")
    task = TASKS.build("generate", {"video_prompts": str(file)}, template="instruction")
    assert task.prompts["video"] == ["Generate a video of {}", "Film {}"]
    with pytest.raises(UserError, match=r"no\.txt.*cannot be read"):
        TASKS.build("generate", {"video_prompts": str(tmp_path / "no.txt")}, template="instruction")
