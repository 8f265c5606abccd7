"""The data module of all stages: videos (or cached features) with texts, from tar shards or jsonl lists."""

import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, cast

import torch
from lightning.pytorch import Callback, LightningDataModule, Trainer

from divot_datamodules.decoding.clip_sampling import ClipConfig
from divot_datamodules.decoding.samples import MAX_SAMPLE_CLIPS, SampleDecoder
from divot_datamodules.loading.batch_reader import BatchReader, LoadedSource, decode_function
from divot_datamodules.loading.collate import MakeItems
from divot_datamodules.loading.decode_pool import SMALLEST_SLOT_BYTES, Decoding, make_decoding
from divot_datamodules.loading.decoded_cache import DecodedCache
from divot_datamodules.loading.plan_loader import EvaluationLoader, TrainLoader
from divot_datamodules.loading.position_callback import PositionCallback
from divot_datamodules.loading.shared_memory import pool_bytes, require_memory
from divot_datamodules.loading.skipped_samples import Budget, SkippedSamples
from divot_datamodules.loading.trial_batches import StepKind, TrialBatch, step_kinds
from divot_datamodules.order.data_position import TrainPosition
from divot_datamodules.order.plan_edits import read_edits
from divot_datamodules.order.source_fraction import SourceFraction
from divot_datamodules.order.training_processes import TrainingProcesses
from divot_datamodules.preparation.feature_checks import check_features, check_latents
from divot_datamodules.shards.jsonl_source import MediaFrom
from divot_datamodules.shards.source_settings import (
    SourceConfig,
    SourcesSetting,
    facts_of,
    items_of,
    listed_sources,
    make_plan,
)
from divot_datamodules.shards.sources import estimate_losses, open_source
from divot_datamodules.tasks.mixture import TasksSetting
from divot_lightning.errors import UserError, require_at_least
from divot_lightning.parts.part import build_part
from divot_lightning.parts.registries.kinds import SOURCES
from divot_lightning.parts.sequences.collator import LaysOutSamples, SequenceCollator
from divot_lightning.parts.sources import Source
from divot_lightning.parts.tasks import Template

logger = logging.getLogger(__name__)

DATA_FOLDER = "data"
"""Folder in a run folder: indexes of shards that have none beside them, and edits of the order."""
_DEFAULT_CLIP = ClipConfig()


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


