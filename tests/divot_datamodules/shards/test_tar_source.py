import io
import os
import shutil
import tarfile
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import fsspec
import numpy as np
import pytest

from divot_datamodules.decoding.samples import SampleDecoder
from divot_datamodules.shards import storage as shard_storage
from divot_datamodules.shards.index_files import IndexFiles, index_path, write_index
from divot_datamodules.shards.storage import OPEN_FILES, LocalShard
from divot_datamodules.shards.tar_source import MAX_TEXT_BYTES, TarSource
from divot_datamodules.tasks.mixture import TaskMixture
from divot_lightning.errors import UserError
from divot_lightning.parts.sources import SampleError
from tests.helpers.broken_shards import make_broken_shards
from tests.helpers.shard_server import serve_shards


@pytest.fixture(scope="module")
def broken(tmp_path_factory):
    return make_broken_shards(tmp_path_factory.mktemp("broken"))


@pytest.fixture
def no_pauses(monkeypatch):
    monkeypatch.setattr(shard_storage, "PAUSE_SECONDS", 0.0)


def shards_of(folder, write_tar, shards=3, samples=4):
    return [
        str(write_tar(folder / f"{n:03d}.tar", [(f"s{n}k{k}.txt", b"x" * (n * 700 + k)) for k in range(samples)]))
        for n in range(shards)
    ]


def contents(source):
    return [
        [(raw.key, raw.members) for raw in (source.read(unit, sample) for sample in range(count))]
        for unit, count in enumerate(source.counts)
    ]


def found(source):
    return {(sample.reason, sample.shard, sample.key) for sample in source.skipped}


def test_indexing_finds_what_is_broken_and_nothing_else(broken):
    source = TarSource(broken.shards)
    assert found(source) == broken.found_when("indexing")
    assert len(source.skipped) == len(broken.found_when("indexing"))


