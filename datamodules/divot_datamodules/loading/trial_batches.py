"""The kinds of training steps of a recipe, with a batch of each, for `divot preflight`."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from divot_datamodules.shards.source_settings import SourceConfig
from divot_datamodules.tasks.mixture import TasksSetting, task_weights


@dataclass(frozen=True)
class StepKind:
    """One kind of training step.

    Attributes:
        sources: Names of its sources.
        batch_size: Samples of a step, in all processes together.
        share: Fraction of all steps.
        tasks: Tasks with their weights, as text; "" for stages without texts.
    """

    sources: tuple[str, ...]
    batch_size: int
    share: float
    tasks: str

    @property
    def name(self) -> str:
        """Name for reports: its sources and tasks."""
        return ", ".join(self.sources) + (f" ({self.tasks})" if self.tasks else "")


@dataclass(frozen=True)
class TrialBatch:
    """A batch of one kind of step.

    Attributes:
        kind: The kind of step.
        batch: A `divot_lightning.parts.batch.Batch` of one process, as a plain dict.
    """

    kind: StepKind
    batch: dict[str, Any]


def step_kinds(sources: Sequence[SourceConfig], tasks: TasksSetting | None, batch_size: int) -> list[StepKind]:
    """Return the kinds of steps: one for each source that has a batch size of its own, else one.

    Args:
        sources: The sources of the training data.
        tasks: Tasks of sources that have none of their own.
        batch_size: Batch size of sources that have none of their own.

    >>> step_kinds([SourceConfig("a.tar"), SourceConfig("b.tar", tasks={"caption": 1.0})], {"generate": 1.0}, 8)
    [StepKind(sources=('a.tar', 'b.tar'), batch_size=8, share=1.0, tasks='generate 1; caption 1')]
    """
    words = [_in_words(source.tasks if source.tasks is not None else tasks) for source in sources]
    if any(source.batch_size is None for source in sources):
        return [StepKind(tuple(source.name for source in sources), batch_size, 1.0, "; ".join(dict.fromkeys(words)))]
    total = sum(source.weight for source in sources)
    return [
        StepKind((source.name,), source.batch_size or 0, source.weight / total, text)
        for source, text in zip(sources, words, strict=True)
    ]


def _in_words(tasks: TasksSetting | None) -> str:
    return ", ".join(f"{name} {weight:g}" for name, weight in task_weights(tasks or {}).items())
