"""Import large libraries without Python's search for garbage, of which imports leave none."""

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quick_imports() -> Iterator[None]:
    """Surround the imports of a command; without effect if torch was imported before.

    Python looks for garbage after every few hundred new objects, now and then among all of them, and again when it
    ends. For torch, transformers and Lightning that takes a second or more in all. Here it does not look, and takes
    what was imported out of every later search.
    """
    if "torch" in sys.modules:
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
