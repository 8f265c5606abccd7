import bz2
import gzip
import lzma
from pathlib import Path

import pytest

from divot_datamodules.shards import storage as shard_storage
from divot_datamodules.shards.copies import ShardCopies
from divot_datamodules.shards.sources import TarSource, open_source
from divot_lightning.errors import UserError
from tests.helpers.shard_server import serve_shards


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch):
    monkeypatch.setattr(shard_storage, "PAUSE_SECONDS", 0.0)


@pytest.fixture
def shards(tmp_path, write_tar):
    names = [tmp_path / f"{n:03d}.tar" for n in range(3)]
    return [str(write_tar(name, [(f"{name.stem}k{k}.txt", b"x" * 700 * k) for k in range(4)])) for name in names]


def contents(source):
    return [
        [(raw.key, raw.members) for raw in (source.read(shard, sample) for sample in range(count))]
        for shard, count in enumerate(source.counts)
    ]


def test_servers_without_parts_and_compressed_shards_are_copied_once(tmp_path, shards):
    expected = contents(TarSource(shards))
    for shard in shards[:2]:
        Path(shard + ".gz").write_bytes(gzip.compress(Path(shard).read_bytes()))
    with serve_shards(tmp_path, ranges=False) as server:
        names = [f"{server.url}/000.tar.gz", str(tmp_path / "001.tar.gz"), f"{server.url}/002.tar"]
        first = TarSource(names, index_folder=tmp_path / "index")
        server.requests.clear()
        second = TarSource(names, index_folder=tmp_path / "index")
        assert [method for method, *_ in server.requests].count("GET") <= 2  # whether parts are given is asked anew
    assert contents(first) == contents(second) == expected
    assert first.fingerprint == second.fingerprint
    assert len(list((tmp_path / "index" / "copies").glob("*.tar"))) == 3


def test_a_command_is_run_only_where_allowed_and_read_as_a_copy(tmp_path, shards):
    name = f"pipe:cat {shards[0]}"
    with pytest.raises(UserError, match="allow_pipe"):
        open_source(name)
    with pytest.raises(UserError, match="allow_pipe"):
        TarSource([name])
    source = open_source(name, allow_pipe=True)
    assert contents(source) == contents(TarSource(shards[:1]))
    (copies,) = {Path(shard.path).parent for shard, _ in source._shards}
    del source
    assert not copies.exists()


def test_copies_take_no_more_disk_than_allowed(tmp_path, shards):
    with pytest.raises(UserError, match=r"Raise copies_gb") as caught:
        TarSource(
            [f"pipe:cat {s}" for s in shards], allow_pipe=True, copies_gb=15e3 / 2**30, index_folder=tmp_path / "i"
        )
    assert str(tmp_path / "i") in str(caught.value)
    assert sum(path.stat().st_size for path in (tmp_path / "i" / "copies").iterdir()) <= 15e3


@pytest.mark.parametrize("compress", [gzip.compress, bz2.compress, lzma.compress])
def test_a_compressed_shard_that_is_cut_gives_what_comes_before_and_says_so(shards, compress):
    data = compress(Path(shards[0]).read_bytes() + bytes(range(256)) * 800)
    Path(shards[0]).write_bytes(data[: len(data) - 20])
    source = TarSource(shards)
    assert [sample.reason for sample in source.skipped] == ["broken_off"]
    assert source.counts[1:] == (4, 4)


def test_a_command_that_fails_is_a_reason_to_skip_its_shard(shards):
    source = TarSource([shards[0], f"pipe:head -c 3000 {shards[1]}; false"], allow_pipe=True)
    assert source.counts[0] == 4
    assert source.counts[1] < 4
    assert {(sample.reason, sample.shard[:4]) for sample in source.skipped} == {("broken_off", "pipe")}


def test_a_copy_that_is_there_is_not_made_again(tmp_path, shards):
    log = tmp_path / "log"
    command = f"pipe:echo run >> {log}; cat {shards[0]}"
    for _ in range(2):
        shard, problem = ShardCopies(tmp_path / "copies", 2**20, allow_pipe=True).get(command)
        assert (shard.name, problem) == (command, "")
        assert shard.read(0, shard.size) == Path(shards[0]).read_bytes()
    assert log.read_text() == "run\n"
