"""Import large libraries without Python's search for garbage, of which imports leave none."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quick_imports() -> Iterator[None]:
    """Surround imports of a command.

    With every few hundred new objects Python looks for garbage among them, again and again among all: 5 to 10% of the
    time in which torch, transformers and Lightning are imported. What was imported is not looked at later, either.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
