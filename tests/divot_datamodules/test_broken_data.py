import os

import pytest

from divot_datamodules.loading import data_split
from divot_datamodules.shards import storage as shard_storage
from divot_datamodules.video_text import VideoTextData
from divot_lightning.errors import UserError
from divot_lightning.testing.toy_shards import make_toy_shards
from tests.helpers.broken_shards import HangingDecoder, make_broken_shards
from tests.helpers.shard_server import serve_shards


@pytest.fixture
def broken(tmp_path):
    return make_broken_shards(tmp_path / "broken")


def open_data(broken, folder, **settings):
    data = VideoTextData(
        train=broken.shards,
        clip=broken.clip,
        tasks={"caption": 1.0},
        epoch="exact",
        batch_size=4,
        max_skipped_samples=1000,
        skipped_folder=str(folder / "skipped"),
        index_folder=str(folder / "index"),
        **{"max_skipped_fraction": 1.0, **settings},
    )
    data.setup("fit")
    return data


def test_one_epoch_uses_exactly_what_is_good_and_accounts_for_everything_else(broken, tmp_path, monkeypatch):
    monkeypatch.setattr(data_split, "SampleDecoder", HangingDecoder)
    data = open_data(broken, tmp_path, num_workers=2, decode_deadline=6.0)
    broken.remove_vanishing()
    batches = list(data.train_dataloader())
    data.teardown()
    keys = sorted(key for batch in batches for key in batch["key"][: batch["counted"]])
    gone = broken.good[broken.vanishing]
    assert keys == sorted(key for good in broken.good.values() for key in good if good is not gone)
    assert all(batch["video"].shape[1:] == (16, 3, 32, 32) for batch in batches)
    found = [(sample.reason, sample.shard, sample.key) for sample in data.skipped["train"].all()]
    assert sorted(found) == sorted((reason, shard, key) for reason, shard, key, _ in broken.expected)
    assert not broken.bomb.exists()


def test_more_losses_than_allowed_end_the_run_with_a_report(broken, tmp_path):
    broken.shards = [shard for shard in broken.shards if "bad_media" in shard]
    with pytest.raises(UserError, match=r"bad_media\.tar") as caught:
        list(open_data(broken, tmp_path, max_skipped_fraction=0.05).train_dataloader())
    assert "at most 5.0%" in str(caught.value)
    assert len(str(caught.value).splitlines()) <= 5
    assert os.listdir(tmp_path / "skipped")


def test_workers_read_from_a_server_that_loses_and_hangs_up(tmp_path, monkeypatch):
    monkeypatch.setattr(shard_storage, "PAUSE_SECONDS", 0.0)
    make_toy_shards(tmp_path, train=12)
    names = sorted(path.name for path in (tmp_path / "train").glob("*.tar"))
    with serve_shards(tmp_path / "train", hang_up_after={names[1]: 1000}) as server:
        data = VideoTextData(
            train=[f"{server.url}/{name}" for name in (*names, "none.tar")],
            epoch="exact",
            batch_size=3,
            num_workers=2,
            max_skipped_fraction=1.0,
            skipped_folder=str(tmp_path / "skipped"),
            index_folder=str(tmp_path / "index"),
        )
        data.setup("fit")  # the indexes come from the server as well, so that what is kept back has names
        (tmp_path / "train" / names[2]).unlink()
        batches = list(data.train_dataloader())
        data.teardown()
    assert sorted(key for batch in batches for key in batch["key"][: batch["counted"]]) == [
        f"train-{number:06d}" for number in (0, 1, 2, 9, 10, 11)
    ]
    assert data.skipped["train"].counts() == {"broken_off": 3, "missing_shard": 4}
