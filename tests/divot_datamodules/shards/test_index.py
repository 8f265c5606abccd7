import io
import json
import tarfile

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from divot_datamodules.shards.index import Keys, index_from_bytes
from divot_datamodules.shards.reading import ShardError
from divot_datamodules.shards.tar_scan import MAX_HEADER_BYTES, scan_tar
from divot_datamodules.shards.tar_source import members_of


class InMemory:
    """A shard that notes which bytes were read."""

    name, stamp = "memory", "s"

    def __init__(self, data, readahead=512):
        self.data, self.size, self.readahead = data, len(data), readahead
        self.read_ranges = []

    def read(self, start, end, once=False):
        self.read_ranges.append((start, end))
        assert 0 <= start <= end <= self.size
        return self.data[start:end]


def tar_of(members, format=tarfile.PAX_FORMAT):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=format) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def samples_of(data, **settings):
    index = scan_tar(InMemory(data, **settings))
    return {
        index.keys[number]: members_of(data[start:end], index.keys[number])
        for number, (start, end) in enumerate(index.ranges)
    }


NAMES = st.text(st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="/."), min_size=1, max_size=150)


@settings(max_examples=40, deadline=None)
@given(
    keys=st.lists(NAMES, min_size=1, max_size=6, unique=True),
    sizes=st.lists(st.integers(0, 2000), min_size=6, max_size=6),
    format=st.sampled_from([tarfile.PAX_FORMAT, tarfile.GNU_FORMAT]),
    readahead=st.sampled_from([1, 512, 4096, 10**6]),
)
def test_every_sample_is_found_with_its_content(keys, sizes, format, readahead):
    members = []
    for key, size in zip(keys, sizes, strict=False):
        members += [(f"{key}.mp4", bytes([size % 251]) * size), (f"{key}.txt", key.encode()), (f"{key}.pkl", b"x")]
    found = samples_of(tar_of(members, format), readahead=readahead)
    assert found == {
        key: {"mp4": bytes([size % 251]) * size, "txt": key.encode()} for key, size in zip(keys, sizes, strict=False)
    }
    assert list(found) == keys


def test_contents_are_not_read_to_index_a_shard():
    shard = InMemory(tar_of([(f"k{number}.mp4", b"v" * 100_000) for number in range(5)]))
    assert len(scan_tar(shard).keys) == 5
    assert sum(end - start for start, end in shard.read_ranges) < 30_000


@pytest.mark.parametrize("offset", range(0, 8192, 128))
def test_wherever_a_shard_is_cut_whole_samples_stay_and_the_cut_is_told(offset):
    data = tar_of([(f"k{n}.{suffix}", b"v" * 700) for n in range(3) for suffix in ("mp4", "json")])
    ends = {f"k{n}": (n + 1) * 2 * 1536 for n in range(3)}
    cut = data[:offset]
    try:
        index = scan_tar(InMemory(cut))
    except ShardError as error:
        pytest.fail(str(error))
    found = samples_of(cut)
    assert all(members == {"mp4": b"v" * 700, "json": b"v" * 700} for members in found.values())
    # Of a cut shard's last sample it is only known that it is whole if another one has the same members.
    assert set(found) >= {key for key, end in ends.items() if end <= offset} - {"k0"}
    assert set(found) <= {key for key, end in ends.items() if end - 512 < offset}
    reasons = {reason for reason, _, _ in index.skipped}
    expected = {"cut_in_header", "cut_in_body", "cut_between_members", "not_a_tar", "empty_shard"}
    assert (len(reasons) == 1 and reasons < expected) if offset <= ends["k2"] else not reasons


