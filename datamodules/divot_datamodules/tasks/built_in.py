"""The built-in tasks: caption, generate, question, conversation, story.

In pretraining, prompts are bare: clips then caption, or caption then clip. With another template the user's turn stands
in it, with the clips before the first question: `[INST] <instruction> [/INST] <answer>` is Divot's (arXiv:2412.04432,
appendix A.2). Captions and answers are learned. With a template the tokens that begin a generated clip are learned as
well, so that the model learns to begin a clip by itself.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import numpy as np

from divot_lightning.errors import require_one_of
from divot_lightning.parts.segments import Clips, Kind, Segment, Text
from divot_lightning.parts.sources import SampleError
from divot_lightning.parts.tasks import Task, Template, checked_phrases, pick_phrase

CAPTION_PROMPTS = (
    "Describe the video .",
    "What happens in the video ?",
    "Write a caption for this video .",
    "Tell me what the video shows .",
)
VIDEO_PROMPTS = (
    "Generate a video of {}",
    "Create a video of {}",
    "Make a video of {}",
    "Produce a short clip of {}",
    "Show me a video of {}",
    "I want to see a video of {}",
)
IMAGE_PROMPTS = (
    "Generate an image of {}",
    "Create a picture of {}",
    "Draw an image of {}",
    "Show me a picture of {}",
)

SPEAKERS = {"human": "human", "user": "human", "gpt": "gpt", "assistant": "gpt"}
"""Speaker of a turn of "conversations", by its name in published data."""

_MEDIA_PLACEHOLDER = re.compile(r"<(?:video|image)>")


class CaptionTask(Task):
    """Read the clips, write the caption.

    The sample's json has "caption", a text, or a list of texts, of which a random one is taken.

    Args:
        template: See `divot_lightning.parts.tasks.Task`.
        prompts: Instructions, one of which is chosen for each sample; pretraining has none.
    """

    def __init__(self, template: Template = "pretraining", prompts: str | Sequence[str] = CAPTION_PROMPTS) -> None:
        super().__init__(template)
        self.prompts = checked_phrases("prompts", prompts, num_fields=0)

    def segments(
        self, text: Mapping[str, Any], rng: np.random.Generator, *, num_clips: int = 1, kind: Kind = "video"
    ) -> list[Segment]:
        """Build the segments; see `Task.segments`."""
        caption, clips = Text(_caption(text, rng), learn=True), Clips(num_clips, "read", kind)
        return [clips, caption] if self.is_bare else [*self.user_turn(pick_phrase(self.prompts, rng), clips), caption]


class GenerateTask(Task):
    """Read the caption, generate the clip.

    The sample's json has "caption". One clip is generated, whatever the sample has, as in the paper (section 3.2).

    Args:
        template: See `divot_lightning.parts.tasks.Task`.
        video_prompts: Requests for a video, with `{}` for the caption, or a text file with one per line; pretraining
            has the caption alone.
        image_prompts: Requests for an image.
    """

    uses_one_clip: ClassVar[bool] = True

    def __init__(
        self,
        template: Template = "pretraining",
        video_prompts: str | Sequence[str] = VIDEO_PROMPTS,
        image_prompts: str | Sequence[str] = IMAGE_PROMPTS,
    ) -> None:
        super().__init__(template)
        self.prompts: dict[Kind, list[str]] = {
            "video": checked_phrases("video_prompts", video_prompts, num_fields=1),
            "image": checked_phrases("image_prompts", image_prompts, num_fields=1),
        }

    def segments(
        self, text: Mapping[str, Any], rng: np.random.Generator, *, num_clips: int = 1, kind: Kind = "video"
    ) -> list[Segment]:
        """Build the segments; see `Task.segments`."""
        caption = _caption(text, rng)
        prompt = caption if self.is_bare else pick_phrase(self.prompts[kind], rng, caption)
        return [*self.user_turn(prompt), Clips(1, "generate", kind, learn=not self.is_bare)]


class QuestionTask(Task):
    """Read the clips, answer a random one of the sample's questions.

    The sample's json has "questions", a list of {"question", "answer"}, or one "question" and "answer", or
    "conversations", a list of {"from": "human" or "gpt", "value"}, or a form of Divot's data: "questions" and
    "answers", two lists of texts, or "data", a list of question, answer, question, answer, ...

    Args:
        template: See `divot_lightning.parts.tasks.Task`.
        prompts: Phrases around a question, with `{}` for it.
    """

    def __init__(self, template: Template = "pretraining", prompts: str | Sequence[str] = ("{}",)) -> None:
        super().__init__(template)
        self.prompts = checked_phrases("prompts", prompts, num_fields=1)

    def segments(
        self, text: Mapping[str, Any], rng: np.random.Generator, *, num_clips: int = 1, kind: Kind = "video"
    ) -> list[Segment]:
        """Build the segments; see `Task.segments`."""
        turns = _turns(text)
        question, answer = turns[int(rng.integers(len(turns)))]
        prompt = self.user_turn(pick_phrase(self.prompts, rng, question), Clips(num_clips, "read", kind))
        return [*prompt, Text(answer, learn=True)]


class ConversationTask(Task):
    """Read the clips, answer all questions, one after the other.

    The sample's json is that of `QuestionTask`.

    Args:
        template: See `divot_lightning.parts.tasks.Task`.
        end_after: "every" answer has an end token, so that the model learns to stop after it, or only the "last" one,
            as in the released code.
        separator: Text between an answer and the next question; a line break in the released code.
    """

    def __init__(
        self, template: Template = "pretraining", end_after: Literal["every", "last"] = "every", separator: str = ""
    ) -> None:
        super().__init__(template)
        require_one_of(("every", "last"), end_after=end_after)
        self.ends, self.separator = end_after == "every", separator

    def segments(
        self, text: Mapping[str, Any], rng: np.random.Generator, *, num_clips: int = 1, kind: Kind = "video"
    ) -> list[Segment]:
        """Build the segments; see `Task.segments`."""
        turns, segments = _turns(text), list[Segment]()
        for number, (question, answer) in enumerate(turns):
            if number and self.separator:
                segments.append(Text(self.separator, learn=False))
            segments += self.user_turn(question, Clips(num_clips, "read", kind) if number == 0 else None)
            segments.append(Text(answer, learn=True, ends=self.ends and number < len(turns) - 1))
        return segments


class StoryTask(Task):
    """Read an instruction, write sentences and generate clips in turn.

    The sample's json has "story": {"instruction", "texts"}, one text per clip.
    """

    def segments(
        self, text: Mapping[str, Any], rng: np.random.Generator, *, num_clips: int = 1, kind: Kind = "video"
    ) -> list[Segment]:
        """Build the segments; see `Task.segments`."""
        story = text.get("story")
        sentences = story.get("texts") if isinstance(story, Mapping) else None
        if not isinstance(sentences, list) or not sentences or not all(isinstance(part, str) for part in sentences):
            raise SampleError("missing_story", "no story with texts")
        if len(sentences) != num_clips:
            raise SampleError("missing_story", f"a story of {len(sentences)} texts and {num_clips} clips")
        segments = self.user_turn(str(story.get("instruction", "")) if isinstance(story, Mapping) else "")
        for sentence in sentences:
            segments += [Text(sentence, learn=True), Clips(1, "generate", kind, learn=True)]
        return segments


def _caption(text: Mapping[str, Any], rng: np.random.Generator) -> str:
    """Return the caption; of a list of captions, a random one."""
    caption = text.get("caption")
    if isinstance(caption, list):
        caption = caption[int(rng.integers(len(caption)))] if caption else None
    if not isinstance(caption, str) or not caption.strip():
        raise SampleError("missing_caption", "no caption")
    return caption.strip()


def _turns(text: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return a sample's questions with their answers, in order."""
    if "conversations" in text:
        return _llava_turns(text["conversations"])
    if "data" in text or "answers" in text:
        return _released_turns(text)
    listed = text.get("questions") or ([text] if "question" in text else [])
    if not isinstance(listed, list):
        raise SampleError("missing_question", f"questions are a {type(listed).__name__}, not a list")
    pairs = [(turn.get("question"), turn.get("answer")) for turn in listed if isinstance(turn, Mapping)]
    found = [(q.strip(), a.strip()) for q, a in pairs if isinstance(q, str) and isinstance(a, str)]
    if not any(q and a for q, a in found):
        raise SampleError("missing_question", "no question with an answer")
    return [(q, a) for q, a in found if q and a]


