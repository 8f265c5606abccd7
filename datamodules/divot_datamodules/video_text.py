"""Tar shards of videos (or cached features) with texts, as a LightningDataModule for all stages."""

import logging
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import lightning
import torch
from torch.utils.data import DataLoader

from divot_datamodules.clip_sampling import ClipSettings
from divot_datamodules.encoding import check_features
from divot_datamodules.ledger import Budget, Ledger
from divot_datamodules.samples import Item, SampleDecoder, TaskMixture, collate, llm_items, tokenizer_items
from divot_datamodules.shard_reading import check_shards, expand_shards
from divot_datamodules.shard_stream import ShardStream
from divot_datamodules.tasks import Template
from divot_lightning.errors import UserError

logger = logging.getLogger(__name__)

Shards = str | list[str]
_DEFAULT_CLIP = ClipSettings()


class ShardLoader(DataLoader[Any]):
    """A DataLoader of a `ShardStream` that leaves out unusable samples and reports a used-up budget in few lines."""

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        """Yields batches that hold at least one sample."""
        iterator = super().__iter__()
        try:
            yield from (batch for batch in iterator if batch is not None)
        except UserError as error:
            # Left to the garbage collector, the queues close before the workers hear of the end: 5 seconds for each.
            getattr(iterator, "_shutdown_workers", lambda: None)()
            # A worker's error arrives with the worker's traceback around its message.
            raise UserError(str(error).rpartition("divot_lightning.errors.UserError: ")[2].strip()) from None


def _collate_usable(items: list[Item | None]) -> dict[str, Any] | None:
    usable = [item for item in items if item is not None]
    return collate(usable) if usable else None


