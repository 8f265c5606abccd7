"""Check the contract of a data source, by a test class to subclass."""

import hashlib
import json
import multiprocessing
from abc import ABC, abstractmethod
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from divot_datamodules.decoding.samples import read_text
from divot_datamodules.order.order_plan import OrderPlan
from divot_datamodules.order.source_order import SourceOrder
from divot_datamodules.shards.reading import split_member_name
from divot_lightning.parts.registries.kinds import SOURCES
from divot_lightning.parts.registries.registry import class_path
from divot_lightning.parts.sources import RawSample, SampleError, SkippedSample, Source

Position = tuple[int, int]
"""Shard and sample."""

_opened: dict[str, Source] = {}
"""The source that the forked readers of a test read."""


class SourceConformance(ABC):
    """Test a source against the contract. Pytest collects the subclass if its name starts with `Test`.

        class TestMySource(SourceConformance):
            def make_source(self, folder):
                write_table(folder / "data.table", rows=5)
                return MySource(str(folder / "data.table"))

            def make_other(self, folder):
                write_table(folder / "data.table", rows=4)
                return MySource(str(folder / "data.table"))

    Keep the data small. Several shards test more than one.
    """

    @abstractmethod
    def make_source(self, folder: Path) -> Source:
        """Write data into a folder and open them.

        Args:
            folder: An empty folder, another one in each call.

        Returns:
            The source, with at least two usable samples; it is the same in each call, up to the folder.
        """

    @abstractmethod
    def make_other(self, folder: Path) -> Source:
        """Do the same as `make_source` with other samples, such as one sample less."""

    def make_damaged(self, folder: Path) -> Source | None:
        """Open the data of `make_source`, then damage them so that at least one sample cannot be read.

        Returns:
            The source, opened before the damage; None (the default) if the data cannot be damaged, and no test is made.
        """
        return None

    def test_counts_are_whole_numbers(self, tmp_path: Path) -> None:
        """`counts` is a tuple of numbers, one for each shard, with at least two samples together."""
        counts = self.make_source(tmp_path).counts
        assert isinstance(counts, tuple), f"counts is a {type(counts).__name__}; it must be a tuple"
        assert all(type(count) is int and count >= 0 for count in counts), f"counts must be whole numbers: {counts}"
        assert sum(counts) >= 2, f"make_source must have at least two samples; counts is {counts}"

    def test_every_sample_can_be_read(self, tmp_path: Path) -> None:
        """Each is a `RawSample` with its key, shard and number."""
        source = self.make_source(tmp_path)
        for shard, sample in _positions(source):
            raw = source.read(shard, sample)
            assert isinstance(raw, RawSample), f"read returns a {type(raw).__name__}; it must be a RawSample"
            expected = (source.key(shard, sample), source.shard_path(shard), sample)
            assert (raw.key, raw.shard, raw.number) == expected, "key, shard or number is not that of the source"

    def test_members_are_what_the_decoder_reads(self, tmp_path: Path) -> None:
        """Suffixes are known; contents are bytes or absolute paths; texts are JSON objects or UTF-8."""
        source = self.make_source(tmp_path)
        for position in _positions(source):
            members = source.read(*position).members
            assert members, "a sample has no member"
            for suffix, content in members.items():
                known = split_member_name(f"key.{suffix}")
                assert known == ("key", suffix), f"the suffix {suffix!r} is not known; see RawSample.members"
                assert isinstance(content, bytes) or (isinstance(content, Path) and content.is_absolute()), (
                    f"the content of {suffix!r} is {content!r:.60}; it must be bytes or an absolute Path"
                )
            read_text(members)

    def test_keys_are_unique_in_a_shard(self, tmp_path: Path) -> None:
        """A key names one sample in reports of skipped samples."""
        source = self.make_source(tmp_path)
        for shard, count in enumerate(source.counts):
            keys = [source.key(shard, sample) for sample in range(count)]
            assert all(isinstance(key, str) for key in keys), "a key is no string"
            assert len(set(keys)) == count, f"a key occurs twice in shard {source.shard_path(shard)}"

    def test_samples_are_the_same_in_any_order(self, tmp_path: Path) -> None:
        """Reading backwards, and reading twice, gives the same samples."""
        source = self.make_source(tmp_path)
        positions = _positions(source)
        forwards = {position: _digest(source.read(*position)) for position in positions}
        backwards = {position: _digest(source.read(*position)) for position in [*positions[::-1], *positions]}
        assert forwards == backwards, "a sample depends on what was read before"

    def test_samples_are_the_same_in_forked_workers(self, tmp_path: Path) -> None:
        """Workers inherit the source by a fork and read at the same time; a shared file position would disturb them."""
        source = self.make_source(tmp_path)
        positions = _positions(source) * 8
        expected = [_digest(source.read(*position)) for position in positions]
        _opened["source"] = source
        try:
            with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("fork")) as pool:
                assert list(pool.map(_digest_at, positions, timeout=60)) == expected, "a forked worker reads otherwise"
        finally:
            _opened.clear()

    def test_equal_data_have_the_same_identity_wherever_they_are(self, tmp_path: Path) -> None:
        """Another process, or a copy of the data, has the same counts, keys, fingerprint and content."""
        one, two = (self.make_source(_new(tmp_path / name)) for name in ("one", "two"))
        assert one.fingerprint, "the fingerprint is empty"
        assert _identity(one) == _identity(two), "equal data in two folders differ in counts, fingerprint or content"
        for position in _positions(one):
            assert one.key(*position) == two.key(*position), "equal data in two folders have other keys"

    def test_other_data_have_another_fingerprint(self, tmp_path: Path) -> None:
        """So a resumed run notices that its data changed."""
        one, other = self.make_source(_new(tmp_path / "one")), self.make_other(_new(tmp_path / "other"))
        assert one.fingerprint != other.fingerprint, "other samples have the same fingerprint"

    def test_settings_open_the_source_again(self, tmp_path: Path) -> None:
        """A recipe's class path and settings give the same source, also with an index folder that is there already."""
        source = self.make_source(_new(tmp_path / "data"))
        settings = json.loads(json.dumps(source.init_args))
        assert "index_folder" not in settings, "index_folder is a setting; the suite supplies it"
        for _ in range(2):
            again = SOURCES.build(class_path(type(source)), settings, index_folder=tmp_path / "index")
            assert _identity(again) == _identity(source), "the same settings open other data"

    def test_skipped_samples_are_named(self, tmp_path: Path) -> None:
        """What was found to be unusable is listed with a reason, and is not counted."""
        for skipped in self.make_source(tmp_path).skipped:
            assert isinstance(skipped, SkippedSample), f"skipped holds a {type(skipped).__name__}"
            assert skipped.reason, f"a skipped sample has no reason: {skipped}"

    def test_bytes_are_a_number_or_unknown(self, tmp_path: Path) -> None:
        """`num_bytes` is None, or not negative."""
        size = self.make_source(tmp_path).num_bytes
        assert size is None or size >= 0, f"num_bytes is {size}"

    def test_an_unreadable_sample_is_a_sample_error(self, tmp_path: Path) -> None:
        """Damage found while reading raises `SampleError` with a reason, which skips one sample, and nothing else."""
        source = self.make_damaged(tmp_path)
        if source is None:
            return
        reasons = []
        for position in _positions(source):
            try:
                source.read(*position)
            except SampleError as error:
                reasons.append(error.reason)
        assert reasons, "make_damaged has no sample that cannot be read"
        assert all(reasons), "a SampleError has no reason"

    def test_a_pass_of_the_order_has_every_sample_once(self, tmp_path: Path) -> None:
        """The order of training, divided among processes, takes each sample once in a pass, and the same each time."""
        source = self.make_source(tmp_path)
        for processes in (1, 2):
            plan = OrderPlan((SourceOrder(source.counts, streams=3, shuffle=4),), (processes,), exact=True)
            steps = [plan.batch(step) for step in range(plan.steps_per_epoch or 0)]
            indices = [index for rank in range(processes) for step in steps for index in step[rank::processes]]
            assert sorted((index.shard, index.sample) for index in indices) == _positions(source)


def _positions(source: Source) -> list[Position]:
    return [(shard, sample) for shard, count in enumerate(source.counts) for sample in range(count)]


def _identity(source: Source) -> tuple[tuple[int, ...], str, str]:
    return source.counts, source.fingerprint, source.content


def _digest(raw: RawSample) -> str:
    digest = hashlib.sha256(f"{raw.key} {raw.number}".encode())
    for suffix, content in sorted(raw.members.items()):
        digest.update(suffix.encode() + (content if isinstance(content, bytes) else content.read_bytes()))
    return digest.hexdigest()


def _digest_at(position: Position) -> str:
    return _digest(_opened["source"].read(*position))


def _new(folder: Path) -> Path:
    folder.mkdir()
    return folder
