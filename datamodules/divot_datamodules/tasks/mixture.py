"""The tasks of a recipe with their weights, one of which is sampled for each sample."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np

from divot_datamodules.decoding.samples import Item, Sample
from divot_lightning.errors import UserError
from divot_lightning.parts.registries.kinds import TASKS
from divot_lightning.parts.segments import Segment, Text
from divot_lightning.parts.sources import SampleError
from divot_lightning.parts.tasks import Task, Template

# Texts come before Any: under Any alone, jsonargparse reads "Film this: {}" of a saved config as a mapping.
TasksSetting: TypeAlias = dict[str, float | dict[str, float | dict[str, str | list[str] | Any]]]
"""Tasks of a recipe: by name their weight, or {"weight": ..., "init_args": {...}} for a task with settings. The name is
an entry point's, or a class path."""

MAX_TEXT_CHARACTERS = 2**20
"""Longest text of a sample, all texts that its task uses together: some 250,000 tokens, far more than a sequence has. A
text tokenizer needs about 180 bytes for each character (2.6 GB for 15 MB, measured)."""


def task_weights(tasks: TasksSetting) -> dict[str, float]:
    """Return the weight of each task.

    Raises:
        UserError: A weight is not greater than 0, or an entry has other keys.

    >>> task_weights({"caption": 2.0, "generate": {"init_args": {}}})
    {'caption': 2.0, 'generate': 1.0}
    """
    weights = {}
    for name, setting in tasks.items():
        if isinstance(setting, Mapping) and (unknown := set(setting) - {"weight", "init_args"}):
            raise UserError(
                f"tasks gives {name!r} the key {sorted(unknown)[0]!r}; it takes weight and init_args, where the task's "
                f"own settings are given:\n{name}: {{weight: 1.0, init_args: {{...}}}}"
            )
        weight = setting.get("weight", 1.0) if isinstance(setting, Mapping) else setting
        if not isinstance(weight, int | float) or not weight > 0:
            raise UserError(f"tasks gives {name!r} the weight {weight}; it must be greater than 0, or left out.")
        weights[name] = float(weight)
    return weights


@dataclass
class TaskMixture:
    """Samples a task for each sample and builds its segments.

    Attributes:
        setting: The tasks as a recipe has them.
        template: Template of all tasks; see `divot_lightning.parts.tasks.Template`.
        weights: Weight by task name. Only tasks that a sample's texts allow are used for it.
        tasks: The tasks by name.

    Raises:
        UserError: A task is not installed, is broken or does not take its settings, or a weight is not allowed.
    """

    setting: TasksSetting
    template: Template = "pretraining"
    weights: dict[str, float] = field(init=False)
    tasks: dict[str, Task] = field(init=False)

    def __post_init__(self) -> None:
        if not self.setting:
            known = ", ".join(part.name for part in TASKS.installed())
            raise UserError(f"tasks is empty; name at least one of {known} with its weight.")
        self.weights = task_weights(self.setting)
        self.tasks = {name: self._build(name, given) for name, given in self.setting.items()}

    def _build(self, name: str, given: Any) -> Task:
        settings = (given.get("init_args") if isinstance(given, Mapping) else None) or {}
        if not isinstance(settings, Mapping):
            raise UserError(f"tasks gives {name!r} the init_args {settings!r}; they are settings by name.")
        return TASKS.build(name, dict(settings), template=self.template)

    def each(self) -> "list[TaskMixture]":
        """Return a mixture of each task alone."""
        return [TaskMixture({name: setting}, self.template) for name, setting in self.setting.items()]

    def segments_and_clips(self, sample: Sample, rng: np.random.Generator) -> tuple[list[Segment], slice]:
        """Sample a task and build the segments of a sample.

        Args:
            sample: The decoded sample.
            rng: Samples the task, and then the random choices of the task.

        Returns:
            The segments, and the clips of the sample that they use: all, or a random one for tasks of one clip.

        Raises:
            SampleError: The texts allow none of the tasks: "missing_caption", "missing_question" or "missing_story",
                by the first task of the mixture. Or the texts are longer than any sequence: "too_large".
        """
        names = list(self.weights)
        # The order of all tasks is random by weight: if a task is impossible, the others follow by their weights.
        keys = rng.exponential(size=len(names)) / np.array([self.weights[name] for name in names])
        missing: dict[str, SampleError] = {}
        for name in (names[index] for index in np.argsort(keys)):
            task = self.tasks[name]
            num_clips = 1 if task.uses_one_clip else sample.num_clips
            try:
                segments = task.segments(sample.text, rng, num_clips=num_clips, kind=sample.kind)
            except SampleError as error:
                missing[name] = error
                continue
            _refuse_long(segments)
            if num_clips == sample.num_clips:
                return segments, slice(None)
            clip = int(rng.integers(sample.num_clips))
            return segments, slice(clip, clip + 1)
        details = "; ".join(f"{name}: {missing[name].detail}" for name in names)
        raise SampleError(missing[names[0]].reason, details)


def llm_items(sample: Sample, rng: np.random.Generator, mixture: TaskMixture) -> list[Item]:
    """Turn a sample into the item of the LLM stages: segments, and the clips that they use.

    Args:
        sample: A sample with video or features.
        rng: Samples the task, its wording, and the clip of tasks of one clip.
        mixture: The tasks.
    """
    segments, clips = mixture.segments_and_clips(sample, rng)
    media = {"video": sample.video, "features": sample.features, "latents": sample.latents}
    used = {name: value[clips] for name, value in media.items() if value is not None}
    return [{"key": sample.key, "segments": segments, **used}]


def _refuse_long(segments: list[Segment]) -> None:
    length = sum(len(segment.text) for segment in segments if isinstance(segment, Text))
    if length > MAX_TEXT_CHARACTERS:
        raise SampleError("too_large", f"a text of {length} characters; at most {MAX_TEXT_CHARACTERS} are read")
