"""A fraction of the data: the same samples for every seed, and part of every larger fraction."""

from itertools import chain, pairwise

import numpy as np
import pytest

from divot_datamodules.order.source_fraction import SourceFraction
from divot_datamodules.shards.tar_source import TarSource
from divot_datamodules.video_text import VideoTextData
from divot_lightning.errors import UserError

COUNTS = (5, 0, 40, 1, 54)


def kept(source):
    return {source.key(shard, sample) for shard, count in enumerate(source.counts) for sample in range(count)}


@pytest.fixture
def whole(counted_source):
    return counted_source(COUNTS)


@pytest.mark.parametrize(("fraction", "size"), [(1.0, 100), (0.5, 50), (0.254, 25), (0.01, 1), (1e-9, 1)])
def test_a_fraction_has_the_right_number_of_different_samples(whole, fraction, size):
    part = SourceFraction(whole, fraction)
    assert len(kept(part)) == sum(part.counts) == size
    assert kept(part) <= kept(whole)


def test_a_smaller_fraction_is_a_subset_of_a_larger_one(whole):
    fractions = [kept(SourceFraction(whole, fraction / 20)) for fraction in range(1, 21)]
    assert all(smaller < larger for smaller, larger in pairwise(fractions))


def test_every_sample_is_as_likely_to_be_kept(counted_source):
    source = SourceFraction(counted_source((500,) * 20), 0.3)
    # 150 of 500 in each shard on average, with a standard deviation of 10
    assert all(100 < count < 200 for count in source.counts)
    samples = np.concatenate(
        [
            [int(source.read(shard, sample).key.rpartition("s")[2]) for sample in range(count)]
            for shard, count in enumerate(source.counts)
        ]
    )
    assert abs(samples.mean() - 249.5) < 5 * 500 / np.sqrt(12 * len(samples))


def test_what_is_read_is_what_the_key_names(video_shards):
    source = SourceFraction(TarSource([str(path) for path in sorted(video_shards(3, 7).glob("*.tar"))]), 0.4)
    assert sum(source.counts) == 8
    for shard, count in enumerate(source.counts):
        assert all(source.read(shard, sample).key == source.key(shard, sample) for sample in range(count))


def test_other_fractions_are_other_data(whole):
    prints = {SourceFraction(whole, fraction).fingerprint for fraction in (0.1, 0.2, 0.2, 1.0)} | {whole.fingerprint}
    assert len(prints) == 4


def epoch(folder, fraction, seed=0):
    data = VideoTextData(str(folder), str(folder), epoch="exact", batch_size=4, train_fraction=fraction, seed=seed)
    data.setup("fit")
    train, validation = (
        [batch["key"] for batch in loader] for loader in (data.train_dataloader(), data.val_dataloader())
    )
    return list(chain(*train)), list(chain(*validation))


def test_an_epoch_takes_each_sample_of_the_fraction_once_and_validation_takes_all(video_shards):
    folder = video_shards(2, 10)
    train, validation = epoch(folder, 0.35)
    assert len(train) == len(set(train)) == 7
    assert len(validation) == 20
    others, _ = epoch(folder, 0.35, seed=1)
    assert sorted(others) == sorted(train)
    assert others != train


@pytest.mark.parametrize("fraction", [0.0, -0.5, 1.5])
def test_no_fraction_of_the_data_is_refused(fraction):
    with pytest.raises(UserError, match=f"train_fraction is {fraction}; it must be greater than 0 and at most 1"):
        VideoTextData("nowhere", train_fraction=fraction)


def test_a_run_is_not_resumed_with_another_fraction(video_shards):
    folder = video_shards(2, 10)
    first, second = (VideoTextData(str(folder), batch_size=4, train_fraction=fraction) for fraction in (0.5, 0.6))
    first.setup("fit")
    second.setup("fit")
    with pytest.raises(UserError, match=r"12 samples in 2 shards; in the checkpoint .*: 10 in 2"):
        second.load_state_dict(first.state_dict())