class VideoTextData(lightning.LightningDataModule):
    """Reads tar shards of `<key>.mp4|webm|mkv|avi|gif|jpg` (or cached features) with `<key>.json|txt`.

    Training is an endless stream that passes over the shards in ever new order, so a recipe sets `max_steps`;
    validation and test are one pass in order.

    Args:
        train: Folder, tar, glob, brace expansion or URL of the training shards, or a list of these.
        validation: The same for validation; none without it.
        test: The same for `divot test`.
        batch_size: Samples per training process and step.
        num_workers: Processes that decode, per training process; 0 decodes in the training process.
        clip: Size and rate of the clips.
        tasks: None for the tokenizer and de-tokenizer stages, which need no texts; else the tasks of the LLM stages
            with their weights, such as {"caption": 1.0, "generate": 1.0}; known: caption, generate, question, story.
        validation_tasks: Other weights for validation and test; None for those of training.
        template: Whether the tasks have their bare pretraining form or Divot's instruction template.
        shuffle_buffer: Undecoded samples that the shuffle draws from, per reading process.
        seed: Decides the order and all draws.
        cache_decoded_mb: Memory for decoded clips per training process, so that later passes over a small set need no
            decoding; 0 for none. A video that is longer than a clip is decoded anew for each random clip.
        max_bad_fraction: Largest share of unusable samples; beyond it the run ends with a report.
        max_bad_samples: Largest number of unusable samples; None for no limit.
        ledger_folder: Where the lists of unusable samples go; by default `defects` in the trainer's root folder.
        tokenizer: Run or component folder of the tokenizer that cached features must come from; None for no check.
        allow_pipe: Whether "pipe:COMMAND" may be a shard, which runs the command in a shell.
    """

    def __init__(
        self,
        train: Shards | None = None,
        validation: Shards | None = None,
        test: Shards | None = None,
        *,
        batch_size: int = 16,
        num_workers: int = 0,
        clip: ClipSettings = _DEFAULT_CLIP,
        tasks: dict[str, float] | None = None,
        validation_tasks: dict[str, float] | None = None,
        template: Template = "pretraining",
        shuffle_buffer: int = 1000,
        seed: int = 0,
        cache_decoded_mb: int = 0,
        max_bad_fraction: float = 0.05,
        max_bad_samples: int | None = None,
        ledger_folder: str | None = None,
        tokenizer: str | None = None,
        allow_pipe: bool = False,
    ) -> None:
        super().__init__()
        self.sources = {"train": train, "validation": validation, "test": test}
        self.batch_size, self.num_workers = batch_size, num_workers
        self.clip, self.seed, self.shuffle_buffer = clip, seed, shuffle_buffer
        self.training_mixture = TaskMixture(tasks, template) if tasks is not None else None
        other = validation_tasks if validation_tasks is not None else tasks
        self.validation_mixture = TaskMixture(other, template) if other is not None else None
        self.cache_bytes = cache_decoded_mb * 2**20
        self.budget = Budget(max_bad_fraction, max_bad_samples)
        self.ledger_folder = ledger_folder
        self.tokenizer = tokenizer
        self.allow_pipe = allow_pipe
        self.ledgers: dict[str, Ledger] = {}
        self._streams: dict[str, ShardStream] = {}

    def setup(self, stage: str | None = None) -> None:
        """Checks what this stage reads, before any model is trained: shards exist, are tars, and are enough.

        Args:
            stage: Lightning's: "fit", "validate", "test" or None for all.
        """
        names = {"fit": ["train", "validation"], "validate": ["validation"], "test": ["test"]}
        for name in names.get(stage or "", list(self.sources)):
            if self.sources[name] is not None and name not in self._streams:
                self._streams[name] = self._make_stream(name)
        if stage == "fit" and "train" not in self._streams:
            raise UserError("no training shards; set data.train to a folder, a tar, a glob or a URL.")

    def _make_stream(self, name: str) -> ShardStream:
        shards = expand_shards(self.sources[name] or [], allow_pipe=self.allow_pipe)
        if not shards:
            raise UserError(f"data.{name} is an empty list of shards; give a folder, a tar, a glob or a URL.")
        rank, world_size = self._rank_and_world_size()
        readers = world_size * max(1, self.num_workers)
        if name == "train" and len(shards) < readers:
            raise UserError(
                f"{len(shards)} training shards for {readers} readers ({world_size} processes x "
                f"{max(1, self.num_workers)} workers); each reader needs one.\n"
                "Make more shards (`--samples-per-shard`), or lower data.num_workers."
            )
        check_shards(shards, allow_pipe=self.allow_pipe)
        if self.tokenizer is not None:
            check_features(shards, self.tokenizer)
        self.ledgers[name] = Ledger(name, self._ledger_folder(), self.budget)
        mixture = self.training_mixture if name == "train" else self.validation_mixture
        return ShardStream(
            shards=shards,
            decoder=SampleDecoder(self.clip),
            make_items=tokenizer_items if mixture is None else partial(llm_items, mixture=mixture),
            ledger=self.ledgers[name],
            training=name == "train",
            seed=self.seed,
            shuffle_buffer=self.shuffle_buffer,
            batch_size=self.batch_size,
            cache_bytes=self.cache_bytes,
            allow_pipe=self.allow_pipe,
            rank=rank,
            world_size=world_size,
        )

    def _rank_and_world_size(self) -> tuple[int, int]:
        trainer = self.trainer
        return (trainer.global_rank, trainer.world_size) if trainer is not None else (0, 1)

    def _ledger_folder(self) -> Path | None:
        if self.ledger_folder is not None:
            return Path(self.ledger_folder)
        return Path(self.trainer.default_root_dir) / "defects" if self.trainer is not None else None

    def _loader(self, name: str) -> ShardLoader | list[Any]:
        if name not in self._streams:
            return []
        return ShardLoader(
            self._streams[name],
            batch_size=self.batch_size,
            num_workers=self.num_workers,
            collate_fn=_collate_usable,
            pin_memory=torch.cuda.is_available(),
            persistent_workers=self.num_workers > 0 and name == "train",
        )

    def train_dataloader(self) -> ShardLoader | list[Any]:
        """Returns the endless training batches."""
        return self._loader("train")

    def val_dataloader(self) -> ShardLoader | list[Any]:
        """Returns the validation batches, one pass in order; nothing if there are no validation shards."""
        return self._loader("validation")

    def test_dataloader(self) -> ShardLoader | list[Any]:
        """Returns the test batches, one pass in order."""
        return self._loader("test")

    def teardown(self, stage: str | None = None) -> None:
        """Reports what was left out."""
        for name, ledger in self.ledgers.items():
            counts = ledger.counts()
            if counts:
                reasons = ", ".join(f"{reason} {number}" for reason, number in counts.items())
                logger.warning("samples of %s left out: %s; listed in %s", name, reasons, ledger.folder)