@settings(max_examples=60, deadline=None)
@given(offset=st.integers(0, 6143), bit=st.integers(0, 7))
@example(offset=155, bit=0)
def test_a_flipped_bit_never_loses_a_sample_in_silence(offset, bit):
    data = bytearray(tar_of([(f"k{n}.{suffix}", b"v" * 200) for n in range(3) for suffix in ("mp4", "json")]))
    data[offset] ^= 1 << bit
    index = scan_tar(InMemory(bytes(data)))
    in_a_body = offset // 512 % 2 == 1
    behind_the_sum = offset % 512 in (154, 155)  # what ends the sum of a header's bytes is the one thing it leaves out
    if in_a_body or (behind_the_sum and not index.skipped):
        assert ([index.keys[number] for number in range(len(index.keys))], index.skipped) == (["k0", "k1", "k2"], [])
    else:
        # Headers carry a sum of their bytes; their unused end is part of it.
        assert index.skipped
        assert len(index.keys) < 3


def test_a_header_that_promises_a_giant_name_is_not_believed():
    data = bytearray(tar_of([("a.mp4", b"v"), (f"{'n' * 200}.mp4", b"v")]))
    header = tarfile.TarInfo.frombuf(bytes(data[1024:1536]), "utf-8", "strict")
    header.size = MAX_HEADER_BYTES * 1000
    data[1024:1536] = header.tobuf(tarfile.GNU_FORMAT)
    shard = InMemory(bytes(data))
    assert [reason for reason, _, _ in scan_tar(shard).skipped] == ["broken_header"]


def test_a_shard_that_cannot_be_read_far_gives_what_comes_before():
    class BadDisk(InMemory):
        def read(self, start, end, once=False):
            if end > 4000:
                raise ShardError("bad sector")
            return super().read(start, end)

    data = tar_of([(f"k{number}.mp4", b"v" * 512) for number in range(9)])
    index = scan_tar(BadDisk(data, readahead=2**20))
    assert [index.keys[number] for number in range(len(index.keys))] == ["k0", "k1", "k2"]
    assert [(reason, key) for reason, key, _ in index.skipped] == [("broken_off", "k3")]
    with pytest.raises(ShardError, match="bad sector"):
        scan_tar(
            type("Dead", (BadDisk,), {"read": lambda *_, **__: (_ for _ in ()).throw(ShardError("bad sector"))})(data)
        )


def test_keys_come_back_as_they_were():
    names = ["a", "", "cats/\u00e9\u4e2d", "not utf-8: \udce9"]
    keys = Keys.of(names)
    assert [keys[number] for number in range(len(keys))] == names
    assert len(Keys.of([])) == 0


def test_an_index_comes_back_from_its_file():
    index = scan_tar(InMemory(tar_of([("a.mp4", b"v"), ("b.mp4", b"w"), ("a.json", b"{}")])))
    again = index_from_bytes(index.to_bytes())
    assert (again.size, again.stamp, again.skipped) == (index.size, "s", index.skipped)
    assert np.array_equal(again.ranges, index.ranges)
    assert again.keys[0] == "b"
    assert again.skipped == [("interleaved", "a", "mp4 json at 2 places")]


def test_an_index_of_an_earlier_version_is_read():
    index = scan_tar(InMemory(tar_of([("a.mp4", b"v"), ("b.mp4", b"w"), ("a.json", b"{}")])))
    arrays = dict(np.load(io.BytesIO(index.to_bytes())))
    facts = json.loads(arrays["facts"].tobytes())
    facts["defects"] = facts.pop("skipped")
    old = io.BytesIO()
    np.savez(old, **{**arrays, "facts": np.frombuffer(json.dumps(facts).encode(), np.uint8)})
    assert index_from_bytes(old.getvalue()).skipped == index.skipped


def test_what_is_no_index_is_none():
    data = scan_tar(InMemory(tar_of([("a.mp4", b"v")]))).to_bytes()
    buffer = io.BytesIO()
    np.savez(buffer, ranges=np.array([print], dtype=object))
    outside = scan_tar(InMemory(tar_of([("a.mp4", b"v")])))
    outside.ranges = outside.ranges + 10**6
    for damaged in (b"", b"rubbish", data[:-30], buffer.getvalue(), outside.to_bytes()):
        assert index_from_bytes(damaged) is None
