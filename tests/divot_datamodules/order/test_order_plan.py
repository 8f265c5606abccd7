"""The order is a function of the recipe: every pass is whole, every layout sees the same steps, weights hold."""

from collections import Counter
from itertools import chain, pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from divot_datamodules.order.order_plan import OrderPlan, Origin, weighted_round_robin
from divot_datamodules.order.source_order import SampleIndex, SourceOrder
from divot_lightning.errors import UserError

WORLDS, SHARDS = (1, 2, 3, 4), (1, 3, 7, 64)

shard_counts = st.lists(st.integers(0, 9), min_size=1, max_size=64).filter(any)


@st.composite
def source_orders(draw) -> SourceOrder:
    return SourceOrder(
        counts=tuple(draw(shard_counts)),
        seed=draw(st.integers(0, 99)),
        streams=draw(st.integers(1, 80)),
        shuffle=draw(st.integers(1, 300)),
    )


def every_sample(order: SourceOrder) -> list[tuple[int, int]]:
    return [(shard, sample) for shard, count in enumerate(order.counts) for sample in range(count)]


@given(source_orders(), st.integers(0, 3))
def test_each_pass_holds_every_sample_once(order, pass_number):
    found = [order.locate(index) for index in range(pass_number * order.size, (pass_number + 1) * order.size)]
    assert {one[0] for one in found} == {pass_number}
    assert sorted(one[1:] for one in found) == every_sample(order)


def test_passes_differ_and_so_do_seeds():
    order = SourceOrder(counts=(40, 30, 30), seed=1)
    passes = [[order.locate(index)[1:] for index in range(start, start + 100)] for start in (0, 100)]
    other = [SourceOrder(counts=(40, 30, 30), seed=2).locate(index)[1:] for index in range(100)]
    assert passes[0] != passes[1]
    assert passes[0] != other


def test_a_window_draws_from_as_many_shards_as_there_are_streams():
    order = SourceOrder(counts=(1000,) * 64, streams=16, shuffle=64)
    shards = [order.locate(index)[1] for index in range(64)]
    assert len(set(shards)) == 16


def test_streams_read_their_shards_one_after_another():
    order = SourceOrder(counts=(100,) * 20, streams=4, shuffle=1)
    for stream in range(4):
        visited = [order.locate(index)[1] for index in range(stream, order.size, 4)]
        changes = sum(a != b for a, b in pairwise(visited))
        assert changes == len(set(visited)) - 1 == 4


def test_neighbours_in_a_shard_are_spread_by_the_shuffle():
    order = SourceOrder(counts=(5000,), shuffle=1000)
    samples = np.array([order.locate(index)[2] for index in range(5000)])
    assert np.abs(np.corrcoef(samples[:-1], samples[1:])[0, 1]) < 0.1


@given(source_orders(), st.integers(1, 40), st.booleans())
def test_a_step_takes_the_same_samples_for_every_world_size(order, batch_size, exact):
    plan = OrderPlan((order,), (batch_size,), exact=exact)
    for step in range(5):
        whole = plan.batch(step)
        for world in WORLDS:
            shares = [plan.batch(step, rank, world) for rank in range(world)]
            assert shares == [whole[rank::world] for rank in range(world)]
            assert sorted(chain(*shares)) == sorted(whole)
            assert max(map(len, shares)) - min(map(len, shares)) <= 1


@pytest.mark.parametrize("batch_sizes", [(7,), (7, 4, 3)])
def test_a_process_computes_its_part_of_a_step_of_several_sources(batch_sizes):
    sources = tuple(SourceOrder(counts=(5, 6), seed=seed) for seed in range(3))
    plan = OrderPlan(sources, batch_sizes, weights=(3.0, 2.0, 1.0))
    for step in range(12):
        assert [plan.batch(step, rank, 3) for rank in range(3)] == [plan.batch(step)[rank::3] for rank in range(3)]


@pytest.mark.parametrize("shards", SHARDS)
def test_an_exact_epoch_covers_the_source_once(shards):
    order = SourceOrder(counts=tuple(np.random.default_rng(shards).integers(1, 9, shards).tolist()))
    plan = OrderPlan((order,), (12,), exact=True)
    for epoch in range(2):
        steps = range(epoch * plan.steps_per_epoch, (epoch + 1) * plan.steps_per_epoch)
        indices = [index for step in steps for index in plan.batch(step)]
        assert sorted((index.shard, index.sample) for index in indices) == every_sample(order)
        assert {index.pass_number for index in indices} == {epoch}


