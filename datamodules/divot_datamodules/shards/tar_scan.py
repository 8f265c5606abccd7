"""Index a tar from its headers alone: where each sample lies, and what is wrong with the tar."""

import tarfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

import numpy as np

from divot_datamodules.shards.index import Keys, ShardIndex
from divot_datamodules.shards.reading import ShardError, split_member_name
from divot_datamodules.shards.storage import ShardBytes
from divot_lightning.errors import first_line

BLOCK = tarfile.BLOCKSIZE
MAX_HEADER_BYTES = 2**20
"""Largest header of a member (name and attributes); a damaged header may claim gigabytes."""

MAX_SAMPLE_BYTES = 2**31
"""Largest sample, all members together; a decoding worker holds it in memory."""

STRUCTURE_REASONS = (
    "not_a_tar",
    "empty_shard",
    "cut_in_header",
    "cut_in_body",
    "cut_between_members",
    "broken_header",
    "data_after_end",
    "interleaved",
    "duplicate_key",
    "duplicate_member",
    "too_large",
)
"""Reasons for which a tar, or a sample in it, cannot be used: errors of its structure."""


class _Headers:
    """A shard as a file for `tarfile`: reads ahead in pieces, and keeps the result of the last read."""

    def __init__(self, shard: ShardBytes) -> None:
        self.shard, self.position, self.last, self.short = shard, 0, b"", False
        self._start, self._piece, self._ahead = 0, b"", shard.readahead

    def tell(self) -> int:
        return self.position

    def seek(self, position: int, whence: int = 0) -> int:
        assert whence == 0
        self.position = position
        return position

    def read(self, count: int) -> bytes:
        if not 0 <= count <= MAX_HEADER_BYTES:
            raise tarfile.ReadError(f"a header of {count} bytes")
        end = min(self.position + count, self.shard.size)
        if not (self._start <= self.position and end <= self._start + len(self._piece)):
            self._start, self._piece = self.position, self._read(self.position, end)
        self.last = self._piece[self.position - self._start : max(end, self.position) - self._start]
        self.short = len(self.last) < count
        self.position += len(self.last)
        return self.last

    def _read(self, start: int, end: int) -> bytes:
        while start < end:
            ahead = min(start + self._ahead, self.shard.size)
            if ahead <= end:
                return self.shard.read(start, end)
            try:
                return self.shard.read(start, ahead, once=True)
            except ShardError:
                self._ahead = (ahead - start) // 2  # the unreadable part may be one that is not needed
        return b""


@dataclass
class _Run:
    """Adjacent members with the same key."""

    key: str
    start: int
    end: int
    content_end: int
    suffixes: list[str]


def _members(headers: _Headers) -> Iterator[tarfile.TarInfo]:
    """Yield the members. If the shard does not end like a tar, raise a ShardError with the reason."""
    offset, content_end, begun, damaged = 0, 0, False, False
    try:
        with tarfile.open(fileobj=cast(Any, headers), mode="r:") as tar:
            begun = True
            while (member := tar.next()) is not None:
                cast(Any, tar).members = []  # the list of all members would grow with the shard
                if member.size < 0 or tar.offset <= offset:
                    raise tarfile.ReadError("a header that points backwards")
                offset, content_end = tar.offset, member.offset_data + member.size
                yield member
    except (tarfile.TarError, ValueError, OverflowError, EOFError) as error:
        if not begun:
            reason = "not_a_tar" if headers.shard.size else "empty_shard"
            raise ShardError(first_line(error), reason) from error
        damaged = True
    _check_end(headers, offset, content_end, damaged=damaged)


def _check_end(headers: _Headers, offset: int, content_end: int, *, damaged: bool) -> None:
    """Raise a ShardError unless the archive ends with a block of zeros and only zeros follow."""
    size = headers.shard.size
    if content_end > size:
        raise ShardError(f"{size} of at least {content_end} bytes", "cut_in_body")
    if offset >= size:
        raise ShardError(f"no end mark after {size} bytes", "cut_between_members")
    if headers.short:
        raise ShardError(f"a header at byte {offset} of {size}", "cut_in_header")
    if damaged or any(headers.last):
        raise ShardError(f"no valid header at byte {offset} of {size}", "broken_header")
    rest = headers.shard.read(headers.position, min(size, headers.position + MAX_HEADER_BYTES))
    if any(rest):
        raise ShardError(f"the archive ends at byte {offset} of {size}", "data_after_end")


