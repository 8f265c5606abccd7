"""Workers that hang, crash or fail cost the sample they had, never the run; none is left behind."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
import traceback

import pytest
import torch

from divot_datamodules.decoding.samples import Sample
from divot_datamodules.loading.decode_pool import DecodePool, LazyDecoding, make_decoding
from divot_datamodules.loading.decode_worker import Request
from divot_datamodules.loading.shared_memory import SharedMemoryPool
from divot_datamodules.order.source_order import SampleIndex
from divot_lightning.errors import UserError
from divot_lightning.parts.sources import SampleError
from tests.helpers.faults import full_shared_memory

DEADLINE = 0.5


TRIES = multiprocessing.get_context("fork").Value("i", 0)


def counted_tries():
    with TRIES.get_lock():
        TRIES.value += 1
        return TRIES.value


def request(number):
    return Request("train", SampleIndex(number, 0, 0, 0, number))


def decode(request):
    """Decode to what the sample's number says, or misbehave."""
    number = request.sample.number
    if number == 10:
        time.sleep(60)
    if number == 11:
        os.kill(os.getpid(), signal.SIGKILL)
    if number == 12:
        raise SampleError("too_short", "0.1 s")
    if number == 13:
        raise KeyError("what no decoder should raise")
    if number == 14:
        raise UserError("a setting is wrong")
    if number == 15:
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])  # as a decoder stuck in C does not hear it
        time.sleep(60)
    if number == 16 and counted_tries() <= 3:
        os.kill(os.getpid(), signal.SIGTERM)  # as whoever stops a job signals all of its processes
        time.sleep(60)
    video = torch.full((1, 2, 3, 4, 4), number, dtype=torch.uint8)
    return Sample(f"k{number}", {"pid": os.getpid(), "threads": torch.get_num_threads()}, video=video)


@pytest.fixture
def pool():
    pool = DecodePool(decode, 2, DEADLINE, SharedMemoryPool(4, 2**10))
    yield pool
    pool.close()
    assert not [child for child in multiprocessing.active_children() if "pebble" in child.name]


def outcome(pending):
    try:
        return pending.result().key
    except (SampleError, UserError) as error:
        return getattr(error, "reason", str(error))
    finally:
        pending.release()


def test_what_goes_wrong_costs_one_sample(pool):
    numbers = [0, 10, 1, 11, 2, 12, 14, 3, 15, 4, 5]
    begin = time.monotonic()
    pending = [pool.submit(request(number)) for number in numbers]
    reasons = {10: "deadline", 11: "worker_died", 12: "too_short", 14: "a setting is wrong"}
    reasons[15] = "deadline"
    assert [outcome(one) for one in pending] == [reasons.get(number, f"k{number}") for number in numbers]
    assert time.monotonic() - begin < 55
    assert outcome(pool.submit(request(6))) == "k6"


@pytest.mark.parametrize("workers", [0, 1])
def test_a_bug_is_no_skipped_sample_and_is_raised_with_its_traceback(workers):
    decoding = make_decoding(decode, num_workers=workers, deadline=30, num_slots=2, slot_bytes=2**10)
    with pytest.raises(KeyError, match="what no decoder should raise") as caught:
        decoding.submit(request(13)).result()
    decoding.close()
    text = "".join(traceback.format_exception(caught.value))
    assert "in decode\n" in text
    assert 'raise KeyError("what no decoder should raise")' in text


def test_a_sample_is_not_skipped_when_its_workers_are_told_to_stop(pool):
    assert outcome(pool.submit(request(16))) == "k16"
    assert TRIES.value == 4


def test_samples_arrive_whole_whether_they_fit_into_shared_memory_or_not(pool):
    pending = [pool.submit(request(number)) for number in range(9)]  # more than buffer slots
    for number, one in enumerate(pending):
        sample = one.result()
        assert sample.text["pid"] != os.getpid()
        assert sample.text["threads"] == 1
        assert torch.equal(sample.video, torch.full((1, 2, 3, 4, 4), number, dtype=torch.uint8))
        one.release()


def test_buffer_slots_are_used_again_and_released_samples_free_theirs(pool):
    for _ in range(3):
        for one in [pool.submit(request(number)) for number in range(8)]:
            one.release()
    assert outcome(pool.submit(request(1))) == "k1"
    deadline = time.monotonic() + 50
    while pool.given_up and time.monotonic() < deadline:
        time.sleep(0.02)
    assert sorted(pool.memory.acquire() for _ in range(4)) == [0, 1, 2, 3]


def test_a_broken_pool_is_replaced_and_its_samples_are_requested_again(pool):
    pending = [pool.submit(request(number)) for number in range(3)]
    pending[0].result()
    pool.rebuild()
    later = [pool.submit(request(number)) for number in (3, 4)]
    assert [outcome(one) for one in [*pending, *later]] == ["k0", "k1", "k2", "k3", "k4"]


def test_workers_that_die_again_and_again_end_the_run(pool):
    for _ in range(3):
        pool.rebuild()
    with pytest.raises(UserError, match=r"the 2 workers that decode died 3 times in a row"):
        pool.rebuild()


def test_a_full_dev_shm_is_told_with_what_to_do():
    pool = DecodePool(decode, 2, 30, SharedMemoryPool(2, 64))
    with full_shared_memory(), pytest.raises(UserError, match=r"No space left on device\n.*/dev/shm.*num_workers 0"):
        pool.submit(request(1))


def test_without_workers_this_process_decodes_when_it_waits():
    decoding = make_decoding(decode, num_workers=0, deadline=1, num_slots=0, slot_bytes=0)
    assert isinstance(decoding, LazyDecoding)
    assert decoding.submit(request(1)).result().text["pid"] == os.getpid()
    assert outcome(decoding.submit(request(12))) == "too_short"


def test_workers_end_with_a_process_that_is_killed():
    code = (
        "import sys, time\n"
        "from divot_datamodules.loading.decode_pool import DecodePool\n"
        "from divot_datamodules.loading.decode_worker import Request\n"
        "from divot_datamodules.loading.shared_memory import SharedMemoryPool\n"
        "from divot_datamodules.order.source_order import SampleIndex\n"
        "from divot_datamodules.decoding.samples import Sample\n"
        "import os\n"
        "def decode(request):\n"
        "    time.sleep(0.2)\n"
        "    return Sample('k', {'pid': os.getpid()})\n"
        "pool = DecodePool(decode, 2, 30, SharedMemoryPool(2, 64))\n"
        "asked = [pool.submit(Request('train', SampleIndex(n, 0, 0, 0, n))) for n in range(4)]\n"
        "print(*{one.result().text['pid'] for one in asked}, flush=True)\n"
        "time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout.readline().split()
    process.kill()
    # The workers hold these pipes too: they are at their end once all workers are gone.
    assert process.communicate(timeout=50) == ("", "")
