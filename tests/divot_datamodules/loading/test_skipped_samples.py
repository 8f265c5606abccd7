import json
import pickle

import pytest

from divot_datamodules.loading.skipped_samples import Budget, SkippedSamples
from divot_lightning.errors import UserError
from divot_lightning.parts.sources import SkippedSample


def sample(number, reason="too_short"):
    return SkippedSample(reason, "a.tar", f"k{number}", "0.1 s of 2 s")


def test_skipped_samples_are_counted_by_reason_and_listed_with_shard_and_key(tmp_path):
    skipped = SkippedSamples("train", tmp_path)
    for number in range(3):
        skipped.add(sample(number))
    SkippedSamples("train", tmp_path, writer="rank1").add(sample(9, "undecodable"))
    assert skipped.counts() == {"too_short": 3, "undecodable": 1}
    lines = (tmp_path / "skipped-train-main.jsonl").read_text().splitlines()
    assert json.loads(lines[0]) == {"reason": "too_short", "shard": "a.tar", "key": "k0", "detail": "0.1 s of 2 s"}
    assert (tmp_path / "skipped-train-rank1.jsonl").is_file()


def test_a_sample_that_is_skipped_in_each_pass_counts_once(tmp_path):
    skipped = SkippedSamples("train", tmp_path)
    for _ in range(5):
        skipped.add(sample(0))
    assert skipped.distinct == 1
    assert len(SkippedSamples("train", tmp_path).all()) == 1


def test_what_indexing_skips_is_a_fraction_of_all_samples(tmp_path):
    found = [SkippedSample("missing_shard", f"{number}.tar", "") for number in range(12)]
    skipped = SkippedSamples("train", tmp_path, Budget(0.05), total=1000)
    skipped.add_found(found, skipped=1200, usable=100_000)
    assert skipped.counts() == {"missing_shard": 12}
    skipped.count_seen()
    skipped.add(SkippedSample("too_short", "20.tar", "k"))  # the budget of samples seen is still whole
    assert (skipped.num_skipped, skipped.seen) == (1, 1)
    with pytest.raises(UserError, match=r"^1200 of 11200 samples of 'train' cannot be used"):
        SkippedSamples("train", tmp_path / "other", Budget(0.05)).add_found(found, skipped=1200, usable=10_000)


def test_without_skipped_samples_nothing_is_written(tmp_path):
    SkippedSamples("train", tmp_path / "new").count_seen()
    assert not (tmp_path / "new").exists()


def test_without_a_folder_the_counts_are_kept_for_the_process():
    skipped = SkippedSamples("train")
    skipped.add(sample(0))
    assert skipped.counts() == {"too_short": 1}


def test_a_run_that_is_resumed_lists_a_known_sample_once_and_counts_it_among_the_known(tmp_path):
    SkippedSamples("train", tmp_path, writer="rank0").add(sample(0))
    later = SkippedSamples("train", tmp_path, writer="rank1")
    later.add(sample(0))
    assert (later.distinct, later.num_skipped) == (1, 1)
    assert not later.path.exists()


@pytest.mark.parametrize(("old", "new"), [("defects", "skipped"), ("mine", "mine")])
def test_lists_of_earlier_versions_are_read_and_cleared(tmp_path, old, new):
    (tmp_path / old).mkdir()
    listed = tmp_path / old / "defects-train-rank0.jsonl"
    listed.write_text('{"reason": "too_short", "shard": "a.tar", "key": "k0", "detail": "0.1 s of 2 s"}\n')
    resumed = SkippedSamples("train", tmp_path / new)
    assert resumed.all() == [sample(0)]
    resumed.add(sample(0))
    assert not resumed.path.exists()
    resumed.clear()
    assert not listed.exists()


@pytest.mark.parametrize(
    ("budget", "lost", "seen", "distinct", "total", "exceeded"),
    [
        (Budget(0.05), 10, 200, 10, None, False),
        (Budget(0.05), 11, 200, 11, None, True),
        (Budget(0.05), 1, 1, 1, None, False),
        (Budget(0.05), 1, 1, 1, 19, True),
        (Budget(0.05), 1, 1, 1, 20, False),
        (Budget(0.05), 11, 300, 1, 100, False),
        (Budget(1.0, 3), 9, 1000, 3, None, False),
        (Budget(1.0, 3), 4, 1000, 4, None, True),
        (Budget(0.0), 1, 1000, 1, None, True),
    ],
)
def test_the_budget(budget, lost, seen, distinct, total, exceeded):
    assert budget.exceeded(lost, seen, distinct, total=total) is exceeded


def test_a_used_up_budget_reports_in_few_lines(tmp_path):
    skipped = SkippedSamples("train", tmp_path, Budget(1.0, max_skipped_samples=2))
    skipped.add(sample(0))
    skipped.add(sample(1))
    with pytest.raises(UserError, match=r"3 of 0 samples of 'train'.*too_short 3") as caught:
        skipped.add(sample(2))
    text = str(caught.value)
    assert len(text.splitlines()) <= 5
    for part in ("a.tar", "'k0'", "0.1 s of 2 s", str(tmp_path), "max_skipped_fraction"):
        assert part in text


def test_a_pass_without_a_usable_sample_ends_the_run():
    with pytest.raises(UserError, match="4 of 4 samples"):
        SkippedSamples("train", budget=Budget(1.0)).check_pass(skipped=4, seen=4)
    with pytest.raises(UserError, match="none was read"):
        SkippedSamples("train", budget=Budget(1.0)).check_pass(skipped=0, seen=0)


def test_skipped_samples_are_plain_data():
    assert pickle.loads(pickle.dumps(sample(1))) == sample(1)
