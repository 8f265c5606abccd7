import pytest
import torch

from divot_datamodules.decoding.samples import Sample
from divot_datamodules.loading.shared_memory import (
    PickledTensor,
    SharedMemoryPool,
    StoredTensor,
    pool_bytes,
    without_repeats,
)
from divot_lightning.errors import UserError

VIDEO = torch.arange(2 * 3 * 4 * 4, dtype=torch.uint8).reshape(1, 2, 3, 4, 4)
FEATURES = torch.randn(1, 3, 5)


def test_what_is_stored_is_loaded_and_places_do_not_touch():
    arena = SharedMemoryPool(2, 512)
    first, second = arena.acquire(), arena.acquire()
    stored = [
        arena.store(place, Sample(f"k{place}", {}, video=VIDEO + place, features=FEATURES)) for place in (first, second)
    ]
    assert all(isinstance(one.video, StoredTensor) and isinstance(one.features, StoredTensor) for one in stored)
    for place, one in zip((first, second), stored, strict=True):
        loaded = arena.load(one)
        assert torch.equal(loaded.video, VIDEO + place)
        assert torch.equal(loaded.features, FEATURES)


def test_what_does_not_fit_is_pickled():
    arena = SharedMemoryPool(1, 64)
    for place in (arena.acquire(), None):
        stored = arena.store(place, Sample("k", {}, video=VIDEO))
        assert isinstance(stored.video, PickledTensor)
        assert torch.equal(arena.load(stored).video, VIDEO)


def test_repeated_frames_take_the_memory_of_one():
    picture = torch.arange(48, dtype=torch.uint8).reshape(1, 1, 3, 4, 4).expand(1, 16, 3, 4, 4)
    assert without_repeats(picture).shape == (1, 1, 3, 4, 4)
    arena = SharedMemoryPool(1, 64)
    stored = arena.store(arena.acquire(), Sample("k", {}, video=picture))
    assert isinstance(stored.video, StoredTensor)
    assert torch.equal(arena.load(stored).video, picture)


def test_places_are_handed_out_once_and_again_after_their_release():
    arena = SharedMemoryPool(2, 64)
    places = [arena.acquire(), arena.acquire()]
    assert sorted(places) == [0, 1]
    assert arena.acquire() is None
    arena.mark_unwanted(places[0])
    assert [arena.is_unwanted(place) for place in (*places, None)] == [True, False, False]
    arena.release(places[0])
    assert arena.acquire() == places[0]
    assert not arena.is_unwanted(places[0])


def test_memory_that_the_machine_does_not_give_is_told_in_words():
    with pytest.raises(UserError, match=r"share 1048576.0 GiB .* does not give"):
        SharedMemoryPool(2**20, 2**30)


def test_the_size_of_an_arena_is_that_of_its_aligned_places():
    assert pool_bytes(3, 65) == 3 * 128
    assert len(SharedMemoryPool(3, 65)._memory) == pool_bytes(3, 65)
