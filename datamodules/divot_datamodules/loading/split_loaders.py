"""The loaders of open data splits, which share the workers that decode and the cache of decoded samples."""

from dataclasses import dataclass, field

import torch

from divot_datamodules.decoding.samples import SampleDecoder
from divot_datamodules.loading.batch_reader import BatchReader, decode_function
from divot_datamodules.loading.data_split import DataSplit
from divot_datamodules.loading.decode_pool import Decoding, make_decoding
from divot_datamodules.loading.decoded_cache import DecodedCache
from divot_datamodules.loading.plan_loader import EvaluationLoader, TrainLoader
from divot_datamodules.loading.shared_memory import pool_bytes, require_memory
from divot_datamodules.order.data_position import TrainPosition
from divot_datamodules.order.training_processes import TrainingProcesses
from divot_datamodules.shards.source_settings import OrderConfig
from divot_lightning.errors import UserError, require_at_least
from divot_lightning.parts.sequences.collator import SequenceCollator

SMALLEST_SLOT_BYTES = 2**22
"""Least size of a buffer slot in bytes, so that cached features fit as well. Unused pages cost no memory."""


@dataclass
class SplitLoaders:
    """Makes the loaders of the open splits.

    Attributes:
        order: The order of training.
        cache: Keeps decoded samples.
        num_workers: As in `VideoTextData`.
        prefetch: As in `VideoTextData`.
        decode_deadline: As in `VideoTextData`.
        splits: The open splits by name.
    """

    order: OrderConfig
    cache: DecodedCache
    num_workers: int
    prefetch: int | None
    decode_deadline: float
    splits: dict[str, DataSplit] = field(default_factory=dict)
    _decoder: Decoding | None = None

    def __post_init__(self) -> None:
        if not self.decode_deadline > 0:
            raise UserError(f"decode_deadline is {self.decode_deadline}; it must be greater than 0 seconds.")
        require_at_least(0, num_workers=self.num_workers, prefetch=self.prefetch)

    def add(self, name: str, split: DataSplit) -> None:
        """Add a split; workers know only the splits that were open when they were forked, so they are ended."""
        self.splits[name] = split
        self.close()

    def train(
        self, position: TrainPosition, processes: TrainingProcesses, collator: SequenceCollator | None
    ) -> TrainLoader:
        """Return the training batches from a position on.

        Args:
            position: The position; without a trainer, the loader moves it.
            processes: This process among all.
            collator: Lays out texts; None for stages without a language model to train.
        """
        reader = self._reader("train", max(position.plan.batch_sizes), processes, collator)
        return TrainLoader(reader, position, processes.rank, processes.count, moves=processes.trainer is None)

    def evaluation(
        self, name: str, processes: TrainingProcesses, collator: SequenceCollator | None
    ) -> EvaluationLoader:
        """Return the batches of one pass over a split, in order; see `train` for the arguments."""
        reader = self._reader(name, self.order.batch_size, processes, collator)
        return EvaluationLoader(reader, self.order.batch_size, processes.rank, processes.count)

    def _reader(
        self, name: str, batch_size: int, processes: TrainingProcesses, collator: SequenceCollator | None
    ) -> BatchReader:
        split = self.splits[name]
        return BatchReader(
            data=name,
            sources=split.opened,
            decoding=lambda: self._started(processes, collator),
            skipped=split.skipped,
            cache=self.cache,
            seed=self.order.seed,
            prefetch=self._prefetched(batch_size // processes.count),
            pin_memory=torch.cuda.is_available(),
            collator=collator,
        )

    def _prefetched(self, own: int) -> int:
        """Return how many samples a process requests ahead that takes `own` samples of a step."""
        if not self.num_workers:
            return 0
        return self.prefetch if self.prefetch is not None else max(2 * own, own + 2 * self.num_workers)

    def _started(self, processes: TrainingProcesses, collator: SequenceCollator | None) -> Decoding:
        """Return the decoder; workers are forked when the first sample is requested."""
        if self._decoder is None:
            opened = {name: split.opened for name, split in self.splits.items()}
            num_slots, slot_bytes = self._buffer_slots(processes)
            self._decoder = make_decoding(
                decode_function(opened, self.order.seed, collator),
                num_workers=self.num_workers,
                deadline=self.decode_deadline,
                num_slots=num_slots,
                slot_bytes=slot_bytes,
            )
        return self._decoder

    def shared_bytes(self, processes: TrainingProcesses) -> int:
        """Return the shared memory in bytes for the frames of a process's workers; a page is used once written."""
        return pool_bytes(*self._buffer_slots(processes)) if self.num_workers else 0

    def check_memory(self, processes: TrainingProcesses) -> None:
        """Refuse training batches whose clips need more memory than there is; see `require_memory`."""
        require_memory(self._own_samples(processes), self._clip_bytes)

    def _own_samples(self, processes: TrainingProcesses) -> int:
        """Return how many samples of a batch a process has at most."""
        sizes = [
            source.batch_size if name == "train" and source.batch_size else self.order.batch_size
            for name, split in self.splits.items()
            for source in split.sources
        ]
        return -(-max(sizes, default=self.order.batch_size) // processes.count)

    def _buffer_slots(self, processes: TrainingProcesses) -> tuple[int, int]:
        """Return the number of samples of a process that may be in flight at a time, and bytes of the largest."""
        own = self._own_samples(processes)
        most_clips = max(decoder.max_clips for decoder in self._decoders)
        return 2 * (self._prefetched(own) + own), max(SMALLEST_SLOT_BYTES, most_clips * self._clip_bytes)

    @property
    def _decoders(self) -> list[SampleDecoder]:
        return [one.decoder for split in self.splits.values() for one in split.opened]

    @property
    def _clip_bytes(self) -> int:
        clip = self._decoders[0].clip
        return len(clip.frame_numbers) * 3 * clip.height * clip.width

    def close(self) -> None:
        """End the workers."""
        if self._decoder is not None:
            self._decoder.close()
            self._decoder = None
