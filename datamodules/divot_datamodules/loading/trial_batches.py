"""What kinds of training steps a recipe has, with a batch of each, for `divot preflight`."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from divot_datamodules.shards.source_settings import Source


@dataclass(frozen=True)
class StepKind:
    """One kind of training step.

    Attributes:
        sources: Its sources, by name.
        batch_size: Samples of a step, all processes together.
        share: Of the steps.
        tasks: With their weights, in words; "" for stages without texts.
    """

    sources: tuple[str, ...]
    batch_size: int
    share: float
    tasks: str

    @property
    def name(self) -> str:
        """How it is called."""
        return ", ".join(self.sources) + (f" ({self.tasks})" if self.tasks else "")


@dataclass(frozen=True)
class TrialBatch:
    """A batch of a kind of steps.

    Attributes:
        kind: The kind.
        batch: One process's batch.
    """

    kind: StepKind
    batch: dict[str, Any]


def step_kinds(sources: Sequence[Source], tasks: dict[str, float] | None, batch_size: int) -> list[StepKind]:
    """Return the kinds of steps: one for each source that has a batch size of its own, else one.

    Args:
        sources: Of the training data.
        tasks: Of sources that name none.
        batch_size: Of steps that sources share.

    >>> step_kinds([Source("a.tar"), Source("b.tar", tasks={"caption": 1.0})], {"generate": 1.0}, 8)
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


def _in_words(tasks: dict[str, float] | None) -> str:
    return ", ".join(f"{name} {weight:g}" for name, weight in (tasks or {}).items())
