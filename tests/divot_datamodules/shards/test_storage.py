import os
from pathlib import Path

import fsspec
import pytest

from divot_datamodules.shards import storage as shard_storage
from divot_datamodules.shards.reading import ShardError
from divot_datamodules.shards.storage import LocalShard, RemoteShard, file_system_options, read_whole
from tests.helpers.shard_server import serve_shards


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch):
    monkeypatch.setattr(shard_storage, "PAUSE_SECONDS", 0.0)


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "a.tar"
    path.write_bytes(bytes(range(200)))
    return path


def test_ranges_are_read_exactly(file):
    fsspec.filesystem("memory").pipe("/ranges/a.tar", file.read_bytes())
    with serve_shards(file.parent) as server:
        for shard in (LocalShard(str(file)), RemoteShard("memory://ranges/a.tar"), RemoteShard(f"{server.url}/a.tar")):
            assert shard.size == 200
            assert [shard.read(*r) for r in ((0, 200), (5, 5), (7, 9))] == [bytes(range(200)), b"", bytes([7, 8])]


def test_a_read_never_returns_less_than_requested(file):
    shard = LocalShard(str(file))
    for offset in (150, 250):
        with pytest.raises(ShardError, match=f"bytes {offset} to 300") as caught:
            shard.read(offset, 300)
        assert caught.value.reason == "shard_changed"


def test_a_replaced_file_is_read_again(file):
    shard = LocalShard(str(file))
    assert shard.read(0, 1) == b"\0"
    (file.parent / "b").write_bytes(b"new")
    os.replace(file.parent / "b", file)
    assert shard.read(0, 3) == b"new"
    assert LocalShard(str(file)).stamp != shard.stamp


def test_what_a_server_says_is_told_apart(file):
    with serve_shards(file.parent) as server:
        with pytest.raises(ShardError) as caught:
            RemoteShard(f"{server.url}/none.tar")
        assert caught.value.reason == "missing_shard"
        shard = RemoteShard(f"{server.url}/a.tar")
        assert shard.ranges
        assert shard.stamp
        file.unlink()
        with pytest.raises(ShardError) as caught:
            shard.read(0, 5)
        assert caught.value.reason == "missing_shard"
    with pytest.raises(ShardError) as caught:
        shard.read(0, 5)
    assert caught.value.reason == "unreadable_shard"
    with pytest.raises(ShardError) as caught:
        RemoteShard(f"{server.url}/a.tar")
    assert caught.value.reason == "unreadable_shard"
    with serve_shards(Path(__file__).parent, ranges=False) as server:
        assert not RemoteShard(f"{server.url}/{Path(__file__).name}").ranges


def test_a_silent_server_is_not_waited_for_without_end():
    limits = file_system_options("https://host/a.tar")["client_kwargs"]["timeout"]
    assert limits.sock_read is not None
    assert limits.sock_connect is not None
    assert file_system_options("s3://bucket/a.tar") == {}


def test_small_files_are_read_whole_and_large_ones_not(file):
    assert read_whole(str(file), 200) == file.read_bytes()
    assert read_whole(str(file), 199) is None
    assert read_whole(str(file.parent / "none"), 199) is None
