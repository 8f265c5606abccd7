"""What a sample teaches: its texts and clips as segments, for each task and template.

Pretraining forms are bare: clips then caption, caption then clip. Instruction forms follow Divot's template
`[INST] <instruction> [/INST] <answer>` (arXiv:2412.04432, appendix A.2), with the clips before the first question.
What is learned is stated by the segments: captions and answers; of a generated clip in the instruction form also the
tokens that announce it, so that the model learns to begin a clip by itself.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np

from divot_lightning.parts.segments import Clips, Kind, Segment, Text

Template = Literal["pretraining", "instruction"]

CAPTION_INSTRUCTIONS = (
    "Describe the video .",
    "What happens in the video ?",
    "Write a caption for this video .",
    "Tell me what the video shows .",
)
VIDEO_PREFIXES = (
    "Generate a video of",
    "Create a video of",
    "Make a video of",
    "Produce a short clip of",
    "Show me a video of",
    "I want to see a video of",
)
IMAGE_PREFIXES = (
    "Generate an image of",
    "Create a picture of",
    "Draw an image of",
    "Show me a picture of",
)
INSTRUCTION_BEGIN, INSTRUCTION_END = "[INST] ", " [/INST]\n"

SPEAKERS = {"human": "human", "user": "human", "gpt": "gpt", "assistant": "gpt"}
"""Who speaks in a turn of "conversations", by the names that published data use."""

_MEDIA_PLACEHOLDER = re.compile(r"<(?:video|image)>")


class MissingText(Exception):
    """A sample has no text for a task.

    Attributes:
        detail: Which text.
        reason: "missing_caption", "missing_question" or "missing_story".
    """

    def __init__(self, detail: str, reason: str) -> None:
        super().__init__(detail, reason)
        self.detail, self.reason = detail, reason


def _pick(choices: tuple[str, ...], rng: np.random.Generator) -> str:
    return choices[int(rng.integers(len(choices)))]


def _caption(sample: Mapping[str, Any]) -> str:
    caption = sample.get("caption")
    if not isinstance(caption, str) or not caption.strip():
        raise MissingText("no caption", "missing_caption")
    return caption.strip()


def _asked(clips: Clips, instruction: str) -> list[Segment]:
    """Clips and an instruction about them, as the user says it."""
    return [Text(INSTRUCTION_BEGIN, learn=False), clips, Text(f" {instruction}{INSTRUCTION_END}", learn=False)]


def caption_segments(
    sample: Mapping[str, Any],
    rng: np.random.Generator,
    *,
    template: Template = "pretraining",
    num_clips: int = 1,
    kind: Kind = "video",
) -> list[Segment]:
    """Build "read the clips, write the caption".

    Args:
        sample: The sample's json with "caption".
        rng: Draws among phrasings of the instruction.
        template: Bare, or as an instruction.
        num_clips: Clips of the sample.
        kind: "video" or "image".
    """
    caption = Text(_caption(sample), learn=True)
    clips = Clips(num_clips, "read", kind)
    if template == "pretraining":
        return [clips, caption]
    return [*_asked(clips, _pick(CAPTION_INSTRUCTIONS, rng)), caption]


def generation_segments(
    sample: Mapping[str, Any],
    rng: np.random.Generator,
    *,
    template: Template = "pretraining",
    num_clips: int = 1,
    kind: Kind = "video",
) -> list[Segment]:
    """Build "read the caption, generate the clip"; arguments as for `caption_segments`.

    One clip is generated however many a sample has, as in the paper (section 3.2); see `ONE_CLIP_TASKS`.
    """
    caption = _caption(sample)
    if template == "pretraining":
        return [Text(caption, learn=False), Clips(1, "generate", kind)]
    prefix = _pick(IMAGE_PREFIXES if kind == "image" else VIDEO_PREFIXES, rng)
    prompt = Text(f"{INSTRUCTION_BEGIN}{prefix} {caption}{INSTRUCTION_END}", learn=False)
    return [prompt, Clips(1, "generate", kind, learn=True)]


def _turns(sample: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return a sample's questions with their answers, in order."""
    if "conversations" in sample:
        return _released_turns(sample["conversations"])
    listed = sample.get("questions") or ([sample] if "question" in sample else [])
    if not isinstance(listed, list):
        raise MissingText(f"questions are a {type(listed).__name__}, not a list", "missing_question")
    pairs = [(turn.get("question"), turn.get("answer")) for turn in listed if isinstance(turn, Mapping)]
    found = [(q.strip(), a.strip()) for q, a in pairs if isinstance(q, str) and isinstance(a, str)]
    if not any(q and a for q, a in found):
        raise MissingText("no question with an answer", "missing_question")
    return [(q, a) for q, a in found if q and a]


