from pathlib import Path

import fsspec
import pytest

from divot_datamodules.shards.index_files import index_path, put_index_beside
from divot_datamodules.shards.sources import TarSource
from divot_lightning.errors import UserError
from tests.helpers.broken_shards import make_broken_shards
from tests.helpers.shard_server import serve_shards


@pytest.fixture
def shard(tmp_path, write_tar):
    return str(write_tar(tmp_path / "a.tar", [(f"k{number}.txt", b"x") for number in range(3)]))


def test_an_index_is_made_once(shard, monkeypatch):
    index, is_new = put_index_beside(shard)
    assert (len(index.keys), is_new) == (3, True)
    assert not put_index_beside(shard)[1]
    monkeypatch.setattr("divot_datamodules.shards.index_files.scan_tar", lambda shard: pytest.fail(shard.name))
    assert TarSource([shard]).counts == (3,)


def test_equal_shards_have_equal_indexes(shard, tmp_path, write_tar):
    other = str(write_tar(tmp_path / "b.tar", [(f"k{number}.txt", b"x") for number in range(3)]))
    put_index_beside(shard)
    put_index_beside(other)
    assert Path(index_path(shard)).read_bytes() == Path(index_path(other)).read_bytes()


def test_the_skipped_samples_are_those_that_training_finds(tmp_path):
    made = make_broken_shards(tmp_path)
    for _ in range(2):
        found = [(reason, s, key) for s in made.shards for reason, key, _ in put_index_beside(s)[0].skipped]
        assert sorted(found) == sorted(made.found_when("indexing"))
    source = TarSource(made.shards)
    assert {(d.reason, d.shard, d.key) for d in source.skipped} == made.found_when("indexing")


def test_an_index_can_be_put_into_an_object_store_but_not_on_a_web_server(shard):
    memory = fsspec.filesystem("memory")
    memory.pipe("/indexed/a.tar", Path(shard).read_bytes())
    assert put_index_beside("memory://indexed/a.tar")[1]
    assert memory.exists("/indexed/a.tar.index.npz")
    assert not put_index_beside("memory://indexed/a.tar")[1]
    with (
        serve_shards(Path(shard).parent) as server,
        pytest.raises(UserError, match=r"a\.tar\.index\.npz cannot be written"),
    ):
        put_index_beside(f"{server.url}/a.tar")


def test_no_index_is_put_beside_what_is_no_shard(tmp_path):
    (tmp_path / "a.tar").write_bytes(b"rubbish" * 99)
    assert [reason for reason, _, _ in put_index_beside(str(tmp_path / "a.tar"))[0].skipped] == ["not_a_tar"]
    assert put_index_beside(str(tmp_path / "none.tar"))[0].skipped == [("missing_shard", "", "it does not exist")]
    assert [path.name for path in tmp_path.iterdir()] == ["a.tar"]
