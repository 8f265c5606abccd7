"""Imports of a command are not searched for garbage; a process that has torch already stays as it is."""

import gc
import sys

import pytest

from divot_lightning.io.quick_imports import quick_imports


@pytest.fixture
def without_torch(monkeypatch):
    """A process that seems not to have imported torch; what is frozen thaws at the end."""
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    yield
    gc.unfreeze()


def test_nothing_is_collected_within_and_what_was_made_stays_out_of_later_collections(without_torch):
    before = gc.get_freeze_count()
    with quick_imports():
        assert not gc.isenabled()
        made = [[] for _ in range(1000)]
    assert gc.isenabled()
    assert gc.get_freeze_count() >= before + len(made)


def test_collections_continue_after_an_import_that_fails(without_torch):
    with pytest.raises(ModuleNotFoundError), quick_imports():
        import divot_lightning.no_such_module  # noqa: F401
    assert gc.isenabled()


def test_a_process_that_has_torch_is_left_alone(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", sys)
    before = gc.get_freeze_count()
    with quick_imports():
        assert gc.isenabled()
    assert gc.get_freeze_count() == before
