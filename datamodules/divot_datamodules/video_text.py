"""The data module of all stages: videos (or cached features) with texts, from tar shards or jsonl lists."""

import logging
from pathlib import Path
from typing import Any, Literal, cast

from lightning.pytorch import Callback, LightningDataModule, Trainer

from divot_datamodules.decoding.clip_sampling import ClipConfig
from divot_datamodules.decoding.samples import MAX_SAMPLE_CLIPS
from divot_datamodules.loading.data_split import DataSplit, OpeningConfig
from divot_datamodules.loading.decoded_cache import DecodedCache
from divot_datamodules.loading.plan_loader import EvaluationLoader, TrainLoader
from divot_datamodules.loading.position_callback import PositionCallback
from divot_datamodules.loading.skipped_samples import SKIPPED_FOLDER, Budget, SkippedSamples
from divot_datamodules.loading.split_loaders import SplitLoaders
from divot_datamodules.loading.trial_batches import StepKind, TrialBatch, step_kinds
from divot_datamodules.order.data_position import TrainPosition
from divot_datamodules.order.plan_edits import DATA_FOLDER, read_edits
from divot_datamodules.order.training_processes import TrainingProcesses
from divot_datamodules.shards.jsonl_source import MediaFrom
from divot_datamodules.shards.source_settings import OrderConfig, SourcesSetting, items_of, listed_sources
from divot_datamodules.tasks.mixture import TasksSetting
from divot_lightning.errors import UserError, require_at_least
from divot_lightning.parts.sequences.collator import LaysOutSamples, SequenceCollator
from divot_lightning.parts.tasks import Template

logger = logging.getLogger(__name__)

_DEFAULT_CLIP = ClipConfig()


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
        skipped_folder: Folder for the lists of skipped samples; by default `skipped` in the trainer's root folder.
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
        require_at_least(0, cache_decoded_mb=cache_decoded_mb)
        settings = {"train": train, "validation": validation, "test": test}
        self.sources = {name: listed_sources(name, setting) for name, setting in settings.items()}
        other_tasks = validation_tasks if validation_tasks is not None else tasks
        self.items = {
            name: items_of(name, sources, tasks if name == "train" else other_tasks, template)
            for name, sources in self.sources.items()
        }
        self.tasks, self.tokenizer = tasks, tokenizer
        self.order = OrderConfig(batch_size, epoch == "exact", seed, streams, shuffle_buffer)
        self.opening = OpeningConfig(
            clip, max_clips, max_sample_clips, media_root, media_from, allow_pipe, copies_gb, train_fraction
        )
        cache = DecodedCache(cache_decoded_mb * 2**20)
        self.loaders = SplitLoaders(self.order, cache, num_workers, prefetch, decode_deadline)
        self.budget = Budget(max_skipped_fraction, max_skipped_samples)
        self.skipped_folder, self.index_folder = skipped_folder, index_folder
        self.skipped: dict[str, SkippedSamples] = {}
        self.position: TrainPosition | None = None
        self._state: dict[str, Any] | None = None
        self._callback: PositionCallback | None = None

    def setup(self, stage: str | None = None) -> None:
        """Open the data of this stage, and refuse settings that cannot work before any step is taken.

        Args:
            stage: Lightning's: "fit", "validate", "test" or None for all.
        """
        names = {"fit": ["train", "validation"], "validate": ["validation"], "test": ["test"]}
        splits = self.loaders.splits
        for name in names.get(stage or "", list(self.sources)):
            if self.sources[name] and name not in splits:
                self.loaders.add(name, self._open_split(name))
        if stage == "fit" and "train" not in splits:
            raise UserError("no training shards; set data.train to a folder, a tar, a glob or a URL.")
        if stage == "fit":
            self.loaders.check_memory(self._processes)
            self._processes.check_end(exact=self.order.exact, validates="validation" in splits)
        if "train" in splits and self.position is None:
            self.position = self._make_position(splits["train"])
        if self.trainer is not None and self.position is not None:
            self._watch(self.trainer, self.position)

    def sizes(self) -> dict[str, list[tuple[str, int, int]]]:
        """Return, for each open split, each source's path with its numbers of shards and of usable samples."""
        return {name: data.sizes() for name, data in self.loaders.splits.items()}

    def trial_batches(self) -> list[TrialBatch]:
        """Read this process's first batch of each kind of training step, to measure what a step needs."""
        loader = self.train_dataloader()
        assert isinstance(loader, TrainLoader), "setup('fit') comes first"
        batches = [cast(dict[str, Any], batch) for batch in loader.trial()]
        return list(map(TrialBatch, self.step_kinds(), batches))

    def step_kinds(self) -> list[StepKind]:
        """Return the kinds of training steps: one for each source that has a batch size of its own, else one."""
        return step_kinds(self.sources["train"], self.tasks, self.order.batch_size)

    @property
    def shared_bytes(self) -> int:
        """Shared memory in bytes for the frames of this process's workers; a page is used once it is written."""
        return self.loaders.shared_bytes(self._processes)

    def _open_split(self, name: str) -> DataSplit:
        processes, sources = self._processes, self.sources[name]
        own = [source.batch_size for source in sources if name == "train" and source.batch_size is not None]
        processes.check_share(own or [self.order.batch_size])
        folder = self._folder(SKIPPED_FOLDER, self.skipped_folder)
        self.skipped[name] = SkippedSamples(name, folder, self.budget, writer=f"rank{processes.rank}")
        return self.opening.open_split(
            name,
            list(zip(sources, self.items[name], strict=True)),
            processes,
            self.skipped[name],
            index_folder=self._folder(f"{DATA_FOLDER}/index", self.index_folder),
            tokenizer=self.tokenizer or getattr(self._stage, "tokenizer_folder", None),
            detokenizer=getattr(self._stage, "latents_folder", None),
        )

    @property
    def _stage(self) -> Any:
        return self.trainer.lightning_module if self.trainer is not None else None

    @property
    def _collator(self) -> SequenceCollator | None:
        """What lays out texts for the stage; None if the stage trains no language model, or there is none."""
        return self._stage.sequence_collator() if isinstance(self._stage, LaysOutSamples) else None

    def _make_position(self, data: DataSplit) -> TrainPosition:
        edits = read_edits(self._folder(DATA_FOLDER))
        for edit in edits if self._processes.rank == 0 else []:
            logger.warning("steps %s are left out since %s: %s", edit.steps, edit.date, edit.reason)
        position = data.position(self.order, edits)
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
        loader = self.loaders.train(self.position, self._processes, self._collator)
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
        if name not in self.loaders.splits:
            return []
        return self.loaders.evaluation(name, self._processes, self._collator)

    @property
    def _processes(self) -> TrainingProcesses:
        return TrainingProcesses(self.trainer)

    def _folder(self, name: str, given: str | None = None) -> Path | None:
        if given is not None:
            return Path(given)
        return Path(self.trainer.default_root_dir) / name if self.trainer is not None else None

    def on_exception(self, exception: BaseException) -> None:
        """Stop the workers."""
        self.loaders.close()

    def teardown(self, stage: str | None = None) -> None:
        """Stop the workers and report the skipped samples."""
        self.loaders.close()
        for name, skipped in self.skipped.items() if self._processes.rank == 0 else []:
            if reasons := skipped.reasons():
                logger.warning("skipped samples of %s: %s; listed in %s", name, reasons, skipped.folder)
