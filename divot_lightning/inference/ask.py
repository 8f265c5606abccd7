"""Questions about videos, answered by a trained video LLM.

Shape letters: N clips of a video, Q tokens per clip, C feature width.
"""

import logging
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import groupby
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from divot_datamodules.tasks.built_in import CaptionTask, ConversationTask
from divot_lightning.inference.clip_requests import task_of
from divot_lightning.inference.unknown_words import warn_of_unknown_words
from divot_lightning.models.video_llm.model import VideoLLM
from divot_lightning.parts.segments import Clips, Kind, Segment, Text
from divot_lightning.parts.tasks import Template

if TYPE_CHECKING:
    from divot_lightning.inference.loaded_run import LoadedRun

logger = logging.getLogger(__name__)

TaskSettings: TypeAlias = Mapping[str, Mapping[str, Any]]
"""Settings of tasks by their names, see `divot_lightning.inference.run_config.run_tasks`."""

CAPTION_TASKS = frozenset({"caption", "conversation"})
"""Tasks that teach a model to describe a video: published conversations ask for descriptions, questions do not."""

NO_TARGET = "-"
"""Fills the target text, which a training sample must have; prompts are cut before it, so no model sees it."""


def question_prompt(
    question: str,
    num_clips: int,
    template: Template,
    kind: Kind = "video",
    history: Sequence[tuple[str, str]] = (),
    tasks: TaskSettings | None = None,
) -> list[Segment]:
    """Return the prompt for a question: the segments before the answer in a training sample.

    Args:
        question: The question.
        num_clips: Clips of the video.
        template: The form of the prompts that the model was trained on.
        kind: "video" or "image".
        history: Earlier questions about the same clips, with their answers.
        tasks: Settings of the run's tasks, of which those of `conversation` count.

    Returns:
        The segments.
    """
    task, segments = task_of(ConversationTask, template, (tasks or {}).get("conversation", {})), list[Segment]()
    turns = [*history, (question, "")]
    for number, (words, answer) in enumerate(turns):
        if number and task.separator:
            segments.append(Text(task.separator, learn=False))
        segments += task.user_turn(words.strip(), Clips(num_clips, "read", kind) if number == 0 else None)
        if number < len(turns) - 1:
            segments.append(Text(answer, learn=True, ends=task.ends))
    return segments


def caption_prompt(
    num_clips: int, template: Template, kind: Kind = "video", tasks: TaskSettings | None = None
) -> list[Segment]:
    """Return the prompt for a caption, see ``question_prompt`` for the arguments."""
    sample = {"caption": NO_TARGET}
    task = task_of(CaptionTask, template, (tasks or {}).get("caption", {}))
    return task.segments(sample, np.random.default_rng(0), num_clips=num_clips, kind=kind)[:-1]


def media_prompt(
    question: str,
    kinds: Sequence[Kind],
    template: Template,
    history: Sequence[tuple[str, str]] = (),
    tasks: TaskSettings | None = None,
) -> list[Segment]:
    """Return the prompt for a question, or for a caption if it is blank, about clips of any kinds.

    Args:
        question: The question.
        kinds: Kind of each clip. Neighbours of one kind stand between one pair of tokens, as in a training sample.
            Without clips the question is asked of the language model alone.
        template: The form of the prompts that the model was trained on.
        history: See ``question_prompt``.
        tasks: Settings of the run's tasks, with which the prompt is written as in training.
    """
    if not kinds:
        return task_of(ConversationTask, template, (tasks or {}).get("conversation", {})).user_turn(question.strip())
    if question.strip() or history:
        segments = question_prompt(question, len(kinds), template, kinds[0], history, tasks)
    else:
        segments = caption_prompt(len(kinds), template, kinds[0], tasks)
    groups: list[Segment] = [Clips(len(list(group)), "read", kind) for kind, group in groupby(kinds)]
    first = next(index for index, segment in enumerate(segments) if isinstance(segment, Clips))
    return [*segments[:first], *groups, *segments[first + 1 :]]


def warn_of_missing_captions(tasks: TaskSettings) -> None:
    """Log a warning if a caption is requested of a model that was trained on other tasks.

    Args:
        tasks: The tasks that it was trained on last; empty if they are not known.
    """
    if tasks and not CAPTION_TASKS & set(tasks):
        logger.warning(
            "this run was trained on the task%s %s, not to describe videos: its answers without a question may "
            "mean nothing. Ask what it has learned, with --question.",
            "s" * (len(tasks) > 1),
            ", ".join(sorted(tasks)),
        )


def answer(
    video_llm: VideoLLM,
    prompts: Sequence[list[Segment]],
    features: Sequence[Tensor],
    *,
    max_new_tokens: int = 64,
    temperature: float = 0.0,
    top_p: float = 1.0,
    generator: torch.Generator | None = None,
    batch_size: int = 64,
) -> list[str]:
    """Answer prompts in batches of similar length; log a warning about words that the text tokenizer does not know.

    Args:
        video_llm: In evaluation mode.
        prompts: From ``question_prompt`` or ``caption_prompt``.
        features: For each prompt the features of its clips, (N, Q, C), unnormalised. Where it is the same tensor for
            all prompts of a batch, the clips are read once.
        max_new_tokens: Most tokens per answer.
        temperature: 0 takes the most likely token each time.
        top_p: Tokens are sampled from the most likely ones that together reach this probability.
        generator: Source of randomness on the model's device.
        batch_size: Prompts at a time.

    Returns:
        One text per prompt.
    """
    warn_of_unknown_words(video_llm.text_tokenizer, prompts)
    order = sorted(range(len(prompts)), key=lambda row: len(features[row]))
    answers = [""] * len(prompts)
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        same_clips = len(rows) > 1 and all(features[row] is features[rows[0]] for row in rows)
        texts = video_llm.generate_text(
            [prompts[row] for row in rows],
            torch.cat([features[row] for row in (rows[:1] if same_clips else rows)]),
            same_clips=same_clips,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            top_p=top_p,
            generator=generator,
        )
        for row, text in zip(rows, texts, strict=True):
            answers[row] = text
    return answers


def answer_each(
    models: "LoadedRun",
    prompts: Sequence[list[Segment]],
    features_NQC: Tensor,
    seeds: Sequence[int],
    *,
    max_new_tokens: int,
    temperature: float,
    top_p: float,
) -> list[str]:
    """Answer prompts about the same clips, each as it is answered alone.

    Args:
        models: The models.
        prompts: As for `answer`.
        features_NQC: Features of the clips.
        seeds: Of each prompt's sampling, of no effect at temperature 0.
        max_new_tokens: As for `answer`.
        temperature: As for `answer`.
        top_p: As for `answer`.

    Returns:
        One text per prompt.
    """
    ask = partial(answer, models.video_llm, max_new_tokens=max_new_tokens)
    if not temperature:
        return ask(prompts, [features_NQC] * len(prompts))
    ask = partial(ask, temperature=temperature, top_p=top_p)
    pairs = zip(prompts, seeds, strict=True)
    return [ask([prompt], [features_NQC], generator=models.generator(seed))[0] for prompt, seed in pairs]