def _released_turns(text: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Read the forms of Divot's data: lists "questions" and "answers", or "data": [question, answer, question, ...]."""
    data = text.get("data")
    questions, answers = (data[::2], data[1::2]) if isinstance(data, list) else (text.get("questions"), text["answers"])
    if not (isinstance(questions, list) and isinstance(answers, list) and len(questions) == len(answers)):
        raise SampleError("missing_question", "not as many answers as questions")
    pairs = [
        (q.strip(), a.strip())
        for q, a in zip(questions, answers, strict=True)
        if isinstance(q, str) and isinstance(a, str)
    ]
    if not pairs or len(pairs) < len(questions) or not all(q and a for q, a in pairs):
        raise SampleError("missing_question", "a question or an answer is empty")
    return [(_MEDIA_PLACEHOLDER.sub("", question).strip(), answer) for question, answer in pairs]


def _llava_turns(turns: Any) -> list[tuple[str, str]]:
    """Read the format of LLaVA's data: [{"from": "human", "value": "<video> what ?"}, ...].

    The task decides the position of the media, so their placeholders are removed. If the turns are not questions each
    followed by its answer, the whole sample is unusable, since later answers would belong to other questions.
    """
    values = [turn.get("value") for turn in turns if isinstance(turn, Mapping)] if isinstance(turns, list) else []
    speakers = [SPEAKERS.get(str(turn.get("from"))) for turn in turns if isinstance(turn, Mapping)] if values else []
    if not values or speakers != ["human", "gpt"] * (len(turns) // 2):
        raise SampleError("missing_question", "conversations are not turns of human and gpt, one after the other")
    texts = [_MEDIA_PLACEHOLDER.sub("", value).strip() if isinstance(value, str) else "" for value in values]
    if not all(texts):
        raise SampleError("missing_question", f"turn {texts.index('')} of the conversation is empty")
    return list(zip(texts[::2], texts[1::2], strict=True))
