import os
import time

import pytest
import torch
from torch import distributed

from divot_lightning.testing import DistributedError, run_distributed


class Box:
    """A class of a test file, which travels there and back."""

    def __init__(self, content: torch.Tensor) -> None:
        self.content = content


def sum_of_ranks(rank: int, box: Box) -> Box:
    total = box.content + rank
    distributed.all_reduce(total)
    return Box(total)


def environment(rank: int) -> dict[str, str]:
    return {name: os.environ[name] for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "DS_ACCELERATOR")}


def fail_on_rank_one(rank: int) -> None:
    if rank == 1:
        raise ValueError("the shard is missing")
    distributed.barrier()


def die_on_rank_one(rank: int) -> None:
    if rank == 1:
        os._exit(7)
    distributed.barrier()


def stop_for_long(rank: int) -> None:
    if rank == 1:
        time.sleep(600)


def test_ranks_talk_to_each_other_and_results_come_back_in_order():
    results = run_distributed(sum_of_ranks, 3, Box(torch.ones(2)))
    assert [box.content.tolist() for box in results] == [[6.0, 6.0]] * 3
    assert type(results[0]) is Box


def test_each_process_knows_its_rank():
    expected = {"WORLD_SIZE": "1", "DS_ACCELERATOR": "cpu", "RANK": "0", "LOCAL_RANK": "0"}
    assert run_distributed(environment, 1) == [expected]


def test_error_of_a_rank_is_told_and_ends_the_others():
    started = time.monotonic()
    with pytest.raises(DistributedError, match=r"rank 1 raised:(?s:.*)ValueError: the shard is missing"):
        run_distributed(fail_on_rank_one, 2, timeout=100)
    assert time.monotonic() - started < 60


def test_death_of_a_rank_is_told_with_its_code():
    with pytest.raises(DistributedError, match="rank 1 ended with code 7"):
        run_distributed(die_on_rank_one, 2, timeout=100)


def test_rank_that_does_not_end_is_told_and_ended():
    with pytest.raises(DistributedError, match=r"rank 1 was not done \(limit 3 s\)"):
        run_distributed(stop_for_long, 2, timeout=3)
