"""The open data of a split: its sources with their decoders, and the log of samples that cannot be used."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from divot_datamodules.decoding.clip_sampling import ClipConfig
from divot_datamodules.decoding.samples import SampleDecoder
from divot_datamodules.loading.batch_reader import LoadedSource
from divot_datamodules.loading.collate import MakeItems
from divot_datamodules.loading.skipped_samples import SkippedSamples
from divot_datamodules.preparation.feature_checks import check_features, check_latents
from divot_datamodules.shards.jsonl_source import MediaFrom
from divot_datamodules.shards.source_settings import SourceConfig
from divot_datamodules.shards.sources import open_source
from divot_lightning.errors import require_at_least
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

    def __post_init__(self) -> None:
        require_at_least(0, copies_gb=self.copies_gb)
        require_at_least(1, max_clips=self.max_clips, max_sample_clips=self.max_sample_clips)

    def load(
        self,
        source: SourceConfig,
        make_items: MakeItems,
        *,
        index_folder: Path | None,
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

    def _open(self, source: SourceConfig, index_folder: Path | None) -> Source:
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
