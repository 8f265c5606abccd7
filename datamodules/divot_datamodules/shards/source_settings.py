"""The sources of a recipe: their settings, and the order plan and items that follow from them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from divot_datamodules.decoding.samples import tokenizer_items
from divot_datamodules.loading.batch_reader import LoadedSource
from divot_datamodules.loading.collate import MakeItems
from divot_datamodules.order.data_position import SourceFacts
from divot_datamodules.order.order_plan import OrderPlan
from divot_datamodules.order.source_order import SourceOrder
from divot_datamodules.tasks.mixture import TaskMixture, TasksSetting, llm_items
from divot_lightning.errors import UserError, require_at_least
from divot_lightning.parts.sources import Source
from divot_lightning.parts.tasks import Template


@dataclass(frozen=True)
class SourceConfig:
    """One source of a mixture.

    It has either a path, whose suffix decides between tars and jsonl lists, or a source part.

    Attributes:
        path: Folder, tar, glob, brace expansion, URL or jsonl, or a list of these.
        weight: Relative frequency among the samples of a step; among the steps, if sources have their own batch sizes.
        tasks: Tasks with their weights; None for the tasks of the data module.
        template: Template of its texts; None for the template of the data module.
        batch_size: Samples of a step of this source alone, in all processes together; None to share steps. Either all
            sources have one or none has.
        max_clips: Most clips of a video; None for the number of the data module.
        max_length: Longest token sequence of its samples, if that is less than the video LLM's; texts of longer samples
            are shortened.
        media_root: For a jsonl: folder that its relative media paths start from; None for the folder of the jsonl.
        source: A source part, by name, or as {class_path, init_args}, instead of a path; see
            `divot_lightning.parts.sources.Source`.
    """

    path: str | list[str] | None = None
    weight: float = 1.0
    tasks: TasksSetting | None = None
    template: Template | None = None
    batch_size: int | None = None
    max_clips: int | None = None
    max_length: int | None = None
    media_root: str | None = None
    source: Callable[[], Source] | None = None

    def __post_init__(self) -> None:
        if (self.path is None) == (self.source is None):
            problem = "neither path nor source" if self.path is None else f"both path {self.path!r} and source"
            raise UserError(f"an entry of the data has {problem}; give it one of them.")
        if self.max_length is not None and self.max_length < 1:
            raise UserError(f"an entry of the data has max_length {self.max_length}; it must be at least 1.")
        if self.source is not None and self.media_root is not None:
            raise UserError(
                f"an entry of the data has a source and media_root {self.media_root!r}, which is for paths of jsonl "
                "lists; give it to the source, in init_args."
            )

    @property
    def name(self) -> str:
        """Name for messages: the path, or the first setting of the source part, which is usually a path."""
        settings = getattr(self.source, "keywords", {})
        named = self.path if self.source is None else next(iter(settings.values()), "source")
        parts = named if isinstance(named, list) else [named]
        return f"{parts[0]} ..." if len(parts) > 1 else str(parts[0])


SourcesSetting = str | list[str | SourceConfig] | None
"""A path, or a list. A list of paths is one source; in a list with sources, each path is a source of its own."""


def listed_sources(name: str, setting: SourcesSetting) -> list[SourceConfig]:
    """Return a recipe's sources.

    Args:
        name: Name of the split, for messages.
        setting: See `SourcesSetting`.

    Raises:
        UserError: The list is empty.

    >>> [source.path for source in listed_sources("train", ["a.tar", "b.tar"])]
    [['a.tar', 'b.tar']]
    """
    if setting is None:
        return []
    parts = [setting] if isinstance(setting, str) else list(setting)
    if not parts or any(part.path == [] for part in parts if isinstance(part, SourceConfig)):
        raise UserError(f"data.{name} is an empty list of shards; give a folder, a tar, a glob or a URL.")
    paths = [part for part in parts if isinstance(part, str)]
    if len(paths) == len(parts):
        return [SourceConfig(paths[0] if len(paths) == 1 else paths)]
    return [SourceConfig(part) if isinstance(part, str) else part for part in parts]


def items_of(
    name: str, sources: Sequence[SourceConfig], tasks: TasksSetting | None, template: Template
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


@dataclass(frozen=True)
class OrderConfig:
    """The order of training.

    Attributes:
        batch_size: Samples of a step that sources share, in all processes together.
        exact: Whether an epoch covers the source exactly once.
        seed: Decides the order and all random choices.
        streams: Logical streams of each source.
        shuffle_buffer: Samples in the shuffle window.
    """

    batch_size: int
    exact: bool
    seed: int
    streams: int
    shuffle_buffer: int

    def __post_init__(self) -> None:
        require_at_least(0, seed=self.seed)


def make_plan(sources: Sequence[SourceConfig], opened: Sequence[LoadedSource], config: OrderConfig) -> OrderPlan:
    """Return the order of training over all sources.

    Args:
        sources: The sources of the recipe.
        opened: The same sources, opened.
        config: The settings of the order.

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
    seeds = [config.seed, *np.random.SeedSequence(config.seed).generate_state(len(sources))[1:].tolist()]
    orders = tuple(
        SourceOrder(one.source.counts, seed=seed, streams=config.streams, shuffle=max(1, config.shuffle_buffer))
        for one, seed in zip(opened, seeds, strict=True)
    )
    weights = tuple(source.weight for source in sources)
    return OrderPlan(orders, tuple(own) or (config.batch_size,), weights, exact=config.exact)


def facts_of(source: SourceConfig, opened: Source) -> SourceFacts:
    """Return the facts of a source that a resumed run compares."""
    return SourceFacts(source.name, len(opened.counts), sum(opened.counts), opened.fingerprint, opened.content)
