"""Select the items of a benchmark that an evaluation uses, each with its number in the split. No torch in here."""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from divot_lightning.errors import UserError
from divot_lightning.evaluation.config import EvaluationConfig
from divot_lightning.evaluation.protocol import library_versions, listing_sha256
from divot_lightning.io.files import file_sha256
from divot_lightning.parts.benchmarks import Benchmark, BenchmarkItem, FileSlice

Numbered = tuple[int, BenchmarkItem]


@dataclass(frozen=True)
class ChosenItems:
    """The selected items of a benchmark.

    Attributes:
        name: Of the benchmark.
        split: Of the benchmark.
        numbered: The selected items with their numbers. A number is the item's index in the whole split, items without
            video included. It seeds the sampling, which therefore does not depend on which videos are there.
        total: Items of the split.
        without_video: How many of these have no video and are skipped.
        limit: Most items, the first ones; None for all.
        groups: All groups of the split.
        files: The benchmark's files, by name.
    """

    name: str
    split: str
    numbered: tuple[Numbered, ...]
    total: int
    without_video: int
    limit: int | None
    groups: tuple[str, ...]
    files: Mapping[str, Path]

    @property
    def items(self) -> list[BenchmarkItem]:
        """The items without their numbers."""
        return [item for _, item in self.numbered]

    @property
    def absent_groups(self) -> list[str]:
        """Groups of the split without any selected item."""
        there = {item.group for item in self.items}
        return [group for group in self.groups if group not in there]

    @cached_property
    def media_sizes(self) -> dict[str, int]:
        """Bytes of each video, by its name."""
        found: dict[str, int] = {}
        for item in self.items:
            if item.media_name not in found:
                found[item.media_name] = _size(item)
        return found

    def describe_files(self) -> dict[str, Any]:
        """Return the benchmark, its files and the library versions, which decide the predictions."""
        return {
            "benchmark": self.name,
            "split": self.split,
            "files": {name: file_sha256(path) for name, path in self.files.items()},
            "versions": library_versions(),
        }

    def describe_choice(self) -> dict[str, Any]:
        """Return which items are selected."""
        videos = {"count": len(self.media_sizes), "names_and_sizes_sha256": listing_sha256(self.media_sizes.items())}
        return {"videos": videos, "items_without_video": self.without_video, "limit": self.limit}


def choose_items(benchmark: Benchmark, name: str, config: EvaluationConfig, split: str) -> ChosenItems:
    """Read a benchmark and select the items whose videos are there.

    Raises:
        UserError: Videos are missing and `missing` is "refuse", or no video is there.
    """
    data = benchmark.items(config.data, split)
    missing = data.missing
    if missing and config.missing == "refuse":
        raise UserError(
            f"{name}: {len(missing)} videos are not there, the first is {missing[0]} in {config.data}\n"
            "To skip their items, which is then noted beside the score: --missing skip"
        )
    there = [(number, item) for number, item in enumerate(data.items) if item.media is not None]
    if not there:
        raise UserError(f"{name}: none of its videos is in {config.data}")
    return ChosenItems(
        name,
        split,
        numbered=tuple(there[: config.limit]),
        total=len(data.items),
        without_video=len(data.items) - len(there),
        limit=config.limit,
        groups=tuple(dict.fromkeys(item.group for item in data.items if item.group)),
        files=data.files,
    )


def by_video(numbered: Iterable[Numbered]) -> list[list[Numbered]]:
    """Group items by video, or by part of a video, in the order in which they first occur."""
    groups: dict[Any, list[Numbered]] = defaultdict(list)
    for number, item in numbered:
        groups[item.media_name, item.bounds].append((number, item))
    return list(groups.values())


def _size(item: BenchmarkItem) -> int:
    if item.is_features:
        return 0  # features belong to the model, not to the data: those of another tokenizer may have another size
    if isinstance(item.media, bytes):
        return len(item.media)
    if isinstance(item.media, FileSlice):
        return item.media.size
    assert item.media is not None
    if item.media.is_dir():
        return sum(path.stat().st_size for path in item.media.iterdir())
    return item.media.stat().st_size
