"""Questions about videos, answered by a trained video LLM.

Shape letters: N clips of a video, F frames, H height, W width, Q tokens per clip, C feature width.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from divot_datamodules.decoding.clip_sampling import MAX_CLIPS, ClipConfig, clip_times, image_clip
from divot_datamodules.decoding.video import IMAGE_SUFFIXES, DecodeError, Pixels, decode_frames, probe
from divot_datamodules.tasks.built_in import CaptionTask, QuestionTask
from divot_lightning.checkpoint.components import find_component, load_component
from divot_lightning.errors import UserError
from divot_lightning.inference.run_config import load_tokenizer, run_clip_config, run_tasks, run_template
from divot_lightning.inference.unknown_words import warn_of_unknown_words
from divot_lightning.models.clip_encoding import encode_clips
from divot_lightning.models.tokenizer.video_tokenizer import VideoTokenizer
from divot_lightning.models.video_llm.model import VideoLLM
from divot_lightning.parts.segments import Kind, Segment
from divot_lightning.parts.tasks import Template

logger = logging.getLogger(__name__)

CAPTION_TASKS = frozenset({"caption", "conversation"})
"""Tasks that teach a model to describe a video: published conversations ask for descriptions, questions do not."""

NO_TARGET = "-"
"""Fills the target text, which a training sample must have; prompts are cut before it, so no model sees it."""


def read_video(path: str | Path, clip: ClipConfig, max_clips: int = MAX_CLIPS) -> tuple[Pixels, Kind]:
    """Read all clips of a video, or a picture as one clip.

    Args:
        path: The file.
        clip: How clips are cut.
        max_clips: Most clips.

    Returns:
        uint8 (N, F, 3, H, W), and what the file is.

    Raises:
        UserError: The file is missing, or no clip can be read from it; the message says why.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"there is no file {path}")
    try:
        if path.suffix.lower().lstrip(".") in IMAGE_SUFFIXES:
            return image_clip(path, clip).video[None], "image"
        times = clip_times(probe(path).duration, clip, max_clips)
        moments = [time for clip_moments in times for time in clip_moments]
        frames = decode_frames(path, moments, clip.size, resize=clip.resize)
    except DecodeError as error:
        raise UserError(f"{path} gives no clip: {error}") from error
    return frames.reshape(len(times), clip.frames, *frames.shape[1:]), "video"


def question_prompt(question: str, num_clips: int, template: Template, kind: Kind = "video") -> list[Segment]:
    """Return the prompt for a question: the segments before the answer in a training sample.

    Args:
        question: The question.
        num_clips: Clips of the video.
        template: The form of the prompts that the model was trained on.
        kind: "video" or "image".

    Returns:
        The segments.
    """
    sample = {"question": question, "answer": NO_TARGET}
    return QuestionTask(template).segments(sample, np.random.default_rng(0), num_clips=num_clips, kind=kind)[:-1]


def caption_prompt(num_clips: int, template: Template, kind: Kind = "video") -> list[Segment]:
    """Return the prompt for a caption, see ``question_prompt`` for the arguments."""
    sample = {"caption": NO_TARGET}
    return CaptionTask(template).segments(sample, np.random.default_rng(0), num_clips=num_clips, kind=kind)[:-1]


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
        features: For each prompt the features of its clips, (N, Q, C), unnormalised.
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
        texts = video_llm.generate_text(
            [prompts[row] for row in rows],
            torch.cat([features[row] for row in rows]),
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            top_p=top_p,
            generator=generator,
        )
        for row, text in zip(rows, texts, strict=True):
            answers[row] = text
    return answers


@dataclass
class QuestionAnswerer:
    """A tokenizer and a video LLM that fit together, ready to answer.

    Attributes:
        tokenizer: In evaluation mode.
        video_llm: In evaluation mode.
        clip: How clips are cut.
        template: The form of the prompts that the model was trained on.
        tasks: The tasks that it was trained on last; empty if the run does not name them.
    """

    tokenizer: VideoTokenizer
    video_llm: VideoLLM
    clip: ClipConfig
    template: Template = "pretraining"
    tasks: frozenset[str] = frozenset()

    @classmethod
    def from_run(cls, run: str | Path, *, template: Template | None = None, device: str = "cpu") -> "QuestionAnswerer":
        """Load both from a run that trained a video LLM.

        Args:
            run: Run folder.
            template: None takes the run's.
            device: Where the models run.

        Returns:
            The models, ready to answer.
        """
        tokenizer = load_tokenizer(run)
        video_llm = load_component(find_component(run, "video_llm"), VideoLLM).eval().use_stored_precision()
        clip = run_clip_config(run, tokenizer.config)
        return cls(tokenizer.to(device), video_llm.to(device), clip, template or run_template(run), run_tasks(run))

    def encode(self, video_NFCHW: Tensor) -> Tensor:
        """Return the features of clips: uint8 (N, F, 3, H, W) in, (N, Q, C) float32 on the CPU out."""
        return encode_clips(self.tokenizer, video_NFCHW).cpu()

    def answer_questions(self, path: str | Path, questions: Sequence[str], *, max_clips: int = MAX_CLIPS) -> list[str]:
        """Answer questions about one video or picture.

        Args:
            path: The file.
            questions: The questions; "" asks for a caption, with a warning if the model was trained on no task that has
                captions.
            max_clips: Most clips of a video.

        Returns:
            One answer per question.
        """
        if "" in questions and self.tasks and not self.tasks & CAPTION_TASKS:
            logger.warning(
                "this run was trained on the task%s %s, not to describe videos: its answers without a question may "
                "mean nothing. Ask what it has learned, with --question.",
                "s" * (len(self.tasks) > 1),
                ", ".join(sorted(self.tasks)),
            )
        video, kind = read_video(path, self.clip, max_clips)
        features = self.encode(torch.from_numpy(np.ascontiguousarray(video)))
        prompts = [
            question_prompt(question, len(features), self.template, kind)
            if question
            else caption_prompt(len(features), self.template, kind)
            for question in questions
        ]
        return answer(self.video_llm, prompts, [features] * len(questions))
