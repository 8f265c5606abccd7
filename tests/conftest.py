"""For all tests."""

import gc

import pytest


def pytest_collection_finish(session: pytest.Session) -> None:
    """Spare garbage collections, of which training and decoding cause many, the modules and tests that stay anyway."""
    gc.collect()
    gc.freeze()