class VideoTextData(LightningDataModule):
    """Reads `<key>.mp4|webm|mkv|avi|gif|jpg` (or cached features) with `<key>.json|txt` from tars, or from jsonl lists.

    The order of training is a plan: a step takes the same samples whatever the number of processes and workers, and a
    resumed run continues with the sample after the last one that was used. Validation and test are one pass in order.

    Args:
        train: Folder, tar, glob, brace expansion, URL or jsonl of the training data, or a list of these; or a list of
            sources with a weight each, such as {path: a.tar, weight: 2.0, tasks: {caption: 1.0}} or
            {source: {class_path: parquet, init_args: {path: a.parquet}}}.
        validation: The same for validation; None for no validation.
        test: The same for `divot test`.
        train_fraction: Fraction of the training samples of each source that is used; the same samples for every `seed`,
            and a smaller fraction is a subset of a larger one. 1.0 uses all.
        batch_size: Samples of a step, in all processes together; with gradient accumulation, of one accumulated batch.
        num_workers: Decoding processes per training process; 0 decodes in the training process, where deadlines have
            no effect and a crash of the decoder ends the run.
        clip: Size and rate of the clips.
        max_clips: Most clips of a video: 1 gives one clip with a random start, more give clips that cover it.
        max_sample_clips: Most videos of a sample that has several, as stories do, or clips in a file of cached
            features. A sample with more is skipped, so that no sample takes all memory.
        tasks: None for the tokenizer and de-tokenizer stages, which need no texts. For the LLM stages, the tasks with
            their weights, such as {"caption": 1.0, "generate": 1.0}; a task with settings is
            {"caption": {"weight": 1.0, "init_args": {"prompts": ["Describe it ."]}}}. `divot parts tasks` lists them.
        validation_tasks: Weights for validation and test; None for those of training.
        template: How the user's turn is written: "pretraining" (bare), "instruction" (Divot's), "chat" (that of the
            language model's own text tokenizer), or a text with `{}` for the turn, such as "USER: {} ASSISTANT: ".
        epoch: "endless" repeats the data without end, so a recipe sets `max_steps`. "exact" ends an epoch after each
            sample of a single source was used once; its last step may be smaller.
        streams: Logical streams that read each source side by side.
        shuffle_buffer: Samples in the window that is shuffled; they are shuffled before they are read.
        seed: Decides the order and all random choices.
        prefetch: Samples that a training process requests from its workers ahead; None for two steps.
        decode_deadline: Seconds that reading and decoding one sample may take in a worker; after that the worker is
            replaced and the sample is skipped.
        cache_decoded_mb: Memory for decoded clips per training process, so that later passes over a small set need no
            decoding; 0 for none. A video that is longer than a clip is decoded again for each random clip.
        max_skipped_fraction: Largest fraction of skipped samples among the samples that one training process sees; with
            more, the run ends with a report.
        max_skipped_samples: Largest number of different skipped samples of one training process; None for no limit.
        skipped_folder: Folder for the lists of skipped samples; by default `defects` in the trainer's root folder.
        index_folder: Folder for indexes of shards that have none beside them; by default `data/index` in the
            trainer's root folder.
        tokenizer: Run or component folder of the tokenizer that cached features must come from; None for the stage's.
        media_root: For jsonl lists: folder that relative media paths start from; None for the folder of the jsonl.
        media_from: For jsonl lists: where media may be: "root", "disk" or "anywhere", URLs included; see
            `divot_datamodules.shards.jsonl_source.JsonlSource`.
        allow_pipe: Whether "pipe:COMMAND" may be a shard, which runs the command in a shell.
        copies_gb: Largest size, in GiB, of copies of shards that cannot be read in parts: commands, servers without
            ranges, compressed tars.
    """

    def __init__(
        self,
        train: SourcesSetting = None,
        validation: SourcesSetting = None,
        test: SourcesSetting = None,
        *,
        train_fraction: float = 1.0,
        batch_size: int = 16,
        num_workers: int = 0,
        clip: ClipConfig = _DEFAULT_CLIP,
        max_clips: int = 1,
        max_sample_clips: int = MAX_SAMPLE_CLIPS,
        tasks: TasksSetting | None = None,
        validation_tasks: TasksSetting | None = None,
        template: Template = "pretraining",
        epoch: Literal["endless", "exact"] = "endless",
        streams: int = 64,
        shuffle_buffer: int = 1000,
        seed: int = 0,
        prefetch: int | None = None,
        decode_deadline: float = 30.0,
        cache_decoded_mb: int = 0,
        max_skipped_fraction: float = 0.05,
        max_skipped_samples: int | None = None,
        skipped_folder: str | None = None,
        index_folder: str | None = None,
        tokenizer: str | None = None,
        media_root: str | None = None,
        media_from: MediaFrom = "disk",
        allow_pipe: bool = False,
        copies_gb: float = 20.0,
    ) -> None:
        super().__init__()
        if not decode_deadline > 0:
            raise UserError(f"decode_deadline is {decode_deadline}; it must be greater than 0 seconds.")
        require_at_least(0, seed=seed, num_workers=num_workers, prefetch=prefetch)
        require_at_least(0, copies_gb=copies_gb, cache_decoded_mb=cache_decoded_mb)
        require_at_least(1, max_clips=max_clips, max_sample_clips=max_sample_clips)
        if not 0 < train_fraction <= 1:
            raise UserError(
                f"train_fraction is {train_fraction}; it must be greater than 0 and at most 1 (1: all samples)."
            )
        settings = {"train": train, "validation": validation, "test": test}
        self.sources = {name: listed_sources(name, setting) for name, setting in settings.items()}
        other_tasks = validation_tasks if validation_tasks is not None else tasks
        self.items = {
            name: items_of(name, sources, tasks if name == "train" else other_tasks, template)
            for name, sources in self.sources.items()
        }
        self.tasks, self.train_fraction = tasks, train_fraction
        self.batch_size, self.num_workers, self.prefetch = batch_size, num_workers, prefetch
        self.clip, self.max_clips, self.seed = clip, max_clips, seed
        self.max_sample_clips = max_sample_clips
        self.exact, self.streams, self.shuffle_buffer = epoch == "exact", streams, shuffle_buffer
        self.decode_deadline = decode_deadline
        self.budget = Budget(max_skipped_fraction, max_skipped_samples)
        self.skipped_folder, self.index_folder = skipped_folder, index_folder
        self.tokenizer, self.media_root, self.allow_pipe = tokenizer, media_root, allow_pipe
        self.media_from: MediaFrom = media_from
        self.copies_gb = copies_gb
        self.skipped: dict[str, SkippedSamples] = {}
        self.position: TrainPosition | None = None
        self._cache = DecodedCache(cache_decoded_mb * 2**20)
        self._open: dict[str, DataSplit] = {}
        self._decoder: Decoding | None = None
        self._state: dict[str, Any] | None = None
        self._callback: PositionCallback | None = None

    def setup(self, stage: str | None = None) -> None:
        """Open the data of this stage, and refuse settings that cannot work before any step is taken.

        Args:
            stage: Lightning's: "fit", "validate", "test" or None for all.
        """
        names = {"fit": ["train", "validation"], "validate": ["validation"], "test": ["test"]}
        for name in names.get(stage or "", list(self.sources)):
            if self.sources[name] and name not in self._open:
                self._open[name] = self._open_split(name)
                self._close_decoder()  # workers only know data that were open when they were forked
        if stage == "fit" and "train" not in self._open:
            raise UserError("no training shards; set data.train to a folder, a tar, a glob or a URL.")
        if stage == "fit":
            most = max(source.batch_size or self.batch_size for source in self.sources["train"])
            require_memory(self._own(most), self._clip_bytes)
            self._processes.check_end(exact=self.exact, validates="validation" in self._open)
        if "train" in self._open and self.position is None:
            self.position = self._make_position(self._open["train"])
        if self.trainer is not None and self.position is not None:
            self._watch(self.trainer, self.position)

    def sizes(self) -> dict[str, list[tuple[str, int, int]]]:
        """Return, for each open split, each source's path with its numbers of shards and of usable samples."""
        return {
            name: [
                (source.name, len(one.source.counts), sum(one.source.counts))
                for source, one in zip(data.sources, data.opened, strict=True)
            ]
            for name, data in self._open.items()
        }

    def trial_batches(self) -> list[TrialBatch]:
        """Read this process's first batch of each kind of training step, to measure what a step needs."""
        loader = self.train_dataloader()
        assert isinstance(loader, TrainLoader), "setup('fit') comes first"
        batches = [cast(dict[str, Any], batch) for batch in loader.trial()]
        return list(map(TrialBatch, self.step_kinds(), batches))

    def step_kinds(self) -> list[StepKind]:
        """Return the kinds of training steps: one for each source that has a batch size of its own, else one."""
        return step_kinds(self.sources["train"], self.tasks, self.batch_size)

    @property
    def shared_bytes(self) -> int:
        """Shared memory in bytes for the frames of this process's workers; a page is used once it is written."""
        num_slots, slot_bytes = self._buffer_slots()
        return pool_bytes(num_slots, slot_bytes) if self.num_workers else 0

    def _open_split(self, name: str) -> DataSplit:
        processes, sources = self._processes, self.sources[name]
        own = [source.batch_size for source in sources if name == "train" and source.batch_size is not None]
        processes.check_share(own or [self.batch_size])
        with processes.one_first():
            opened = [self._open_source(*pair) for pair in zip(sources, self.items[name], strict=True)]
            contents = [one.source.content for one in opened] if name == "train" else []
        processes.check_same(f"data.{name}", [one.source.fingerprint for one in opened] + contents)
        size = sum(sum(one.source.counts) for one in opened)
        if not size:
            raise UserError(f"data.{name} holds no usable sample: {sources[0].name}.\nSee `divot data inspect`.")
        used = [self._fraction_of(one) for one in opened] if name == "train" else opened
        self.skipped[name] = SkippedSamples(
            name,
            self._folder("defects", self.skipped_folder),
            self.budget,
            writer=f"rank{processes.rank}",
            total=-(-sum(sum(one.source.counts) for one in used) // processes.count),
        )
        if processes.rank == 0:
            found = [sample for one in opened for sample in one.source.skipped]
            self.skipped[name].add_found(found, sum(estimate_losses(one.source) for one in opened), size)
        return DataSplit(sources, used, self.skipped[name])

    def _fraction_of(self, opened: LoadedSource) -> LoadedSource:
        if self.train_fraction == 1.0 or not sum(opened.source.counts):
            return opened
        return replace(opened, source=SourceFraction(opened.source, self.train_fraction))

    def _open_source(self, source: SourceConfig, make_items: MakeItems) -> LoadedSource:
        index_folder = self._folder(f"{DATA_FOLDER}/index", self.index_folder)
        if source.path is None:
            opened: Source = build_part(source.source, SOURCES, "the recipe", index_folder=index_folder)
        else:
            opened = open_source(
                source.path,
                media_root=source.media_root or self.media_root,
                media_from=self.media_from,
                index_folder=index_folder,
                allow_pipe=self.allow_pipe,
                copies_gb=self.copies_gb,
            )
        max_clips = source.max_clips if source.max_clips is not None else self.max_clips
        shards = [opened.shard_path(shard) for shard in range(len(opened.counts))]
        tokenizer = self._tokenizer
        tokenizer_sha256 = check_features(shards, tokenizer, self.clip, max_clips) if tokenizer is not None else None
        stage = self.trainer.lightning_module if self.trainer is not None else None
        latents = getattr(stage, "latents_folder", None)
        latents_sha256 = check_latents(shards, latents) if latents is not None else None
        decoder = SampleDecoder(self.clip, max_clips, tokenizer_sha256, self.max_sample_clips, latents_sha256)
        return LoadedSource(opened, decoder, make_items, source.max_length)

    @property
    def _tokenizer(self) -> str | Path | None:
        """Tokenizer that cached features must come from: the one of the recipe, or the stage's own."""
        stage = self.trainer.lightning_module if self.trainer is not None else None
        return self.tokenizer or getattr(stage, "tokenizer_folder", None)

    @property
    def _collator(self) -> SequenceCollator | None:
        """What lays out texts for the stage; None if the stage trains no language model, or there is none."""
        stage = self.trainer.lightning_module if self.trainer is not None else None
        return stage.sequence_collator() if isinstance(stage, LaysOutSamples) else None

    def _make_position(self, data: DataSplit) -> TrainPosition:
        plan = make_plan(
            data.sources,
            data.opened,
            batch_size=self.batch_size,
            exact=self.exact,
            seed=self.seed,
            streams=self.streams,
            shuffle=self.shuffle_buffer,
        )
        facts = [facts_of(source, one.source) for source, one in zip(data.sources, data.opened, strict=True)]
        edits = read_edits(self._folder(DATA_FOLDER))
        for edit in edits if self._processes.rank == 0 else []:
            logger.warning("steps %s are left out since %s: %s", edit.steps, edit.date, edit.reason)
        position = TrainPosition(plan, facts, edits)
        if self._state is not None:
            position.load_state_dict(self._state)
        return position

    def _watch(self, trainer: Trainer, position: TrainPosition) -> None:
        callbacks: list[Callback] = vars(trainer)["callbacks"]
        if self._callback is None or self._callback not in callbacks:
            self._callback = PositionCallback(position)
            callbacks.insert(0, self._callback)  # before callbacks that save checkpoints

    def state_dict(self) -> dict[str, Any]:
        """Return the position of training in the order of its data; see `divot_datamodules.order.data_position`."""
        return self.position.state_dict() if self.position is not None else {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue at the position of a checkpoint; validation and test are not changed.

        Raises:
            UserError: The data, or a setting that decides their order, changed.
        """
        self._state = state_dict
        if self.position is not None:
            self.position.load_state_dict(state_dict)

    def train_dataloader(self) -> TrainLoader | list[Any]:
        """Return the training batches."""
        if self.position is None:
            return []
        processes = self._processes
        reader = self._reader("train", max(self.position.plan.batch_sizes))
        loader = TrainLoader(reader, self.position, processes.rank, processes.count, moves=self.trainer is None)
        if self._callback is not None:
            self._callback.loader = loader
        return loader

    def val_dataloader(self) -> EvaluationLoader | list[Any]:
        """Return the validation batches, one pass in order; [] if there are no validation data."""
        return self._evaluation_loader("validation")

    def test_dataloader(self) -> EvaluationLoader | list[Any]:
        """Return the test batches, one pass in order."""
        return self._evaluation_loader("test")

    def _evaluation_loader(self, name: str) -> EvaluationLoader | list[Any]:
        if name not in self._open:
            return []
        processes = self._processes
        return EvaluationLoader(self._reader(name, self.batch_size), self.batch_size, processes.rank, processes.count)

    def _reader(self, name: str, batch_size: int) -> BatchReader:
        data = self._open[name]
        return BatchReader(
            data=name,
            sources=data.opened,
            decoding=self._decoding,
            skipped=data.skipped,
            cache=self._cache,
            seed=self.seed,
            prefetch=self._prefetched(batch_size),
            pin_memory=torch.cuda.is_available(),
            collator=self._collator,
        )

    def _prefetched(self, batch_size: int) -> int:
        own = batch_size // self._processes.count
        if not self.num_workers:
            return 0
        return self.prefetch if self.prefetch is not None else max(2 * own, own + 2 * self.num_workers)

    def _decoding(self) -> Decoding:
        """Return the decoder; workers are forked when the first sample is requested."""
        if self._decoder is None:
            num_slots, slot_bytes = self._buffer_slots()
            self._decoder = make_decoding(
                decode_function({name: data.opened for name, data in self._open.items()}, self.seed, self._collator),
                num_workers=self.num_workers,
                deadline=self.decode_deadline,
                num_slots=num_slots,
                slot_bytes=slot_bytes,
            )
        return self._decoder

    def _buffer_slots(self) -> tuple[int, int]:
        """Return the number of samples of this process that may be in flight at a time, and bytes of the largest."""
        most = max(self.batch_size, *(self.position.plan.batch_sizes if self.position is not None else (0,)))
        clips = max(one.decoder.max_clips for data in self._open.values() for one in data.opened)
        return 2 * (self._prefetched(most) + self._own(most)), max(SMALLEST_SLOT_BYTES, clips * self._clip_bytes)

    @property
    def _clip_bytes(self) -> int:
        return len(self.clip.frame_numbers) * 3 * self.clip.height * self.clip.width

    def _own(self, batch_size: int) -> int:
        """Return the samples of a batch that this process reads."""
        return -(-batch_size // self._processes.count)

    def _close_decoder(self) -> None:
        if self._decoder is not None:
            self._decoder.close()
            self._decoder = None

    @property
    def _processes(self) -> TrainingProcesses:
        return TrainingProcesses(self.trainer)

    def _folder(self, name: str, given: str | None = None) -> Path | None:
        if given is not None:
            return Path(given)
        return Path(self.trainer.default_root_dir) / name if self.trainer is not None else None

    def on_exception(self, exception: BaseException) -> None:
        """Stop the workers."""
        self._close_decoder()

    def teardown(self, stage: str | None = None) -> None:
        """Stop the workers and report the skipped samples."""
        self._close_decoder()
        for name, skipped in self.skipped.items() if self._processes.rank == 0 else []:
            counts = skipped.counts()
            if counts:
                reasons = ", ".join(f"{reason} {number}" for reason, number in counts.items())
                logger.warning("skipped samples of %s: %s; listed in %s", name, reasons, skipped.folder)
