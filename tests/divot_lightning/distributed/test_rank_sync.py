import time
from dataclasses import replace

from torch import distributed

from divot_lightning.distributed.rank_sync import RankDesyncError, RankSync, StepState, check_ranks_in_sync
from divot_lightning.testing import run_distributed

PLAN = StepState("LLMPretraining train step", 7, 3, 8, ["a", "b", "c", "d"], 2, 4)


def meet(rank):
    """Several meetings of three ranks: a good one, then ones where rank 2 is elsewhere."""
    outcomes = [check_ranks_in_sync(replace(PLAN, clips=rank, samples=3 - rank))]
    for changes in ({"work": "LLMPretraining validation step"}, {"step": 8}, {"batch_index": 4}, {"position": 9}):
        plan = replace(PLAN, keys=["x"], **changes) if rank == 2 else PLAN
        try:
            outcomes.append(check_ranks_in_sync(plan))
        except RankDesyncError as error:
            outcomes.append(str(error))
    return outcomes


def wait_for_one_that_does_not_come(rank, waited):
    check_ranks_in_sync(PLAN, 2.0)
    started = time.monotonic()
    while rank == 1 and not waited.exists() and time.monotonic() < started + 60.0:
        time.sleep(0.05)
    if rank == 1:
        return "", 0.0
    try:
        check_ranks_in_sync(PLAN, 2.0)
    except RankDesyncError as error:
        return str(error), time.monotonic() - started
    finally:
        waited.touch()


def test_ranks_learn_what_the_others_hold_and_where_they_part_ways():
    every = run_distributed(meet, 3)
    assert every[0] == every[1] == every[2]
    good, *bad = every[0]
    assert good == RankSync(most_clips=2, most_samples=3)
    for words, message in zip(("validation step", "step 8", "batch 4", "data position 9"), bad, strict=True):
        assert len(message.splitlines()) <= 5
        first, other = message.splitlines()[1:]
        assert first == (
            "rank 0 and 1 more: LLMPretraining train step, step 7, batch 3, data position 8, samples a, b, c and 1 more"
        )
        assert other.startswith("rank 2: ")
        assert words in other
        assert "samples x" in other


def test_a_rank_that_does_not_come_is_named_within_the_time_that_is_set(tmp_path):
    (message, seconds), _ = run_distributed(wait_for_one_that_does_not_come, 2, tmp_path / "waited")
    assert "rank 1 did not come" in message
    assert "LLMPretraining train step, step 7" in message
    assert 1.9 <= seconds < 15.0


def test_one_process_is_always_in_sync():
    assert not distributed.is_initialized()
    assert check_ranks_in_sync(PLAN) == RankSync(2, 4)
