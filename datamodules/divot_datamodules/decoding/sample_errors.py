"""Which errors cost one sample, and where errors of libraries become such: at the boundary to decoding, nowhere else.

A `TypeError`, `AttributeError`, `NameError` or `KeyError` is a mistake in a program, most likely ours. It is never
counted as a bad sample: a run that leaves out sample after sample because of it would hide what is wrong.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import av

from divot_datamodules.decoding.video import DecodeError
from divot_lightning.errors import UserError

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
"""What libraries that decode raise for data that they cannot make sense of."""


class SampleError(Exception):
    """A sample cannot be used.

    Attributes:
        reason: Short fixed name; the ledger counts by it.
        detail: What was seen.
    """

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(reason, detail)
        self.reason, self.detail = reason, detail


@contextmanager
def decoding_errors() -> Iterator[None]:
    """Turn what decoding of a sample's own bytes raises for bad data into a `SampleError`.

    Raises:
        SampleError: With the decoder's reason, or "unexpected_error" for an error of `DATA_ERRORS` that it did not
            foresee.
    """
    try:
        yield
    except DecodeError as error:
        raise SampleError(error.reason, error.detail) from error
    except UserError:
        raise
    except DATA_ERRORS as error:
        raise SampleError("unexpected_error", f"{type(error).__name__}: {error}"[:300]) from error
