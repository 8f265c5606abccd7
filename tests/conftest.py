"""For all tests."""

import gc
from collections.abc import Generator

import pytest
from hypothesis import settings

# A busy machine is slow; no test has a bound in seconds.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Spare garbage collections the modules and tests that stay anyway, while they come and afterwards.

    Imports and the collection of tests make millions of objects, among which Python would look for garbage again and
    again; so would training and decoding, which cause many collections.
    """
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()
