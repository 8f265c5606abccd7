import json
import tarfile

import pytest

from divot_datamodules.shards.sources import open_source
from divot_datamodules.shards.writing import ShardFolder, read_index, shard_name, write_shard
from divot_lightning.errors import UserError


def samples(count, start=0):
    return [(f"k{number}", {"mp4": b"video", "json": b"{}"}) for number in range(start, start + count)]


def interrupted(items):
    yield from items
    raise KeyboardInterrupt


def test_equal_samples_give_equal_bytes(tmp_path):
    for name in ("a.tar", "b.tar"):
        write_shard(tmp_path / name, samples(3))
    assert (tmp_path / "a.tar").read_bytes() == (tmp_path / "b.tar").read_bytes()


def test_long_and_foreign_names_are_kept(tmp_path):
    key = "folder/" + "\u043a\u043b\u044e\u0447" * 60
    write_shard(tmp_path / "a.tar", [(key, {"mp4": b"x"})])
    with tarfile.open(tmp_path / "a.tar") as tar:
        assert tar.getnames() == [f"{key}.mp4"]


def test_an_interrupted_shard_never_has_its_name(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        write_shard(tmp_path / "a.tar", interrupted(samples(2)))
    assert not list(tmp_path.glob("*.tar"))


def test_the_index_counts_samples_and_bytes(tmp_path):
    folder = ShardFolder(tmp_path, kind="video", settings={"size": 32})
    folder.write_all(iter(samples(7)), samples_per_shard=3)
    folder.finish(colour="red")
    index = read_index(tmp_path)
    assert [entry["samples"] for entry in index["shards"]] == [3, 3, 1]
    assert index["num_samples"] == 7
    assert (index["kind"], index["settings"], index["colour"]) == ("video", {"size": 32}, "red")
    for entry in index["shards"]:
        assert (tmp_path / entry["name"]).stat().st_size == entry["bytes"]


def test_a_finished_folder_of_the_same_settings_is_complete(tmp_path):
    folder = ShardFolder(tmp_path, kind="video", settings={"sizes": (32, 32)})
    folder.write(0, samples(1))
    folder.finish()
    assert ShardFolder(tmp_path, kind="video", settings={"sizes": (32, 32)}).complete


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [("video", {"size": 64}, "size is 32, not 64"), ("features", {"size": 32}, "kind is 'video', not 'features'")],
)
def test_a_folder_of_other_settings_is_refused(tmp_path, kind, settings, message):
    folder = ShardFolder(tmp_path, kind="video", settings={"size": 32})
    folder.write(0, samples(1))
    with pytest.raises(UserError, match=message):
        ShardFolder(tmp_path, kind=kind, settings=settings)
    folder.finish()
    with pytest.raises(UserError, match=message):
        ShardFolder(tmp_path, kind=kind, settings=settings)


def test_an_interrupted_folder_is_continued(tmp_path):
    folder = ShardFolder(tmp_path, kind="video", settings={})
    folder.write(0, samples(2))
    with pytest.raises(KeyboardInterrupt):
        folder.write(1, interrupted(samples(1)))
    again = ShardFolder(tmp_path, kind="video", settings={})
    assert not again.complete
    assert (again.has(0), again.has(1)) == (True, False)
    again.write(1, samples(2, start=2))
    assert again.finish()["num_samples"] == 4


def test_a_folder_that_was_stopped_before_its_first_shard_may_be_written_with_other_settings(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        ShardFolder(tmp_path, kind="video", settings={"size": 32}).write(0, interrupted(samples(2)))
    folder = ShardFolder(tmp_path, kind="video", settings={"size": 64})
    folder.write(0, samples(1))
    assert folder.finish()["settings"] == {"size": 64}


@pytest.mark.parametrize("num_shards", [0, 1])
def test_an_interrupted_folder_is_no_source_of_data(tmp_path, num_shards):
    folder = ShardFolder(tmp_path, kind="video", settings={})
    (tmp_path / "skipped-encode-main.jsonl").write_text('{"reason": "too_short"}\n')
    folder.write_all(iter(samples(num_shards)), samples_per_shard=1)
    with pytest.raises(KeyboardInterrupt):
        folder.write(num_shards, interrupted(samples(1)))
    with pytest.raises(UserError, match=r"not finished.*\nrun the command that writes them again"):
        open_source(tmp_path)
    folder.write(num_shards, samples(1))
    folder.finish()
    assert sum(open_source(tmp_path).counts) == num_shards + 1


def test_strange_tars_are_not_mixed_with_ours(tmp_path):
    (tmp_path / "other.tar").write_bytes(b"")
    with pytest.raises(UserError, match=r"index\.json"):
        ShardFolder(tmp_path, kind="video", settings={})


def test_a_shard_that_was_changed_since_is_noticed(tmp_path):
    folder = ShardFolder(tmp_path, kind="video", settings={})
    folder.write(0, samples(1))
    folder.finish()
    (tmp_path / shard_name(0)).write_bytes(b"short")
    with pytest.raises(UserError, match=r"shard-000000\.tar"):
        ShardFolder(tmp_path, kind="video", settings={})


def test_a_damaged_index_is_named(tmp_path):
    (tmp_path / "index.json").write_text(json.dumps({"kind": "video"})[:-3])
    with pytest.raises(UserError, match=r"index\.json is no valid JSON"):
        read_index(tmp_path)
