from itertools import islice

import numpy as np
import pytest
import torch

from divot_datamodules.ledger import Budget, Ledger
from divot_datamodules.samples import Sample, SampleDecoder, tokenizer_items
from divot_datamodules.shard_reading import RawSample
from divot_datamodules.shard_stream import Place, SampleCache, ShardStream, shuffled
from divot_lightning.errors import UserError


def stream_of(folder, **changes):
    shards = sorted(str(path) for path in folder.glob("*.tar"))
    settings = {"training": True, "ledger": Ledger("train"), "shuffle_buffer": 4} | changes
    return ShardStream(shards, SampleDecoder(), lambda sample, rng: tokenizer_items(sample), **settings)


def keys(stream, count=None):
    return [item and item["key"] for item in islice(iter(stream), count)]


@pytest.mark.parametrize("buffer", [0, 1, 3, 100])
def test_a_shuffle_gives_every_item_once_and_by_its_seed(buffer):
    orders = [list(shuffled(range(50), buffer, np.random.default_rng(seed))) for seed in (0, 0, 1)]
    assert sorted(orders[0]) == list(range(50))
    assert orders[0] == orders[1]
    assert (orders[0] != orders[2]) is (buffer > 1)


def test_each_training_pass_covers_the_shards_once_in_a_new_order(video_shards):
    seen = keys(stream_of(video_shards(shards=3, samples=4)), 36)
    passes = [seen[:12], seen[12:24], seen[24:]]
    assert all(sorted(one) == sorted(f"s{s}n{n}" for s in range(3) for n in range(4)) for one in passes)
    assert passes[0] != passes[1] != passes[2]


def test_the_order_follows_the_seed(video_shards):
    folder = video_shards(shards=3, samples=4)
    orders = [keys(stream_of(folder, seed=seed), 24) for seed in (0, 0, 1)]
    assert orders[0] == orders[1] != orders[2]


def test_readers_share_the_training_shards_without_overlap(video_shards):
    folder = video_shards(shards=4, samples=2)
    parts = [set(keys(stream_of(folder, rank=rank, world_size=2), 4)) for rank in range(2)]
    assert len(parts[0] | parts[1]) == 8


def test_validation_is_one_pass_in_order_shared_out_by_samples(video_shards):
    folder = video_shards(shards=2, samples=3)
    whole = [f"s{s}n{n}" for s in range(2) for n in range(3)]
    assert keys(stream_of(folder, training=False)) == whole
    for rank in range(4):
        assert keys(stream_of(folder, training=False, rank=rank, world_size=4)) == whole[rank::4]


def test_unusable_samples_leave_gaps_in_validation_and_none_in_training(video_shards, tmp_path):
    folder = video_shards(shards=1, samples=2, extra=[("zbad.mp4", b"rubbish"), ("zlonely.json", b"{}")])
    ledger = Ledger("x", tmp_path / "run", Budget(1.0))
    assert keys(stream_of(folder, training=False, ledger=ledger)) == ["s0n0", "s0n1", None, None]
    assert ledger.counts() == {"undecodable": 1, "missing_media": 1}
    assert {(d.shard, d.key) for d in ledger.defects()} == {(str(folder / "000.tar"), k) for k in ("zbad", "zlonely")}
    assert set(keys(stream_of(folder, ledger=ledger), 8)) == {"s0n0", "s0n1"}


def test_a_broken_shard_is_noted_and_the_others_go_on(video_shards, tmp_path):
    folder = video_shards(shards=2, samples=3)
    path = folder / "000.tar"
    path.write_bytes(path.read_bytes()[:7000])
    ledger = Ledger("x", tmp_path / "run", Budget(1.0))
    seen = set(keys(stream_of(folder, ledger=ledger), 12))
    assert {"s1n0", "s1n1", "s1n2"} < seen
    assert ledger.counts() == {"broken_shard": 1}


def test_a_stream_of_nothing_usable_ends_with_a_report(tmp_path, write_tar):
    write_tar(tmp_path / "a" / "0.tar", [(f"k{number}.mp4", b"rubbish") for number in range(3)])
    with pytest.raises(UserError, match=r"3 of 3 samples.*undecodable 3"):
        next(iter(stream_of(tmp_path / "a")))


def test_kept_samples_are_not_decoded_again(video_shards):
    folder = video_shards(shards=2, samples=3, extra=[("zbad.mp4", b"rubbish")])
    stream = stream_of(folder, cache_bytes=2**30, ledger=Ledger("x", budget=Budget(1.0)))
    decoded = []
    real = stream.decoder
    stream.decoder = lambda raw, rng: decoded.append(raw.key) or real(raw, rng)
    items = iter(stream)
    first = {item["key"]: item["video"] for item in islice(items, 6)}
    count = len(decoded)
    later = [item for item in islice(items, 12)]
    assert count >= 6
    assert len([key for key in decoded[count:] if key != "zbad"]) == 0
    assert sorted(item["key"] for item in later) == sorted([*first] * 2)
    assert all(torch.equal(item["video"], first[item["key"]]) for item in later)


def test_the_cache_keeps_to_its_memory_and_to_samples_without_a_choice():
    cache = SampleCache(max_bytes=250)
    raws = [RawSample(f"k{number}", "a.tar", number) for number in range(4)]
    for number, raw in enumerate(raws):
        media = torch.zeros(1, 100, dtype=torch.uint8)
        cache.add(raw, Sample(raw.key, {}, video=media, only_choice=number != 1))
    assert [cache.get(raw) is not None for raw in raws] == [True, False, True, False]
    cache.note_shard("a.tar", {0, 1, 2, 3})
    assert cache.shard("a.tar") is None
    cache.note_shard("a.tar", {0, 2})
    assert [number for number, _ in cache.shard("a.tar")] == [0, 2]


def test_places_count_all_readers():
    places = [Place(rank, 3, worker, 2) for rank in range(3) for worker in range(2)]
    assert [place.number for place in places] == list(range(6))
    assert {place.readers for place in places} == {6}
    assert len({place.name for place in places}) == 6
