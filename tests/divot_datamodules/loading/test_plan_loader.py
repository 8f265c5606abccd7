"""Batches by the plan: the same steps in any layout, continuing exactly, nothing lost in silence."""

from collections import Counter
from itertools import islice

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from divot_datamodules.loading.batch_reader import sample_rng
from divot_datamodules.loading.decoded_cache import DecodedCache
from divot_datamodules.loading.plan_loader import EvaluationLoader, TrainLoader
from divot_datamodules.loading.skipped_samples import Budget, SkippedSamples
from divot_datamodules.order.data_position import SourceFacts, TrainPosition
from divot_datamodules.order.order_plan import OrderPlan
from divot_datamodules.order.plan_edits import SkippedSteps
from divot_datamodules.order.source_order import SourceOrder
from divot_lightning.errors import UserError

WORLDS, SHARDS = (1, 2, 3, 4), (1, 3, 7, 64)
relaxed = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def position_of(*counts, batch_size=12, exact=False, edits=(), seed=0):
    orders = tuple(SourceOrder(tuple(one), seed=seed, streams=4, shuffle=5) for one in counts)
    weights = tuple(float(number) for number in range(1, len(counts) + 1))
    facts = [SourceFacts(f"source {number}", len(one), sum(one), str(one)) for number, one in enumerate(counts)]
    return TrainPosition(OrderPlan(orders, (batch_size,), weights, exact=exact), facts, edits)


def loaders_of(counted_reader, counted_source, counts, world_size, position, **reader_settings):
    return [
        TrainLoader(counted_reader(counted_source(counts), **reader_settings), position, rank, world_size)
        for rank in range(world_size)
    ]


def merged(parts):
    """Put the ranks' shares of a step back together."""
    world_size = len(parts)
    keys = [None] * sum(part["counted"] for part in parts)
    for rank, part in enumerate(parts):
        if part["counted"]:
            keys[rank::world_size] = part["key"]
    return keys


def steps_of(loaders, count):
    return [merged(parts) for parts in zip(*(islice(iter(loader), count) for loader in loaders), strict=True)]


