"""Check the contract of a task, by a test class to subclass."""

import copy
import json
from abc import ABC, abstractmethod
from typing import Any, ClassVar

import numpy as np
import torch

from divot_datamodules.decoding.samples import Sample
from divot_datamodules.tasks.mixture import TaskMixture
from divot_lightning.parts.registries.kinds import TASKS
from divot_lightning.parts.registries.registry import class_path
from divot_lightning.parts.segments import Clips, Kind, Segment, Text
from divot_lightning.parts.sources import SampleError
from divot_lightning.parts.tasks import Task, Template

BEGIN, END = "<<user ", " end>>"
TEMPLATES = ("pretraining", "instruction", "chat", f"{BEGIN}{{}}{END}")


class TaskConformance(ABC):
    """Test a task against the contract. Pytest collects the subclass if its name starts with `Test`.

        class TestMyTask(TaskConformance):
            def make_task(self, template):
                return MyTask(template)

            def make_text(self):
                return {"caption": "a dog runs", "count": 3}

    Attributes:
        num_clips: Clips of the sample that `make_text` describes.
        has_prompt: Whether the user's turn has text, so that it stands in the template.
    """

    num_clips: ClassVar[int] = 1
    has_prompt: ClassVar[bool] = True

    @abstractmethod
    def make_task(self, template: Template) -> Task:
        """Build the task under test with a template."""

    @abstractmethod
    def make_text(self) -> dict[str, Any]:
        """Return the json of a sample that the task can use."""

    def test_segments_are_texts_and_all_clips(self) -> None:
        """Nothing but `Text` and `Clips`; the clips are those of the sample, of its kind."""
        for template in TEMPLATES:
            self._check_clips(template, "video")
            self._check_clips(template, "image")

    def _check_clips(self, template: Template, kind: Kind) -> None:
        segments = self._segments(template, kind=kind)
        assert segments, "there are no segments"
        assert all(isinstance(segment, Text | Clips) for segment in segments), f"not only Text and Clips: {segments}"
        clips = [segment for segment in segments if isinstance(segment, Clips)]
        found = sum(one.count for one in clips)
        assert found == self._given_clips(), f"the segments have {found} clips, the sample has {self._given_clips()}"
        assert {one.kind for one in clips} <= {kind}, f"the clips of an {kind} are called {clips}"

    def test_something_is_learned(self) -> None:
        """A text, or a clip to generate, is a target."""
        for segments in map(self._segments, TEMPLATES):
            learned = [s for s in segments if s.learn or (isinstance(s, Clips) and s.role == "generate")]
            assert learned, f"nothing is learned from {segments}"

    def test_texts_hold_something(self) -> None:
        """An empty text would be a segment without a token."""
        for segments in map(self._segments, TEMPLATES):
            texts = [segment.text for segment in segments if isinstance(segment, Text)]
            assert all(isinstance(text, str) and text for text in texts), f"a text is empty: {texts}"

    def test_the_user_s_turn_stands_in_the_template(self) -> None:
        """What comes before and after the `{}` of a template of one's own is in the segments, and is not learned."""
        texts = [segment for segment in self._segments(TEMPLATES[-1]) if isinstance(segment, Text)]
        begins, ends = ([text for text in texts if mark in text.text] for mark in (BEGIN, END))
        assert len(begins) == len(ends) >= int(self.has_prompt), f"the template is not around the prompt: {texts}"
        assert not any(text.learn for text in [*begins, *ends]), "the template is learned"

    def test_random_choices_follow_the_generator(self) -> None:
        """Equal generators give equal segments, whatever was built before."""
        task = self.make_task("instruction")
        for seed in range(8):
            one, two = (self._segments("instruction", task=task, seed=seed) for _ in range(2))
            assert one == two, "segments depend on more than the sample and the generator"

    def test_the_sample_stays_as_it_is(self) -> None:
        """The decoded sample is kept in memory, and is used again."""
        text = self.make_text()
        before = copy.deepcopy(text)
        self.make_task("instruction").segments(text, np.random.default_rng(0), num_clips=self._given_clips())
        assert text == before, "the task changes the sample"

    def test_a_sample_without_texts_is_a_missing_text(self) -> None:
        """Then another task of the mixture is tried, or the sample is skipped and counted."""
        for task in map(self.make_task, TEMPLATES):
            reason, detail = _refusal(task, self._given_clips())
            assert reason.startswith("missing_"), f"the reason is {reason!r}; see Task.segments"
            assert detail, "the error does not say what is missing"

    def test_settings_build_the_task_again(self) -> None:
        """A recipe's class path and settings give the same segments, in a mixture with the task's weight."""
        task = self.make_task("instruction")
        settings = json.loads(json.dumps(task.init_args))
        assert "template" not in settings, "template is a setting; the suite supplies it"
        again = TASKS.build(class_path(type(task)), settings, template="instruction")
        assert self._segments("instruction", task=again) == self._segments("instruction", task=task)

    def test_a_mixture_takes_the_task(self) -> None:
        """Its segments use the clips that the mixture gives with them."""
        task = self.make_task("pretraining")
        mixture = TaskMixture({class_path(type(task)): {"weight": 2.0, "init_args": task.init_args}})
        sample = Sample("key", self.make_text(), features=torch.zeros(self.num_clips, 1, 1))
        segments, chosen = mixture.segments_and_clips(sample, np.random.default_rng(0))
        count = sum(segment.count for segment in segments if isinstance(segment, Clips))
        assert count == len(range(self.num_clips)[chosen])

    def _given_clips(self) -> int:
        return 1 if self.make_task("pretraining").uses_one_clip else self.num_clips

    def _segments(
        self, template: Template, *, kind: Kind = "video", task: Task | None = None, seed: int = 0
    ) -> list[Segment]:
        task = task or self.make_task(template)
        return task.segments(self.make_text(), np.random.default_rng(seed), num_clips=self._given_clips(), kind=kind)


def _refusal(task: Task, num_clips: int) -> tuple[str, str]:
    """Return reason and detail of the error for a sample without texts; raise an AssertionError if there is none."""
    try:
        segments = task.segments({}, np.random.default_rng(0), num_clips=num_clips)
    except SampleError as error:
        return error.reason, error.detail
    raise AssertionError(f"a sample without texts has segments: {segments}")
