"""Lines of a jsonl file are found as a plain loop finds them, are read once, and take little memory."""

import tracemalloc
import zlib

import numpy as np
import pytest

from divot_datamodules.shards import line_index as module
from divot_datamodules.shards.jsonl_source import JsonlSource
from divot_datamodules.shards.line_index import line_index, scan_lines
from divot_datamodules.shards.storage import LocalShard

CONTENT = b'\xef\xbb\xbf{"video": "a.mp4"}\r\n  \n{"x": 1}\n\n{"y": "\xc3\xa9"}  \n{"last": 2}'


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "list.jsonl"
    path.write_bytes(CONTENT)
    return path


def expected(content):
    """The same by splitting the whole content, as numbers of Python."""
    facts, start = [], 0
    for number, line in enumerate(content.split(b"\n"), start=1):
        text = line.removesuffix(b"\r")
        if text.strip():
            facts.append([start, len(text), zlib.crc32(text), number])
        start += len(line) + 1
    return facts


def test_lines_are_those_of_a_plain_loop_kept_or_not(file, tmp_path):
    for folder in (None, tmp_path / "index", tmp_path / "index"):
        lines = line_index(LocalShard(str(file)), folder)
        assert lines.dtype == np.int64
        assert lines.tolist() == expected(CONTENT)


def test_a_file_is_read_once_and_again_when_it_changed(file, tmp_path, monkeypatch):
    scanned = []
    monkeypatch.setattr(module, "scan_lines", lambda path: scanned.append(path) or scan_lines(path))
    first = JsonlSource(file, index_folder=tmp_path / "index")
    again = JsonlSource(file, index_folder=tmp_path / "index")
    assert len(scanned) == 1
    assert isinstance(again._lines[0], np.memmap)
    assert first.fingerprint == again.fingerprint == JsonlSource(file).fingerprint
    assert [again.key(0, at) for at in range(4)] == ["line1", "line3", "line5", "line6"]
    file.write_bytes(CONTENT + b'\n{"more": 3}')
    assert line_index(LocalShard(str(file)), tmp_path / "index").tolist() == expected(file.read_bytes())
    assert len(list((tmp_path / "index").iterdir())) == 1


@pytest.mark.parametrize("damage", [b"", b"no array", None])
def test_a_damaged_index_is_made_again(file, tmp_path, damage):
    line_index(LocalShard(str(file)), tmp_path)
    (kept,) = tmp_path.glob("*.lines.npy")
    kept.write_bytes(kept.read_bytes()[:-8] if damage is None else damage)
    assert line_index(LocalShard(str(file)), tmp_path).tolist() == expected(CONTENT)


def test_a_file_without_lines_has_an_empty_index(tmp_path):
    (tmp_path / "list.jsonl").write_bytes(b"\n  \n")
    for _ in range(2):
        assert line_index(LocalShard(str(tmp_path / "list.jsonl")), tmp_path / "index").shape == (0, 4)


def test_a_line_takes_less_than_forty_bytes_while_it_is_scanned(tmp_path):
    path = tmp_path / "list.jsonl"
    path.write_bytes(b'{"video": "a.mp4"}\n' * 100_000)
    tracemalloc.start()
    lines = scan_lines(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(lines) == 100_000
    assert peak < 40 * 100_000 + 2**18
