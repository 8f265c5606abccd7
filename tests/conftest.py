"""For all tests."""

import gc

import pytest
from hypothesis import settings

# A busy machine is slow; no test has a bound in seconds.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")


def pytest_collection_finish(session: pytest.Session) -> None:
    """Spare garbage collections, of which training and decoding cause many, the modules and tests that stay anyway."""
    gc.collect()
    gc.freeze()
