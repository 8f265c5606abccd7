"""The sources of a recipe: their settings, and the order plan and items that follow from them."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from divot_datamodules.decoding.samples import TaskMixture, llm_items, tokenizer_items
from divot_datamodules.loading.collate import MakeItems
from divot_datamodules.loading.plan_loader import LoadedSource
from divot_datamodules.order.data_position import SourceFacts
from divot_datamodules.order.order_plan import OrderPlan, SourceOrder
from divot_datamodules.shards.sources import SampleSource
from divot_datamodules.tasks.segments import Template
from divot_lightning.errors import UserError


@dataclass(frozen=True)
class Source:
    """One source of a mixture.

    Attributes:
        path: Folder, tar, glob, brace expansion, URL or jsonl, or a list of these.
        weight: Relative frequency among the samples of a step; among the steps, if sources have their own batch sizes.
        tasks: Tasks with their weights; None for the tasks of the data module.
        template: Template of its texts; None for the template of the data module.
        batch_size: Samples of a step of this source alone, in all processes together; None to share steps. Either all
            sources have one or none has.
        max_clips: Most clips of a video; None for the number of the data module.
        media_root: For a jsonl: folder that its relative media paths start from; None for the folder of the jsonl.
    """

    path: str | list[str]
    weight: float = 1.0
    tasks: dict[str, float] | None = None
    template: Template | None = None
    batch_size: int | None = None
    max_clips: int | None = None
    media_root: str | None = None

    @property
    def name(self) -> str:
        """Name for messages."""
        return (
            self.path if isinstance(self.path, str) else f"{self.path[0]} ..." if len(self.path) > 1 else self.path[0]
        )


SourcesSetting = str | list[str | Source] | None
"""A path, or a list. A list of paths is one source; in a list with sources, each path is a source of its own."""


def listed_sources(name: str, setting: SourcesSetting) -> list[Source]:
    """Return a recipe's sources.

    Args:
        name: Name of the split, for messages.
        setting: See `SourcesSetting`.

    >>> [source.path for source in listed_sources("train", ["a.tar", "b.tar"])]
    [['a.tar', 'b.tar']]
    """
    if setting is None:
        return []
    parts = [setting] if isinstance(setting, str) else list(setting)
    if not parts or any(part.path == [] for part in parts if isinstance(part, Source)):
        raise UserError(f"data.{name} is an empty list of shards; give a folder, a tar, a glob or a URL.")
    paths = [part for part in parts if isinstance(part, str)]
    if len(paths) == len(parts):
        return [Source(paths[0] if len(paths) == 1 else paths)]
    return [Source(part) if isinstance(part, str) else part for part in parts]


def items_of(
    name: str, sources: Sequence[Source], tasks: dict[str, float] | None, template: Template
) -> list[MakeItems]:
    """Return, for each source, the function that turns its samples into items: clips alone, or with texts.

    Args:
        name: Name of the split, for messages.
        sources: The sources of the recipe.
        tasks: Tasks of sources that have none of their own; None for stages without texts.
        template: Template of sources that have none of their own.

    Raises:
        UserError: Some sources have tasks and others have none.
    """
    chosen = [source.tasks if source.tasks is not None else tasks for source in sources]
    without = [source.name for source, own in zip(sources, chosen, strict=True) if own is None]
    if without and len(without) < len(sources):
        raise UserError(
            f"the source {without[0]!r} of data.{name} has no tasks, but others have: a stage needs them for all "
            "or for none.\nGive it tasks, or set data.tasks for all."
        )
    return [
        tokenizer_items if own is None else partial(llm_items, mixture=TaskMixture(own, source.template or template))
        for source, own in zip(sources, chosen, strict=True)
    ]


def make_plan(
    sources: Sequence[Source],
    opened: Sequence[LoadedSource],
    *,
    batch_size: int,
    exact: bool,
    seed: int,
    streams: int,
    shuffle: int,
) -> OrderPlan:
    """Return the order of training over all sources.

    Args:
        sources: The sources of the recipe.
        opened: The same sources, opened.
        batch_size: Samples of a step that sources share.
        exact: Whether an epoch covers the source exactly once.
        seed: Decides the order.
        streams: Logical streams of each source.
        shuffle: Samples in the shuffle window.

    Raises:
        UserError: Some sources have a batch size and others have none.
    """
    own = [source.batch_size for source in sources if source.batch_size is not None]
    if own and len(own) < len(sources):
        shared = next(source.name for source in sources if source.batch_size is None)
        raise UserError(
            f"the source {shared!r} has no batch_size, but {len(own)} other sources have: either steps are shared "
            "by all sources or each source has its own.\nGive all of them a batch_size, or none."
        )
    # A seed for each source, so that equal sources do not have the same order.
    seeds = [seed, *np.random.SeedSequence(seed).generate_state(len(sources))[1:].tolist()]
    orders = tuple(
        SourceOrder(one.source.counts, seed=own_seed, streams=streams, shuffle=max(1, shuffle))
        for one, own_seed in zip(opened, seeds, strict=True)
    )
    weights = tuple(source.weight for source in sources)
    return OrderPlan(orders, tuple(own) or (batch_size,), weights, exact=exact)


def facts_of(source: Source, opened: SampleSource) -> SourceFacts:
    """Return the facts of a source that a resumed run compares."""
    return SourceFacts(source.name, len(opened.counts), sum(opened.counts), opened.fingerprint, opened.content)
