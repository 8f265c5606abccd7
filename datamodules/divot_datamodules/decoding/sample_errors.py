"""The only function that turns errors of decoding libraries into a `SampleError`.

A `TypeError`, `AttributeError`, `NameError` or `KeyError` is a bug, most likely ours. It is never counted as a skipped
sample: a run that skips sample after sample because of a bug would hide it.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import av

from divot_datamodules.decoding.video import DecodeError
from divot_lightning.errors import UserError
from divot_lightning.parts.sources import SampleError

DATA_ERRORS = (
    ArithmeticError,
    BufferError,
    EOFError,
    MemoryError,
    OSError,
    RuntimeError,
    ValueError,
    av.FFmpegError,
)
"""Errors that decoding libraries raise for bad data."""


@contextmanager
def decoding_errors() -> Iterator[None]:
    """Turn errors that bad data cause while a sample is decoded into a `SampleError`.

    Raises:
        SampleError: With the reason of the `DecodeError`, or "unexpected_error" for another error of `DATA_ERRORS`.
    """
    try:
        yield
    except DecodeError as error:
        raise SampleError(error.reason, error.detail) from error
    except UserError:
        raise
    except DATA_ERRORS as error:
        raise SampleError("unexpected_error", f"{type(error).__name__}: {error}"[:300]) from error