def test_reading_and_decoding_find_the_rest_and_use_exactly_the_good(broken, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(broken.folder, folder)
    made = make_broken_shards(folder)
    source, decode = TarSource(made.shards), SampleDecoder(made.clip)
    made.remove_vanishing()
    mixture, good, lost = TaskMixture({"caption": 1.0}), {shard: [] for shard in made.shards}, set()
    for unit, count in enumerate(source.counts):
        for sample in range(count):
            shard, key = source.shard_path(unit), source.key(unit, sample)
            try:
                decoded = decode(source.read(unit, sample), None)
                mixture.segments_and_clips(decoded, np.random.default_rng(0))[0]
                assert decoded.video.shape == (1, 16, 3, 32, 32)
                good[shard].append(key)
            except SampleError as error:
                lost.add((error.reason, shard, key))
    assert lost == made.found_when("reading", "decoding", "task")
    expected_good = {**made.good, made.vanishing: []}
    expected_good[str(folder / "bad_media.tar")].insert(1, "hangs")  # only a hanging decoder hangs
    assert good == expected_good
    assert not made.bomb.exists()


def test_pickles_and_programs_in_a_shard_are_passed_over(broken):
    source = TarSource([str(broken.folder / "good.tar")])
    assert set(source.read(0, 0).members) == {"mp4", "json"}
    assert source.read(0, 0).key == "a"
    assert not broken.bomb.exists()


def test_exactly_the_bytes_of_a_sample_are_read(tmp_path, write_tar, monkeypatch):
    (shard,) = shards_of(tmp_path, write_tar, shards=1)
    source, reads = TarSource([shard]), []
    monkeypatch.setattr(
        LocalShard, "read", lambda self, a, b, once=False, read=LocalShard.read: reads.append(b - a) or read(self, a, b)
    )
    assert source.read(0, 2).members == {"txt": b"xx"}
    assert reads == [1024]


def test_a_later_run_does_not_index_again(tmp_path, write_tar, monkeypatch):
    shards = shards_of(tmp_path, write_tar)
    first = TarSource(shards, index_folder=tmp_path / "index")
    scans = []
    monkeypatch.setattr("divot_datamodules.shards.index_files.scan_tar", scans.append)
    second = TarSource(shards, index_folder=tmp_path / "index")
    assert (second.counts, second.fingerprint, contents(second)) == (first.counts, first.fingerprint, contents(first))
    assert scans == []


def test_an_index_beside_the_shard_is_used_wherever_both_are_copied(tmp_path, write_tar, monkeypatch):
    (shard,) = shards_of(tmp_path / "a", write_tar, shards=1)
    write_index(shard)
    expected = contents(TarSource([shard]))
    shutil.copytree(tmp_path / "a", tmp_path / "b", copy_function=shutil.copyfile)
    monkeypatch.setattr("divot_datamodules.shards.index_files.scan_tar", lambda shard: pytest.fail(shard.name))
    source = TarSource([str(tmp_path / "b" / "000.tar")])
    assert contents(source) == expected
    assert source.fingerprint == TarSource([shard]).fingerprint


@pytest.mark.parametrize("members", [[("z.txt", b"12")], [("s0k0.txt", b""), ("s0k1.txt", b"x"), ("other.txt", b"xx")]])
def test_an_index_of_another_shard_is_not_trusted(tmp_path, write_tar, members):
    (shard,) = shards_of(tmp_path, write_tar, shards=1, samples=3)
    write_index(shard)
    kept = TarSource([shard], index_folder=tmp_path / "index")
    write_tar(Path(shard), members)
    for source in (TarSource([shard]), TarSource([shard], index_folder=tmp_path / "index")):
        assert contents(source) == [[(name[:-4], {"txt": data}) for name, data in members]]
        assert source.fingerprint != kept.fingerprint


def test_a_damaged_index_is_made_anew(tmp_path, write_tar):
    (shard,) = shards_of(tmp_path, write_tar, shards=1)
    write_index(shard)
    Path(index_path(shard)).write_bytes(b"rubbish")
    assert TarSource([shard]).counts == (4,)


def test_a_shard_that_changes_after_indexing_gives_no_foreign_sample(tmp_path, write_tar):
    shards = shards_of(tmp_path, write_tar)
    source = TarSource(shards)
    write_tar(Path(shards[0]), [(f"t{k}.txt", b"") for k in range(8)])
    Path(shards[1]).write_bytes(Path(shards[1]).read_bytes()[:3000])
    Path(shards[2]).unlink()
    reasons = []
    for unit in range(3):
        with pytest.raises(SampleError) as caught:
            source.read(unit, 3)
        reasons.append(caught.value.reason)
    assert reasons == ["shard_changed", "shard_changed", "missing_shard"]
    assert source.key(2, 3) == "s2k3"


def test_the_fingerprint_tells_other_data_but_not_another_folder(tmp_path, write_tar):
    shards = shards_of(tmp_path / "a", write_tar)
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    fingerprint = TarSource(shards).fingerprint
    assert TarSource([shard.replace("/a/", "/b/") for shard in shards]).fingerprint == fingerprint
    assert TarSource(shards[::-1]).fingerprint != fingerprint
    assert TarSource(shards[:2]).fingerprint != fingerprint


def test_what_a_mac_puts_beside_files_is_no_sample_and_separates_none(tmp_path, write_tar):
    members = [(f"{dots}{name}", b"x") for name in ("a.mp4", "a.txt", "b.txt") for dots in ("._", "")]
    source = TarSource([str(write_tar(tmp_path / "a.tar", members))])
    assert contents(source) == [[("a", {"mp4": b"x", "txt": b"x"}), ("b", {"txt": b"x"})]]
    assert source.skipped == []


def test_texts_have_a_limit(tmp_path, write_tar):
    source = TarSource([str(write_tar(tmp_path / "a.tar", [("a.json", b" " * (MAX_TEXT_BYTES + 1))]))])
    with pytest.raises(SampleError, match=str(MAX_TEXT_BYTES + 1)) as caught:
        source.read(0, 0)
    assert caught.value.reason == "too_large"


def _read_in_child(source, unit, samples, queue):
    for sample in samples:
        queue.put([raw.members for raw in [source.read(unit, sample)]])


def test_forked_processes_and_threads_read_at_the_same_time(tmp_path, write_tar):
    shards = shards_of(tmp_path, write_tar, shards=OPEN_FILES + 4, samples=2)
    source = TarSource(shards)
    expected = contents(source)
    context = get_context("fork")
    queue = context.SimpleQueue()
    children = [context.Process(target=_read_in_child, args=(source, unit, [0, 1] * 3, queue)) for unit in (0, 1)]
    for child in children:
        child.start()
    with ThreadPoolExecutor(4) as pool:
        for _ in range(3):
            assert list(pool.map(lambda unit: contents(source)[unit], range(4))) == expected[:4]
    answers = [queue.get() for _ in range(12)]
    for child in children:
        child.join()
    known = [members for unit in (0, 1) for _, members in expected[unit]]
    assert all(answers.count([members]) == 3 * known.count(members) for members in known)
    assert len(os.listdir("/proc/self/fd")) < 4 * OPEN_FILES + 40


def test_several_processes_may_index_at_the_same_time(tmp_path, write_tar):
    shards = shards_of(tmp_path, write_tar, shards=8)
    with ThreadPoolExecutor(8) as pool:
        sources = list(pool.map(lambda _: TarSource(shards, index_folder=tmp_path / "index"), range(8)))
    assert len({source.fingerprint for source in sources}) == 1
    assert not list((tmp_path / "index").glob("*.part"))
    assert IndexFiles(tmp_path / "index").get(LocalShard(shards[0])).stamp


def test_missing_shards_are_skipped_as_long_as_others_can_be_read(tmp_path, write_tar, caplog):
    shards = shards_of(tmp_path, write_tar)
    source = TarSource([*shards, str(tmp_path / "missing.tar")])
    assert source.counts == (4, 4, 4, 0)
    assert found(source) == {("missing_shard", str(tmp_path / "missing.tar"), "")}
    assert "missing.tar can be read: missing_shard" in caplog.text
    with pytest.raises(UserError, match=r"missing\.tar cannot be used: it does not exist"):
        TarSource([str(tmp_path / "missing.tar")])
    (tmp_path / "bad.tar").write_bytes(b"rubbish" * 500)
    with pytest.raises(UserError, match=r"bad\.tar is no tar"):
        TarSource([str(tmp_path / "bad.tar")])
    with pytest.raises(UserError, match=r"memory://nowhere/a\.tar cannot be used"):
        TarSource(["memory://nowhere/a.tar"])


@pytest.mark.parametrize("content", [b"", b"\0" * 10240])
def test_empty_shards_alone_are_named_before_training(tmp_path, content):
    (tmp_path / "a.tar").write_bytes(content)
    with pytest.raises(UserError, match=r"a\.tar (is no tar|cannot be used)"):
        TarSource([str(tmp_path / "a.tar")])


def test_a_named_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.tar")
    with pytest.raises(UserError, match="it is no file"):
        TarSource([str(tmp_path / "pipe.tar")])


def test_shards_behind_urls_give_the_same_by_parts(broken, no_pauses):
    local = TarSource(broken.shards)
    with serve_shards(broken.folder) as server:
        source = TarSource([f"{server.url}/{Path(shard).name}" for shard in broken.shards])
        assert (source.counts, source.fingerprint) == (local.counts, local.fingerprint)
        assert [(d.reason, Path(d.shard).name, d.key) for d in source.skipped] == [
            (d.reason, Path(d.shard).name, d.key) for d in local.skipped
        ]
        server.requests.clear()
        assert source.read(0, 1).members == local.read(0, 1).members
        start, end = server.requests[0][2:]
        assert [request[:2] for request in server.requests] == [("GET", "good.tar")]
        assert end - start < 12_000


@pytest.mark.parametrize("ranges", [True, False])
def test_a_server_that_hangs_up_costs_only_what_it_keeps_back(tmp_path, write_tar, no_pauses, ranges):
    shards = shards_of(tmp_path, write_tar, shards=2)
    with serve_shards(tmp_path, ranges=ranges, hang_up_after={"001.tar": 3 * 1536}) as server:
        source = TarSource([f"{server.url}/000.tar", f"{server.url}/001.tar"])
        assert {sample.reason for sample in source.skipped} == {"broken_off"}
        assert all(sample.shard.endswith("001.tar") for sample in source.skipped)
        if ranges:
            assert source.counts == (4, 3)
            assert contents(source) == [
                members[:count] for members, count in zip(contents(TarSource(shards)), (4, 3), strict=True)
            ]


def test_a_server_that_fails_now_and_then_is_tried_again(tmp_path, write_tar, monkeypatch, no_pauses):
    shards = shards_of(tmp_path, write_tar, shards=1)
    memory = fsspec.filesystem("memory")
    memory.pipe("/bucket/a.tar", Path(shards[0]).read_bytes())
    source = TarSource(["memory://bucket/a.tar"])
    failures, read = [OSError("busy"), TimeoutError("slow")], memory.cat_file
    monkeypatch.setattr(
        type(memory),
        "cat_file",
        lambda self, *a, **k: read(*a, **k) if not failures else (_ for _ in ()).throw(failures.pop()),
    )
    assert source.read(0, 1).members == {"txt": b"x"}
    monkeypatch.setattr(type(memory), "cat_file", lambda self, *a, **k: (_ for _ in ()).throw(OSError("dead")))
    with pytest.raises(SampleError, match="dead") as caught:
        source.read(0, 1)
    assert caught.value.reason == "unreadable_shard"


def test_a_large_shard_is_indexed_by_its_headers(tmp_path, monkeypatch):
    with (tmp_path / "a.tar").open("wb") as file:
        for number in range(8):
            info = tarfile.TarInfo(f"k{number}.mp4")
            info.size = 2**30
            file.write(info.tobuf())
            file.seek(2**30, io.SEEK_CUR)  # a hole, which takes no disk
        file.write(bytes(1024))
    reads, read = [], LocalShard.read
    monkeypatch.setattr(LocalShard, "read", lambda self, a, b, once=False: reads.append(b - a) or read(self, a, b))
    assert TarSource([str(tmp_path / "a.tar")]).counts == (8,)
    assert sum(reads) < 2**22