@relaxed
@given(st.sampled_from(WORLDS), st.sampled_from(SHARDS), st.integers(1, 60), st.integers(0, 40), st.data())
def test_a_step_takes_the_same_samples_in_any_layout(
    counted_reader, counted_source, world_size, shards, samples, prefetch, data
):
    counts = [samples // shards + (number < samples % shards) for number in range(shards)]
    alone = steps_of(loaders_of(counted_reader, counted_source, counts, 1, position_of(counts)), 5)
    many = loaders_of(counted_reader, counted_source, counts, world_size, position_of(counts), prefetch=prefetch)
    assert steps_of(many, 5) == alone


@relaxed
@given(st.sampled_from(WORLDS), st.sampled_from(SHARDS), st.integers(1, 60))
def test_an_exact_epoch_covers_everything_once_with_as_many_batches_on_every_rank(
    counted_reader, counted_source, world_size, shards, samples
):
    counts = [samples // shards + (number < samples % shards) for number in range(shards)]
    loaders = loaders_of(counted_reader, counted_source, counts, world_size, position_of(counts, exact=True))
    batches = [list(loader) for loader in loaders]
    assert {len(one) for one in batches} == {len(loader) for loader in loaders} == {-(-samples // 12)}
    seen = [key for one in batches for batch in one if batch["counted"] for key in batch["key"]]
    assert sorted(seen) == sorted(f"u{shard}s{sample}" for shard, count in enumerate(counts) for sample in range(count))
    assert all(len(batch["key"]) > 0 for one in batches for batch in one)


def test_a_mixture_is_the_same_in_any_layout_and_keeps_its_weights(counted_reader, counted_source):
    counts = ([30], [7, 5])
    orders = []
    for world_size in WORLDS:
        position = position_of(*counts)
        loaders = [
            TrainLoader(
                counted_reader(counted_source(counts[0], "a"), counted_source(counts[1], "b")),
                position,
                rank,
                world_size,
            )
            for rank in range(world_size)
        ]
        orders.append([key for step in steps_of(loaders, 60) for key in step])
    assert orders[0] == orders[1] == orders[2] == orders[3]
    assert Counter(key[0] for key in orders[0])["b"] / len(orders[0]) == pytest.approx(2 / 3, abs=0.01)


def test_batches_are_the_same_with_and_without_reading_ahead_and_cache(counted_reader, counted_source):
    counts, batches = [5, 4], []
    for reading in ({}, {"prefetch": 50}, {"cache": DecodedCache(2**20)}):
        (loader,) = loaders_of(counted_reader, counted_source, counts, 1, position_of(counts), **reading)
        batches.append(list(islice(iter(loader), 6)))
    for batch, *others in zip(*batches, strict=True):
        for other in others:
            assert (batch["key"], batch["position"]) == (other["key"], other["position"])
            assert torch.equal(batch["sample_index"], other["sample_index"])
    assert all(torch.equal(a["video"], b["video"]) for a, b in zip(batches[0], batches[1], strict=True))


STEPS = 13


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("stops", [(step,) for step in range(STEPS)] + [(1, 3), (4, 5), (5, 10), (0, 12)])
def test_stopping_and_resuming_gives_the_uninterrupted_order_and_reads_nothing_again(
    counted_reader, counted_source, stops, exact
):
    counts = [25, 19, 7]  # 5 steps in an exact epoch, the last one with 3 samples
    (whole, _), *_ = _run(counted_reader, counted_source, counts, [], exact)
    parts = _run(counted_reader, counted_source, counts, list(stops), exact)
    assert [step for keys, _ in parts for step in keys] == whole
    for keys, reads in parts[1:]:
        assert sorted(reads) == sorted(key for step in keys for key in step)


def _run(counted_reader, counted_source, counts, stops, exact):
    """Run to each stop and to the end, on 4 processes, then 1, then 3; return each part's keys and reads."""
    parts, state, step = [], None, 0
    for number, stop in enumerate([*stops, STEPS]):
        world_size, prefetch = ((4, 0), (1, 20), (3, 7))[number]
        position = position_of(counts, exact=exact)
        if state is not None:
            position.load_state_dict(state)
        loaders = loaders_of(counted_reader, counted_source, counts, world_size, position, prefetch=prefetch)
        iterators, keys = [iter(loader) for loader in loaders], []
        while step < stop:
            batches = [next(iterator, None) for iterator in iterators]
            if batches[0] is None:  # an epoch ended
                assert exact
                iterators = [iter(loader) for loader in loaders]
                continue
            keys.append(merged(batches))
            position.used(batches[0]["position"])
            step += 1
        parts.append((keys, [key for loader in loaders for key in loader.reader.sources[0].source.reads]))
        state = position.state_dict()
    return parts


def test_another_batch_size_continues_after_the_samples_that_were_used(counted_reader, counted_source):
    counts = [40]
    whole = [
        key
        for step in steps_of(loaders_of(counted_reader, counted_source, counts, 1, position_of(counts)), 9)
        for key in step
    ]
    position = position_of(counts)
    position.used(3)
    later = position_of(counts, batch_size=8)
    later.load_state_dict(position.state_dict())
    found = steps_of(loaders_of(counted_reader, counted_source, counts, 2, later), 6)
    assert [key for step in found for key in step] == whole[36 : 36 + 48]


def test_skipped_steps_are_left_out_and_nothing_else_changes(counted_reader, counted_source):
    counts = [50, 13]
    whole = steps_of(loaders_of(counted_reader, counted_source, counts, 1, position_of(counts)), 8)
    edited = position_of(counts, edits=[SkippedSteps(2, 4, "2:4", "", ""), SkippedSteps(5, 6, "3:4", "", "")])
    assert steps_of(loaders_of(counted_reader, counted_source, counts, 2, edited), 5) == [
        whole[step] for step in (0, 1, 4, 6, 7)
    ]


def test_an_exact_epoch_cannot_be_edited():
    with pytest.raises(UserError, match="steps 2:4 are to be skipped, but epoch is exact"):
        position_of([5], exact=True, edits=[SkippedSteps(2, 4, "2:4", "", "")])


@pytest.mark.parametrize("prefetch", [0, 30])
@pytest.mark.parametrize("world_size", WORLDS)
def test_unusable_samples_make_batches_smaller_and_are_noted_once(
    counted_reader, counted_source, tmp_path, world_size, prefetch
):
    counts, bad = [12, 12], {"u0s1", "u1s0", "u1s11"}
    clean = steps_of(loaders_of(counted_reader, counted_source, counts, 1, position_of(counts)), 6)
    position = position_of(counts)
    found = []
    for rank in range(world_size):
        skipped = SkippedSamples("train", tmp_path, Budget(1.0), writer=f"rank{rank}")
        reader = counted_reader(counted_source(counts, bad=bad), skipped=skipped, prefetch=prefetch)
        found.append(list(islice(iter(TrainLoader(reader, position, rank, world_size)), 6)))
    for step, batches in enumerate(zip(*found, strict=True)):
        keys = [key for batch in batches if batch["counted"] for key in batch["key"]]
        assert sorted(keys) == sorted(set(clean[step]) - bad)
        assert sum(batch["counted"] for batch in batches) == len(keys)
    skipped = SkippedSamples("train", tmp_path)
    assert skipped.counts() == {"undecodable": 3}
    assert {(d.shard, d.key) for d in skipped.all()} == {("0.tar", "u0s1"), ("1.tar", "u1s0"), ("1.tar", "u1s11")}


def test_a_rank_without_a_sample_gets_a_dummy_sample_that_does_not_count(counted_reader, counted_source):
    counts = [2, 2]
    source = counted_source(counts, bad={"u0s0", "u0s1", "u1s0"})
    loader = TrainLoader(counted_reader(source), position_of(counts, batch_size=1))
    batches = list(islice(iter(loader), 8))
    assert [batch["key"] for batch in batches] == [["u1s1"]] * 8
    assert sum(batch["counted"] for batch in batches) == 2
    assert [batch["position"] for batch in batches] == list(range(1, 9))


def test_data_without_a_usable_sample_end_with_a_report(counted_reader, counted_source):
    source = counted_source([3], bad={"u0s0", "u0s1", "u0s2"})
    with pytest.raises(UserError, match=r"of 'train' cannot be used.*undecodable 3"):
        next(iter(TrainLoader(counted_reader(source), position_of([3], batch_size=1))))


@pytest.mark.parametrize("world_size", WORLDS)
def test_evaluation_is_one_pass_in_order_with_as_many_batches_on_every_rank(counted_reader, counted_source, world_size):
    sources = lambda: (counted_source([3, 0, 4], "a"), counted_source([6], "b"))  # noqa: E731
    loaders = [
        EvaluationLoader(counted_reader(*sources(), data="validation"), 12, rank, world_size)
        for rank in range(world_size)
    ]
    keys = [f"au0s{n}" for n in range(3)] + [f"au2s{n}" for n in range(4)] + [f"bu0s{n}" for n in range(6)]
    for _ in range(2):
        assert steps_of(loaders, 99) == [keys[:12], keys[12:]]
    assert {len(loader) for loader in loaders} == {2}


def test_random_choices_depend_on_the_sample_index_alone():
    assert sample_rng(1, 7, 0).random() == sample_rng(1, 7, 0).random()
    assert len({sample_rng(*numbers).random() for numbers in [(1, 7, 0), (2, 7, 0), (1, 8, 0), (1, 7, 1)]}) == 4


def test_batches_hold_no_memory_of_the_cache(counted_reader, counted_source):
    counts = [1]
    (loader,) = loaders_of(
        counted_reader, counted_source, counts, 1, position_of(counts, batch_size=1), cache=DecodedCache(2**20)
    )
    batches = iter(loader)
    first = next(batches)
    value = first["video"].clone()
    first["video"].zero_()
    assert torch.equal(next(batches)["video"], value)


def test_the_loader_tells_how_long_it_was_waited_for(counted_reader, counted_source):
    (loader,) = loaders_of(counted_reader, counted_source, [4], 1, position_of([4]))
    batches = iter(loader)
    next(batches)
    after_one = loader.waited_seconds
    next(batches)
    assert 0 < after_one < loader.waited_seconds


def test_only_exact_epochs_have_a_length(counted_reader, counted_source):
    with pytest.raises(TypeError, match="no length"):
        len(loaders_of(counted_reader, counted_source, [4], 1, position_of([4]))[0])