def test_endless_steps_are_full_and_reach_over_the_end_of_a_pass():
    plan = OrderPlan((SourceOrder(counts=(5, 6)),), (4,))
    indices = [index for step in range(11) for index in plan.batch(step)]
    assert [index.number for index in indices] == list(range(44))
    assert Counter((index.shard, index.sample) for index in indices) == dict.fromkeys(every_sample(plan.sources[0]), 4)


@given(st.lists(st.floats(0.01, 10), min_size=1, max_size=6))
@settings(max_examples=30, deadline=None)
def test_fractions_are_within_one_percent_over_ten_thousand_samples(weights):
    _, counts = weighted_round_robin(10_000, tuple(weights))
    assert sum(counts) == 10_000
    for count, weight in zip(counts, weights, strict=True):
        assert abs(count / 10_000 - weight / sum(weights)) < 0.01


@given(st.lists(st.floats(0.01, 10), min_size=1, max_size=6))
@settings(max_examples=30, deadline=None)
def test_turns_agree_with_a_count_one_by_one(weights):
    counts = [0] * len(weights)
    for number in range(300):
        turn, before = weighted_round_robin(number, tuple(weights))
        assert before == tuple(counts)
        counts[turn] += 1


@given(st.lists(source_orders(), min_size=2, max_size=4), st.integers(1, 24))
@settings(max_examples=30, deadline=None)
def test_a_mixture_of_samples_takes_each_source_in_its_own_order(orders, batch_size):
    plan = OrderPlan(tuple(orders), (batch_size,), weights=tuple(range(1, len(orders) + 1)))
    indices = [index for step in range(20) for index in plan.batch(step)]
    assert [index.number for index in indices] == list(range(20 * batch_size))
    for source, order in enumerate(orders):
        mine = [(index.pass_number, index.shard, index.sample) for index in indices if index.source == source]
        assert mine == [order.locate(index) for index in range(len(mine))]


def test_steps_of_one_source_each_have_that_sources_batch_size_and_fraction():
    orders = (SourceOrder(counts=(50,)), SourceOrder(counts=(70, 3)), SourceOrder(counts=(9,)))
    plan = OrderPlan(orders, (8, 32, 32), weights=(1.3, 1.0, 0.3))
    steps = [plan.batch(step) for step in range(2600)]
    assert all(len({index.source for index in step}) == 1 for step in steps)
    assert {(step[0].source, len(step)) for step in steps} == {(0, 8), (1, 32), (2, 32)}
    numbers = [index.number for step in steps for index in step]
    assert numbers == list(range(len(numbers)))
    shares = Counter(step[0].source for step in steps)
    assert [shares[source] / 2600 for source in range(3)] == pytest.approx([0.5, 1 / 2.6, 0.3 / 2.6], abs=0.001)


@pytest.mark.parametrize("batch_sizes", [(6,), (6, 9)])
def test_a_plan_with_another_batch_size_continues_where_the_first_stopped(batch_sizes):
    orders = (SourceOrder(counts=(50, 20)), SourceOrder(counts=(31,)))
    first = OrderPlan(orders, batch_sizes, weights=(2.0, 1.0))
    origin = Origin(7, first.samples_before(7))
    second = OrderPlan(orders, tuple(2 * size for size in batch_sizes), weights=(2.0, 1.0), origin=origin)
    taken = [index for step in range(7) for index in first.batch(step)]
    taken += [index for step in range(7, 20) for index in second.batch(step)]
    assert [index.number for index in taken] == list(range(len(taken)))
    for source, order in enumerate(orders):
        mine = [(index.pass_number, index.shard, index.sample) for index in taken if index.source == source]
        assert mine == [order.locate(index) for index in range(len(mine))]


def test_any_step_is_reached_without_the_steps_before():
    counts = (1000,) * 10_000
    far = OrderPlan((SourceOrder(counts=counts),), (256,)).batch(10**6)
    assert far == OrderPlan((SourceOrder(counts=counts),), (256,)).batch(10**6)
    assert far[0].number == 256 * 10**6
    assert isinstance(far[0], SampleIndex)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SourceOrder(counts=(0, 0)), "a source of 2 shards holds no samples"),
        (lambda: SourceOrder(counts=(1,), streams=0), "streams is 0"),
        (lambda: SourceOrder(counts=(1,), shuffle=0), "window is 0 samples"),
        (lambda: OrderPlan((SourceOrder((1,)),) * 2, (4,), weights=(1.0, 0.0)), "the weight 0.0"),
        (lambda: OrderPlan((SourceOrder((1,)),), (0,)), "a batch size is 0"),
        (lambda: OrderPlan((SourceOrder((1,)),) * 2, (4,), exact=True), "2 sources are mixed by weight"),
    ],
)
def test_impossible_plans_are_refused(make, message):
    with pytest.raises(UserError, match=message):
        make()
