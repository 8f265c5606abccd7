import hashlib
from pathlib import Path

import pytest

from divot_lightning.io.files import atomic_file, file_sha256, write_atomically


@pytest.mark.parametrize("durable", [False, True])
@pytest.mark.parametrize(("content", "stored"), [("é\n", "é\n".encode()), (b"\x00\xff", b"\x00\xff")])
def test_content_replaces_what_was_there(tmp_path, content, stored, durable):
    path = tmp_path / "file"
    path.write_bytes(b"before")
    write_atomically(path, content, durable=durable)
    assert path.read_bytes() == stored
    assert list(tmp_path.iterdir()) == [path]


def test_an_error_leaves_what_was_there_and_nothing_else(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"before")

    def write_half():
        with atomic_file(path) as unfinished:
            unfinished.write_bytes(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_half()
    assert path.read_bytes() == b"before"
    assert list(tmp_path.iterdir()) == [path]


def test_two_writers_of_one_file_do_not_disturb_each_other(tmp_path):
    path = tmp_path / "file"
    with atomic_file(path) as first:
        first.write_bytes(b"first, whole")
        write_atomically(path, b"second")
        assert path.read_bytes() == b"second"
    assert path.read_bytes() == b"first, whole"
    assert list(tmp_path.iterdir()) == [path]


def test_an_error_of_the_last_step_leaves_nothing_behind(tmp_path, monkeypatch):
    path = tmp_path / "file"
    path.write_bytes(b"before")
    monkeypatch.setattr(Path, "replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        write_atomically(path, b"after")
    assert [(file.name, file.read_bytes()) for file in tmp_path.iterdir()] == [("file", b"before")]


def test_nothing_has_the_name_before_it_is_whole(tmp_path):
    path = tmp_path / "file"
    with atomic_file(path) as unfinished:
        unfinished.write_bytes(b"whole")
        assert not path.exists()
    assert path.read_bytes() == b"whole"


def test_hash_is_that_of_the_content(tmp_path):
    (tmp_path / "file").write_bytes(b"abc" * 100_000)
    assert file_sha256(tmp_path / "file") == hashlib.sha256(b"abc" * 100_000).hexdigest()
