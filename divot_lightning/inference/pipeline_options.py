"""Options of `DivotPipeline`: how a de-tokenizer samples, and the types of its keyword arguments."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, TypeAlias, TypedDict

from divot_lightning.inference.clip_requests import ClipRequest
from divot_lightning.inference.results import Answer
from divot_lightning.models.detokenizer.sampling import SamplingConfig
from divot_lightning.models.detokenizer.video_detokenizer import VideoDetokenizer
from divot_lightning.models.video_llm.story import StorySampling
from divot_lightning.parts.sampling import changed_objective


@dataclass(frozen=True)
class Decoding:
    """How the de-tokenizer samples; None takes its own setting.

    Attributes:
        steps: Denoising steps, at least 1.
        guidance: Scale of the classifier-free guidance; 1 is none.
        sampler: Name of the solver: "dpm_solver", "unipc", or "ddim", of a flow "euler". Or settings of the
            objective's sampler by name, such as {"solver": "unipc", "spacing": "trailing"}.
    """

    steps: int | None = None
    guidance: float | None = None
    sampler: str | Mapping[str, Any] | None = None

    @contextmanager
    def applied(self, detokenizer: VideoDetokenizer) -> Iterator[SamplingConfig]:
        """Return steps and guidance, and change the settings of the objective's sampler for a while."""
        changes = {"steps": self.steps, "guidance": self.guidance}
        sampler = {"solver": self.sampler} if isinstance(self.sampler, str) else self.sampler
        with changed_objective(detokenizer, sampler or {}):
            sampling = replace(
                detokenizer.config.sampling,
                **{name: value for name, value in changes.items() if value is not None},  # type: ignore[arg-type]
            )
            detokenizer.objective.sampler(sampling.steps)  # refuses steps that it cannot sample in
            yield sampling


Texts: TypeAlias = list[str] | tuple[str, ...]
"""Several texts; a text alone is a sequence of texts, too."""


class AskOptions(TypedDict, total=False):
    """Options of `DivotPipeline.ask`, described there."""

    history: Sequence[Answer]
    max_clips: int
    max_new_tokens: int
    temperature: float
    top_p: float
    seed: int


class GenerateOptions(TypedDict, total=False):
    """Options of `DivotPipeline.generate`, described there."""

    num: int
    seed: int
    request: ClipRequest | None
    temperature: float
    variance_scale: float | None
    head: Mapping[str, Any] | None
    decoding: Decoding | None


class StoryOptions(TypedDict, total=False):
    """Options of `DivotPipeline.story`, described there."""

    seed: int
    sampling: StorySampling | None
    decoding: Decoding | None
