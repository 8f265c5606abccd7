"""Generate from text: the video LLM predicts the features of clips, or tells a story of sentences and clips.

Shape letters: M prompts, Q tokens per clip, C feature width.
"""

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from divot_datamodules.tasks.built_in import StoryTask
from divot_lightning.errors import UserError, require_at_least
from divot_lightning.inference.clip_requests import ClipOpening, ClipRequest
from divot_lightning.inference.unknown_words import warn_of_unknown_words
from divot_lightning.models.randomness import seeded_generator
from divot_lightning.models.video_llm.model import VideoLLM
from divot_lightning.models.video_llm.story import StorySampling, StoryStep
from divot_lightning.parts.segments import Segment, Text
from divot_lightning.parts.tasks import Template

if TYPE_CHECKING:
    from divot_lightning.inference.loaded_run import LoadedRun

logger = logging.getLogger(__name__)


def generate_clip_features(
    video_llm: VideoLLM,
    texts: Sequence[str],
    *,
    template: Template = "pretraining",
    request: ClipRequest | None = None,
    temperature: float = 1.0,
    seed: int = 0,
    batch_size: int = 64,
) -> Tensor:
    """Predict the features of one clip per text; log a warning about words that the text tokenizer does not know.

    Args:
        video_llm: In evaluation mode.
        texts: Captions of the clips; a text may occur several times.
        template: The form of the prompts that the model was trained on.
        request: How the clips are asked for. If the model opens them by itself, texts are taken one by one.
        temperature: Spread of the features that the head samples.
        seed: Of the sampling of words and features.
        batch_size: Texts at a time.

    Returns:
        features_MQC, unnormalised, float32, on the CPU.
    """
    request = request or ClipRequest()
    warn_of_unknown_words(video_llm.text_tokenizer, [[Text(text, learn=False)] for text in dict.fromkeys(texts)])
    generator = seeded_generator(seed, video_llm.feature_mean_C.device)
    prompts = [request.segments(text, template) for text in texts]
    if request.opening is not None:
        return _opened_by_model(video_llm, prompts, request.opening, temperature, generator)
    parts = [
        video_llm.generate_features(prompts[start : start + batch_size], temperature=temperature, generator=generator)
        for start in range(0, len(texts), batch_size)
    ]
    return torch.cat([part.float().cpu() for part in parts])


def _opened_by_model(
    video_llm: VideoLLM,
    prompts: Sequence[list[Segment]],
    opening: ClipOpening,
    temperature: float,
    generator: torch.Generator,
) -> Tensor:
    """Let the model write until it opens a clip, and generate the clip given that text; see `generate_clip_features`.

    If the model opens none, the clip is opened for it after what it wrote, and a warning says how often that happened.
    """
    sampling = StorySampling(opening.max_new_tokens, opening.text_temperature, opening.top_p, temperature)
    features, unopened = [], 0
    for prompt in prompts:
        steps = video_llm.generate_story(prompt[:-1], num_clips=1, sampling=sampling, generator=generator)
        features_QC = steps[0].features_QC if steps else None
        if features_QC is None:
            unopened += 1
            written: list[Segment] = [Text(step.text, learn=False) for step in steps]
            opened = [[*prompt[:-1], *written, prompt[-1]]]
            features_QC = video_llm.generate_features(opened, temperature=temperature, generator=generator)[0]
        features.append(features_QC.float().cpu())
    if unopened:
        logger.warning("%d of %d clips: the model opened none by itself; opened for it.", unopened, len(prompts))
    return torch.stack(features)


def write_story(
    models: "LoadedRun", instruction: str, num_clips: int, sampling: StorySampling, generator: torch.Generator
) -> list[StoryStep]:
    """Let a video LLM tell a story; log a warning if it was not trained to, or stops before there are enough clips.

    Args:
        models: A run that was trained on the task `story`.
        instruction: What the story is about.
        num_clips: Most clips.
        sampling: How words and features are sampled.
        generator: Source of randomness on the model's device.

    Returns:
        Sentences and features of clips, in order.
    """
    if models.tasks and "story" not in models.tasks:
        tasks = ", ".join(sorted(models.tasks))
        logger.warning("this run was trained on %s, not on the task story; its stories may mean nothing.", tasks)
    segments = StoryTask(models.template).user_turn(instruction)
    warn_of_unknown_words(models.video_llm.text_tokenizer, [segments])
    steps = models.video_llm.generate_story(segments, num_clips=num_clips, sampling=sampling, generator=generator)
    found = sum(step.features_QC is not None for step in steps)
    if found < num_clips:
        cut = any(step.is_cut for step in steps)
        reason = f"wrote {sampling.max_new_tokens} tokens without opening a clip" if cut else "ended the story"
        logger.warning("%d of %d clips: the model %s.", found, num_clips, reason)
    return steps


def check_request(texts: Sequence[str], num: int, temperature: float = 1.0) -> None:
    """Refuse empty texts, a number of clips below 1 and a negative temperature."""
    require_at_least(1, **{"the number of clips": num})
    require_at_least(0, temperature=temperature)
    if isinstance(texts, str) or not texts or not all(text.strip() for text in texts):
        raise UserError("there is no text, or an empty one; say in words what the clips show")
