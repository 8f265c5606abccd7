"""What runs in a worker process: decode requested samples, and end when the training process is gone."""

import os
import threading
import time
from collections.abc import Callable
from typing import NamedTuple

import torch

from divot_datamodules.decoding.samples import Sample
from divot_datamodules.loading.shared_memory import SharedMemoryPool
from divot_datamodules.order.source_order import SampleIndex
from divot_lightning.errors import UserError
from divot_lightning.parts.sources import SampleError


class Request(NamedTuple):
    """A request to read and decode one sample.

    Attributes:
        data: Name of the split: "train", "validation" or "test".
        sample: The sample's entry in the order.
    """

    data: str
    sample: SampleIndex


Decode = Callable[[Request], Sample]

_worker: tuple[Decode, SharedMemoryPool] | None = None


def begin_worker(decode: Decode, memory: SharedMemoryPool, parent: int) -> None:
    """Keep what a worker needs for all its samples, and end it with the training process."""
    global _worker
    torch.set_num_threads(1)
    _worker = decode, memory
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: int) -> None:
    """End this worker when the training process is gone, even if it was killed."""
    while os.getppid() == parent:
        time.sleep(1.0)
    os._exit(1)


def decode_in_worker(request: Request, slot: int | None) -> Sample | Exception | None:
    """Decode in a worker. Errors of the sample are returned, not raised, so that no traceback crosses processes.

    Other errors are bugs: pebble sends them with their traceback, and they end the run.
    """
    assert _worker is not None
    decode, memory = _worker
    if memory.is_unneeded(slot):
        return None
    try:
        return memory.store(slot, decode(request))
    except (SampleError, UserError) as error:
        return error.with_traceback(None)
