"""The open data of a split: its sources with their decoders, and the log of samples that cannot be used."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from divot_datamodules.decoding.clip_sampling import ClipConfig
from divot_datamodules.decoding.samples import SampleDecoder
from divot_datamodules.loading.batch_reader import LoadedSource
from divot_datamodules.loading.collate import MakeItems
from divot_datamodules.loading.skipped_samples import SkippedSamples
from divot_datamodules.order.data_position import TrainPosition
from divot_datamodules.order.plan_edits import SkippedSteps
from divot_datamodules.order.source_fraction import SourceFraction
from divot_datamodules.order.training_processes import TrainingProcesses
from divot_datamodules.preparation.feature_checks import check_features, check_latents
from divot_datamodules.shards.jsonl_source import MediaFrom
from divot_datamodules.shards.source_settings import OrderConfig, SourceConfig, facts_of, make_plan
from divot_datamodules.shards.sources import estimate_skipped, open_source
from divot_lightning.errors import UserError, require_at_least
from divot_lightning.parts.part import build_part
from divot_lightning.parts.registries.kinds import SOURCES
from divot_lightning.parts.sources import Source


@dataclass(frozen=True)
class DataSplit:
    """Open training, validation or test data.

    Attributes:
        sources: The sources of the recipe.
        opened: The same sources, opened.
        skipped: The log of samples that cannot be used.
    """

    sources: list[SourceConfig]
    opened: list[LoadedSource]
    skipped: SkippedSamples

    def sizes(self) -> list[tuple[str, int, int]]:
        """Return each source's path with its numbers of shards and of usable samples."""
        pairs = zip(self.sources, self.opened, strict=True)
        return [(source.name, len(one.source.counts), sum(one.source.counts)) for source, one in pairs]

    def position(self, order: OrderConfig, edits: Sequence[SkippedSteps]) -> TrainPosition:
        """Return the beginning of training on these data, in an order without the steps that are edited out."""
        facts = [facts_of(source, one.source) for source, one in zip(self.sources, self.opened, strict=True)]
        return TrainPosition(make_plan(self.sources, self.opened, order), facts, edits)


@dataclass(frozen=True)
class OpeningConfig:
    """How sources are opened and their samples decoded; the attributes are settings of `VideoTextData`."""

    clip: ClipConfig
    max_clips: int
    max_sample_clips: int
    media_root: str | None
    media_from: MediaFrom
    allow_pipe: bool
    copies_gb: float
    train_fraction: float

    def __post_init__(self) -> None:
        if not 0 < self.train_fraction <= 1:
            raise UserError(
                f"train_fraction is {self.train_fraction}; it must be greater than 0 and at most 1 (1: all samples)."
            )
        require_at_least(0, copies_gb=self.copies_gb)
        require_at_least(1, max_clips=self.max_clips, max_sample_clips=self.max_sample_clips)

    def open_split(
        self,
        name: str,
        sources: Sequence[tuple[SourceConfig, MakeItems]],
        processes: TrainingProcesses,
        skipped: SkippedSamples,
        **folders: str | Path | None,
    ) -> DataSplit:
        """Open the sources of a split, on all processes.

        Args:
            name: Of the split.
            sources: The sources of the recipe, each with what turns its samples into items.
            processes: This process among all.
            skipped: Logs what cannot be used.
            **folders: Of what `load` takes.

        Raises:
            UserError: A source cannot be opened, processes see other data, or too few samples can be used.
        """
        with processes.one_first():
            opened = [self.load(source, make_items, **folders) for source, make_items in sources]
            contents = [one.source.content for one in opened] if name == "train" else []
        processes.check_same(f"data.{name}", [one.source.fingerprint for one in opened] + contents)
        if not count_samples(opened):
            raise UserError(f"data.{name} holds no usable sample: {sources[0][0].name}.\nSee `divot data inspect`.")
        used = [self._fraction_of(one) for one in opened] if name == "train" else opened
        skipped.total = -(-count_samples(used) // processes.count)
        if processes.rank == 0:
            found = [sample for one in opened for sample in one.source.skipped]
            count = sum(estimate_skipped(one.source) for one in opened)
            skipped.add_found(found, count, count_samples(opened))
        return DataSplit([source for source, _ in sources], used, skipped)

    def _fraction_of(self, opened: LoadedSource) -> LoadedSource:
        if self.train_fraction == 1.0 or not sum(opened.source.counts):
            return opened
        return replace(opened, source=SourceFraction(opened.source, self.train_fraction))

    def load(
        self,
        source: SourceConfig,
        make_items: MakeItems,
        *,
        index_folder: str | Path | None,
        tokenizer: str | Path | None,
        detokenizer: str | Path | None,
    ) -> LoadedSource:
        """Open a source of a recipe.

        Args:
            source: The source.
            make_items: Turns a decoded sample into items of a batch.
            index_folder: For indexes of shards that have none beside them.
            tokenizer: Run or component folder of the tokenizer that cached features must come from; None for no check.
            detokenizer: Component folder of the de-tokenizer that cached latents must come from; None does not read
                them.

        Raises:
            UserError: The source cannot be opened, or its cached features come from something else.
        """
        opened = self._open(source, index_folder)
        max_clips = source.max_clips if source.max_clips is not None else self.max_clips
        shards = [opened.shard_path(shard) for shard in range(len(opened.counts))]
        tokenizer_sha256 = check_features(shards, tokenizer, self.clip, max_clips) if tokenizer is not None else None
        latents_sha256 = check_latents(shards, detokenizer) if detokenizer is not None else None
        decoder = SampleDecoder(self.clip, max_clips, tokenizer_sha256, self.max_sample_clips, latents_sha256)
        return LoadedSource(opened, decoder, make_items, source.max_length)

    def _open(self, source: SourceConfig, index_folder: str | Path | None) -> Source:
        index_folder = None if index_folder is None else Path(index_folder)
        if source.path is None:
            built: Source = build_part(source.source, SOURCES, "the recipe", index_folder=index_folder)
            return built
        return open_source(
            source.path,
            media_root=source.media_root or self.media_root,
            media_from=self.media_from,
            index_folder=index_folder,
            allow_pipe=self.allow_pipe,
            copies_gb=self.copies_gb,
        )


def count_samples(opened: Iterable[LoadedSource]) -> int:
    """Return the number of usable samples of all sources."""
    return sum(sum(one.source.counts) for one in opened)
