import pytest
import torch

from divot_datamodules.decoding.samples import Sample
from divot_datamodules.loading.shared_memory import (
    PickledTensor,
    SharedMemoryPool,
    StoredTensor,
    pool_bytes,
    require_memory,
    without_repeats,
)
from divot_lightning.errors import UserError

VIDEO = torch.arange(2 * 3 * 4 * 4, dtype=torch.uint8).reshape(1, 2, 3, 4, 4)
FEATURES = torch.randn(1, 3, 5)


def test_what_is_stored_is_loaded_and_buffer_slots_do_not_overlap():
    pool = SharedMemoryPool(2, 512)
    first, second = pool.acquire(), pool.acquire()
    stored = [
        pool.store(slot, Sample(f"k{slot}", {}, video=VIDEO + slot, features=FEATURES)) for slot in (first, second)
    ]
    assert all(isinstance(one.video, StoredTensor) and isinstance(one.features, StoredTensor) for one in stored)
    for slot, one in zip((first, second), stored, strict=True):
        loaded = pool.load(one)
        assert torch.equal(loaded.video, VIDEO + slot)
        assert torch.equal(loaded.features, FEATURES)


def test_what_does_not_fit_is_pickled():
    pool = SharedMemoryPool(1, 64)
    for slot in (pool.acquire(), None):
        stored = pool.store(slot, Sample("k", {}, video=VIDEO))
        assert isinstance(stored.video, PickledTensor)
        assert torch.equal(pool.load(stored).video, VIDEO)


def test_repeated_frames_take_the_memory_of_one():
    picture = torch.arange(48, dtype=torch.uint8).reshape(1, 1, 3, 4, 4).expand(1, 16, 3, 4, 4)
    assert without_repeats(picture).shape == (1, 1, 3, 4, 4)
    pool = SharedMemoryPool(1, 64)
    stored = pool.store(pool.acquire(), Sample("k", {}, video=picture))
    assert isinstance(stored.video, StoredTensor)
    assert torch.equal(pool.load(stored).video, picture)


def test_buffer_slots_are_given_out_once_and_again_after_their_release():
    pool = SharedMemoryPool(2, 64)
    slots = [pool.acquire(), pool.acquire()]
    assert sorted(slots) == [0, 1]
    assert pool.acquire() is None
    pool.mark_unneeded(slots[0])
    assert [pool.is_unneeded(slot) for slot in (*slots, None)] == [True, False, False]
    pool.release(slots[0])
    assert pool.acquire() == slots[0]
    assert not pool.is_unneeded(slots[0])


def test_memory_that_the_machine_does_not_have_is_a_user_error():
    with pytest.raises(UserError, match=r"share 1048576.0 GiB .* does not have"):
        SharedMemoryPool(2**20, 2**30)


def test_the_size_of_the_pool_is_that_of_its_aligned_buffer_slots():
    assert pool_bytes(3, 65) == 3 * 128
    assert len(SharedMemoryPool(3, 65)._memory) == pool_bytes(3, 65)


def test_a_batch_whose_frames_do_not_fit_into_the_machine_is_refused():
    require_memory(64, 2**20)
    with pytest.raises(UserError, match=r"1000000000 samples of a batch, whose frames take \d+ GiB; this machine has"):
        require_memory(10**9, 2**20)
