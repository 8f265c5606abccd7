"""How a clip is asked for: the words of the request, and whether the model opens the clip by itself.

No torch in here.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, TypeVar

import numpy as np

from divot_datamodules.tasks.built_in import GenerateTask
from divot_lightning.errors import UserError, require_at_least
from divot_lightning.inference.command_options import check_top_p
from divot_lightning.parts.segments import Segment
from divot_lightning.parts.tasks import Task, Template

AnyTask = TypeVar("AnyTask", bound=Task)


def task_of(kind: Callable[..., AnyTask], template: Template, settings: Mapping[str, Any]) -> AnyTask:
    """Build a task as a run's config has it.

    Args:
        kind: Its class.
        template: The form of the prompts.
        settings: Its settings in the config.

    Raises:
        UserError: It does not take these settings.
    """
    try:
        return kind(template, **settings)
    except TypeError as error:
        raise UserError(f"the run's config.yaml has a task with settings that it does not take: {error}") from error


@dataclass(frozen=True)
class ClipOpening:
    """How the model writes until it opens the clip with ``<vid>`` or ``<img>``; the defaults are the released code's.

    Attributes:
        max_new_tokens: Most tokens before the clip, at least 1.
        text_temperature: Of the words; 0 takes the most likely one each time.
        top_p: Only the most likely words that together reach this probability can be sampled; above 0, at most 1.
    """

    max_new_tokens: int = 256
    text_temperature: float = 0.7
    top_p: float = 0.5

    def __post_init__(self) -> None:
        require_at_least(1, max_new_tokens=self.max_new_tokens)
        require_at_least(0, text_temperature=self.text_temperature)
        check_top_p(self.top_p)


@dataclass(frozen=True)
class ClipRequest:
    """How a clip is asked for.

    Attributes:
        phrase: The user's turn, with `{}` for the text; None takes a phrase of the run's own task `generate`.
        opening: How the model writes until it opens the clip; None opens the clip for it.
        task_settings: Settings of the task `generate` that the run was trained on.
    """

    phrase: str | None = None
    opening: ClipOpening | None = None
    task_settings: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def released(cls) -> "ClipRequest":
        """Return the request of the released `eval_Divot_video_gen.py`, with its text before the clip."""
        return cls("Generate a video of {}", ClipOpening())

    def describe(self) -> dict[str, Any]:
        """Return what differs from the run's own request, as JSON values."""
        opening = None if self.opening is None else asdict(self.opening)
        given = {"request": self.phrase, "opening": opening}
        return {name: value for name, value in given.items() if value is not None}

    def segments(self, text: str, template: Template) -> list[Segment]:
        """Return the segments that ask for a clip, as a training sample with this caption has them.

        Args:
            text: Caption of the clip.
            template: The form of the prompts that the model was trained on.

        Returns:
            The segments, the clip to generate last.

        Raises:
            UserError: The template has no user's turn, so that a phrase or an opening has no effect.
        """
        settings = self.task_settings if self.phrase is None else {"video_prompts": [self.phrase]}
        task = task_of(GenerateTask, template, settings)
        if task.is_bare and (self.phrase is not None or self.opening is not None):
            raise UserError(
                f"the prompts of this run are bare (template: {template}), so it has learned no request and opens no "
                "clip\nleave both settings out, or give the template that the run was trained with"
            )
        return task.segments({"caption": text}, np.random.default_rng(0))