def scan_tar(shard: ShardBytes) -> ShardIndex:
    """Index a tar by its headers; the members' contents are skipped.

    Args:
        shard: The tar, not compressed.

    Raises:
        ShardError: It cannot be read at all. Errors of its structure are part of the index instead.
    """
    runs: list[_Run] = []
    problem: ShardError | None = None
    headers, reach = _Headers(shard), shard.size
    try:
        for member in _members(headers):
            _add(runs, member)
    except ShardError as error:
        if not runs and error.reason not in STRUCTURE_REASONS:
            raise
        problem = error
        if error.reason not in STRUCTURE_REASONS:
            problem, reach = ShardError(str(error), "broken_off"), headers.position
    found, skipped = _usable(runs, reach, problem)
    ranges = np.array([(run.start, run.end) for run in found], np.int64).reshape(-1, 2)
    return ShardIndex(shard.size, shard.stamp, ranges, Keys.of([run.key for run in found]), skipped)


def _add(runs: list[_Run], member: tarfile.TarInfo) -> None:
    named = split_member_name(member.name) if member.isreg() else None
    if named is None:
        return
    key, suffix = named
    content_end = member.offset_data + member.size
    end = member.offset_data + -(-member.size // BLOCK) * BLOCK
    if runs and runs[-1].key == key:
        runs[-1].end, runs[-1].content_end = end, content_end
        runs[-1].suffixes.append(suffix)
    else:
        runs.append(_Run(key, member.offset, end, content_end, [suffix]))


def _usable(runs: list[_Run], reach: int, problem: ShardError | None) -> tuple[list[_Run], list[tuple[str, str, str]]]:
    """Return the runs that are whole samples, and the skipped ones with their reasons.

    Args:
        runs: All runs of the shard.
        reach: Bytes of the shard that can be read.
        problem: Error at the end of the shard, if there is one.
    """
    wrong: dict[str, tuple[str, str]] = {}
    if problem is not None and problem.reason != "data_after_end" and runs and not _is_whole(runs, reach):
        wrong[runs[-1].key] = (problem.reason, str(problem))
    for key, (reason, detail) in _misplaced(runs).items():
        wrong.setdefault(key, (reason, detail))
    for run in runs:
        if run.end - run.start > MAX_SAMPLE_BYTES:
            wrong.setdefault(run.key, ("too_large", f"{run.end - run.start} bytes of at most {MAX_SAMPLE_BYTES}"))
    skipped = [(reason, key, detail) for key, (reason, detail) in wrong.items()]
    if problem is not None and not any(reason == problem.reason for reason, _, _ in skipped):
        skipped.append((problem.reason, "", str(problem)))
    if not runs and problem is None:
        skipped.append(("empty_shard", "", "no member belongs to a sample"))
    found = [run for run in runs if run.key not in wrong]
    for run in found:
        run.end = min(run.end, reach)
    return found, skipped


def _is_whole(runs: list[_Run], reach: int) -> bool:
    """Return whether the last sample before a cut is whole: it has all members that another sample of the shard has."""
    last = runs[-1]
    return last.content_end <= reach and any(set(run.suffixes) <= set(last.suffixes) for run in runs[:-1])


def _misplaced(runs: list[_Run]) -> dict[str, tuple[str, str]]:
    """Return reason and detail, by key, of samples whose members are not adjacent or have the same suffix."""
    times = Counter(run.key for run in runs)
    misplaced: dict[str, list[_Run]] = {}
    for run in runs:
        if times[run.key] > 1 or len(set(run.suffixes)) < len(run.suffixes):
            misplaced.setdefault(run.key, []).append(run)
    return {key: _fault(found) for key, found in misplaced.items()}


def _fault(runs: list[_Run]) -> tuple[str, str]:
    suffixes = [suffix for run in runs for suffix in run.suffixes]
    detail = f"{' '.join(suffixes)} at {len(runs)} places" if len(runs) > 1 else " ".join(suffixes)
    if len(runs) == 1:
        return "duplicate_member", detail
    return ("interleaved" if len(set(suffixes)) == len(suffixes) else "duplicate_key"), detail
