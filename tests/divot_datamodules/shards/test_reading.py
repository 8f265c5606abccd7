import gzip
import pickle
import sys

import fsspec
import pytest

from divot_datamodules.shards.reading import (
    ShardError,
    expand_shards,
    open_shard,
    split_member_name,
)
from divot_datamodules.shards.sources import read_all
from divot_lightning.errors import UserError


def read(path):
    return [(raw.key, raw.number, raw.members) for raw in read_all(str(path))]


def test_members_are_grouped_by_key(tmp_path, write_tar):
    path = write_tar(tmp_path / "a.tar", [("k1.mp4", b"v1"), ("k1.json", b"{}"), ("k2.webm", b"v2"), ("k2.TXT", b"t")])
    assert read(path) == [("k1", 0, {"mp4": b"v1", "json": b"{}"}), ("k2", 1, {"webm": b"v2", "txt": b"t"})]


def test_keys_with_dots_stay_whole(tmp_path, write_tar):
    path = write_tar(tmp_path / "a.tar", [("clip.v1.mp4", b"v"), ("clip.v1.json", b"{}"), ("clip.v2.mp4", b"w")])
    assert [(key, sorted(members)) for key, _, members in read(path)] == [
        ("clip.v1", ["json", "mp4"]),
        ("clip.v2", ["mp4"]),
    ]


@pytest.mark.parametrize("name", ["model.pkl", "model.pth", "code.pyd", "readme", "a.py", ".mp4", "x.mp4.bak"])
def test_other_members_belong_to_no_sample(name):
    assert split_member_name(name) is None


class Bomb:
    def __reduce__(self):
        return (sys.exit, ("unpickled",))


def test_a_pickle_in_a_shard_does_nothing(tmp_path, write_tar):
    bomb = pickle.dumps(Bomb())
    members = [("k.pkl", bomb), ("k.pyd", bomb), ("k.pth", bomb), ("k.mp4", b"v")]
    assert read(write_tar(tmp_path / "a.tar", members)) == [("k", 0, {"mp4": b"v"})]


def test_compressed_shards_are_read(tmp_path, write_tar):
    path = write_tar(tmp_path / "a.tar", [("k.mp4", b"v" * 5000)])
    (tmp_path / "a.tar.gz").write_bytes(gzip.compress(path.read_bytes()))
    assert read(tmp_path / "a.tar.gz") == read(path)


def test_urls_are_opened_through_fsspec(tmp_path, write_tar):
    path = write_tar(tmp_path / "a.tar", [("k.mp4", b"v")])
    with fsspec.open("memory://bucket/a.tar", "wb") as file:
        file.write(path.read_bytes())
    assert read("memory://bucket/a.tar") == [("k", 0, {"mp4": b"v"})]


def test_folders_globs_braces_and_lists_name_shards(tmp_path, write_tar):
    names = [str(write_tar(tmp_path / f"{number:03d}.tar", [("k.mp4", b"v")])) for number in range(3)]
    assert expand_shards(tmp_path) == names
    assert expand_shards(str(tmp_path / "*.tar")) == names
    assert expand_shards(str(tmp_path / "{000..002}.tar")) == names
    assert expand_shards([names[2], names[0]]) == [names[2], names[0]]
    assert expand_shards("s3://bucket/x-{00..02}.tar") == [f"s3://bucket/x-0{number}.tar" for number in range(3)]


def test_nothing_found_is_named(tmp_path):
    with pytest.raises(UserError, match=r"holds no \.tar"):
        expand_shards(tmp_path)
    with pytest.raises(UserError, match=r"no shard matches .*nothing\*"):
        expand_shards(str(tmp_path / "nothing*.tar"))


@pytest.mark.parametrize("shard", ["pipe:touch {}", "pipe: touch {}"])
def test_commands_run_only_when_allowed(tmp_path, shard):
    victim = tmp_path / "ran"
    command = shard.format(victim)
    with pytest.raises(UserError, match="allow_pipe"):
        expand_shards([command])
    with pytest.raises(UserError, match="allow_pipe"):
        open_shard(command)
    assert not victim.exists()
    assert expand_shards([command], allow_pipe=True) == [command]


def test_a_url_cannot_smuggle_a_command_into_an_opener(tmp_path):
    victim = tmp_path / "ran"
    with pytest.raises(ShardError, match="shell"):
        open_shard(f"ais://x'; touch {victim}; echo '")
    assert not victim.exists()


def test_reading_all_refuses_a_damaged_shard_by_name(tmp_path, write_tar):
    path = write_tar(tmp_path / "a.tar", [(f"k{number}.mp4", b"v" * 3000) for number in range(4)])
    path.write_bytes(path.read_bytes()[: 512 + 3072 + 512 + 1000])
    with pytest.raises(UserError, match=r"a\.tar, key k1 cannot be used: cut_in_body"):
        next(read_all(str(path)))