def _released_turns(said: Any) -> list[tuple[str, str]]:
    """Read the form that LLaVA's and Divot's data have: [{"from": "human", "value": "<video> what ?"}, ...].

    Where the media stand is decided by the task, so their placeholders are dropped. A turn that is not a question
    followed by its answer makes the whole sample unusable, since the turns behind it would answer something else.
    """
    values = [turn.get("value") for turn in said if isinstance(turn, Mapping)] if isinstance(said, list) else []
    speakers = [SPEAKERS.get(str(turn.get("from"))) for turn in said if isinstance(turn, Mapping)] if values else []
    if not values or speakers != ["human", "gpt"] * (len(said) // 2):
        raise MissingText("conversations are not turns of human and gpt, one after the other", "missing_question")
    texts = [_MEDIA_PLACEHOLDER.sub("", value).strip() if isinstance(value, str) else "" for value in values]
    if not all(texts):
        raise MissingText(f"turn {texts.index('')} of the conversation is empty", "missing_question")
    return list(zip(texts[::2], texts[1::2], strict=True))


def question_segments(
    sample: Mapping[str, Any],
    rng: np.random.Generator,
    *,
    template: Template = "pretraining",
    num_clips: int = 1,
    kind: Kind = "video",
) -> list[Segment]:
    """Build "read the clips, answer one question", drawn from the sample's.

    Args:
        sample: The sample's json with "questions", a list of {"question", "answer"}, or one "question" and "answer",
            or "conversations", a list of {"from": "human" or "gpt", "value"}.
        rng: Draws the question.
        template: Bare, or as an instruction.
        num_clips: Clips of the sample.
        kind: "video" or "image".
    """
    turns = _turns(sample)
    return _conversation([turns[int(rng.integers(len(turns)))]], Clips(num_clips, "read", kind), template)


def conversation_segments(
    sample: Mapping[str, Any],
    rng: np.random.Generator,
    *,
    template: Template = "pretraining",
    num_clips: int = 1,
    kind: Kind = "video",
) -> list[Segment]:
    """Build "read the clips, answer all questions, one after the other".

    Args:
        sample: See `question_segments`.
        rng: Unused; all turns are taken in their order.
        template: Bare, or as instructions.
        num_clips: Clips of the sample; they stand before the first question.
        kind: "video" or "image".
    """
    return _conversation(_turns(sample), Clips(num_clips, "read", kind), template)


def _conversation(turns: Sequence[tuple[str, str]], clips: Clips, template: Template) -> list[Segment]:
    """Questions and answers in turn; an answer ends as it would if nothing followed, so that answering stops there."""
    segments: list[Segment] = []
    for number, (question, answer) in enumerate(turns):
        first, last = number == 0, number == len(turns) - 1
        if template == "pretraining":
            segments += [*([clips] if first else []), Text(question, learn=False)]
        elif first:
            segments += _asked(clips, question)
        else:
            segments.append(Text(f"{INSTRUCTION_BEGIN}{question}{INSTRUCTION_END}", learn=False))
        segments.append(Text(answer, learn=True, ends=not last))
    return segments


def story_segments(
    sample: Mapping[str, Any],
    rng: np.random.Generator,
    *,
    template: Template = "pretraining",
    num_clips: int = 1,
    kind: Kind = "video",
) -> list[Segment]:
    """Build an instruction followed by sentences and clips in turn, all learned but the instruction.

    Args:
        sample: The sample's json with "story": {"instruction", "texts"}, one text per clip.
        rng: Unused; stories have one form.
        template: Bare, or with the instruction in the template.
        num_clips: Clips of the sample; as many as texts.
        kind: "video" or "image".
    """
    story = sample.get("story")
    texts = story.get("texts") if isinstance(story, Mapping) else None
    if not isinstance(texts, list) or not texts or not all(isinstance(text, str) for text in texts):
        raise MissingText("no story with texts", "missing_story")
    if len(texts) != num_clips:
        raise MissingText(f"a story of {len(texts)} texts and {num_clips} clips", "missing_story")
    instruction = str(story.get("instruction", "")) if isinstance(story, Mapping) else ""
    if template == "instruction":
        instruction = f"{INSTRUCTION_BEGIN}{instruction}{INSTRUCTION_END}"
    segments: list[Segment] = [Text(instruction, learn=False)]
    for text in texts:
        segments += [Text(text, learn=True), Clips(1, "generate", kind, learn=True)]
    return segments


TASKS: dict[str, Callable[..., list[Segment]]] = {
    "caption": caption_segments,
    "generate": generation_segments,
    "question": question_segments,
    "conversation": conversation_segments,
    "story": story_segments,
}
"""Task by the name that recipes use."""

ONE_CLIP_TASKS = frozenset({"generate"})
"""Tasks that use one of a sample's clips, which is drawn; the others use all, in order."""
