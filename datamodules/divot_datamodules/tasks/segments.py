"""Tasks: a sample's texts and clips as segments, for each task and template.

Pretraining forms are bare: clips then caption, or caption then clip. Instruction forms follow Divot's template
`[INST] <instruction> [/INST] <answer>` (arXiv:2412.04432, appendix A.2), with the clips before the first question.
Each segment says whether the model learns to predict it: captions and answers are learned. In the instruction form, the
tokens that begin a generated clip are learned as well, so that the model learns to begin a clip by itself.
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
"""Speaker of a turn of "conversations", by its name in published data."""

_MEDIA_PLACEHOLDER = re.compile(r"<(?:video|image)>")


class MissingText(Exception):
    """A sample has no text for a task.

    Attributes:
        detail: The text that is missing.
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


def _prompt(clips: Clips, instruction: str) -> list[Segment]:
    """Return the segments of a user's turn: clips and an instruction about them."""
    return [Text(INSTRUCTION_BEGIN, learn=False), clips, Text(f" {instruction}{INSTRUCTION_END}", learn=False)]


def caption_segments(
    sample: Mapping[str, Any],
    rng: np.random.Generator,
    *,
    template: Template = "pretraining",
    num_clips: int = 1,
    kind: Kind = "video",
) -> list[Segment]:
    """Build the task "read the clips, write the caption".

    Args:
        sample: The sample's json with "caption".
        rng: Samples the wording of the instruction.
        template: Bare, or as an instruction.
        num_clips: Number of clips of the sample.
        kind: "video" or "image".
    """
    caption = Text(_caption(sample), learn=True)
    clips = Clips(num_clips, "read", kind)
    if template == "pretraining":
        return [clips, caption]
    return [*_prompt(clips, _pick(CAPTION_INSTRUCTIONS, rng)), caption]


def generation_segments(
    sample: Mapping[str, Any],
    rng: np.random.Generator,
    *,
    template: Template = "pretraining",
    num_clips: int = 1,
    kind: Kind = "video",
) -> list[Segment]:
    """Build the task "read the caption, generate the clip"; arguments as for `caption_segments`.

    One clip is generated, for any number of clips in the sample, as in the paper (section 3.2); see `ONE_CLIP_TASKS`.
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


def _released_turns(turns: Any) -> list[tuple[str, str]]:
    """Read the format of LLaVA's and Divot's data: [{"from": "human", "value": "<video> what ?"}, ...].

    The task decides the position of the media, so their placeholders are removed. If the turns are not questions each
    followed by its answer, the whole sample is unusable, since later answers would belong to other questions.
    """
    values = [turn.get("value") for turn in turns if isinstance(turn, Mapping)] if isinstance(turns, list) else []
    speakers = [SPEAKERS.get(str(turn.get("from"))) for turn in turns if isinstance(turn, Mapping)] if values else []
    if not values or speakers != ["human", "gpt"] * (len(turns) // 2):
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
    """Build the task "read the clips, answer one question", with a random one of the sample's questions.

    Args:
        sample: The sample's json with "questions", a list of {"question", "answer"}, or one "question" and "answer",
            or "conversations", a list of {"from": "human" or "gpt", "value"}.
        rng: Samples the question.
        template: Bare, or as an instruction.
        num_clips: Number of clips of the sample.
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
    """Build the task "read the clips, answer all questions, one after the other".

    Args:
        sample: See `question_segments`.
        rng: Unused; all turns are taken in their order.
        template: Bare, or as instructions.
        num_clips: Number of clips of the sample; they are before the first question.
        kind: "video" or "image".
    """
    return _conversation(_turns(sample), Clips(num_clips, "read", kind), template)


def _conversation(turns: Sequence[tuple[str, str]], clips: Clips, template: Template) -> list[Segment]:
    """Return questions and answers in turn. Each answer has an end token, so that the model learns to stop after it."""
    segments: list[Segment] = []
    for number, (question, answer) in enumerate(turns):
        first, last = number == 0, number == len(turns) - 1
        if template == "pretraining":
            segments += [*([clips] if first else []), Text(question, learn=False)]
        elif first:
            segments += _prompt(clips, question)
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
    """Build the task "read an instruction, write sentences and generate clips in turn"; only the instruction is given.

    Args:
        sample: The sample's json with "story": {"instruction", "texts"}, one text per clip.
        rng: Unused; stories have one form.
        template: Bare, or with the instruction in the template.
        num_clips: Number of clips of the sample; equal to the number of texts.
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
"""Tasks that use a random one of a sample's clips; the others use all clips, in order."""
