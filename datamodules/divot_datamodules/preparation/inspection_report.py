"""The report of an inspection: as text, as a list of skipped samples, and as a picture.

Shape letters: F frames, H height, W width.
"""

import json
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median

from torch import Tensor

from divot_datamodules.loading.skipped_samples import LISTED
from divot_lightning.errors import UserError
from divot_lightning.io.output_files import make_folder, writing_to
from divot_lightning.io.printing import printable
from divot_lightning.parts.sources import SkippedSample

SHEET_SAMPLES, SHEET_FRAMES, SHEET_SIDE = 16, 4, 96


@dataclass
class ShardReport:
    """What an inspection found.

    Attributes:
        shards: Number of shards or jsonl files.
        bytes: Size of the local ones.
        samples: Number of samples, usable or not.
        suffixes: Number of members by suffix.
        resolutions: Number of videos by "height x width".
        rates: Number of videos by frames per second.
        durations: Seconds of each video.
        features: Samples with cached features by "tokens x width".
        captions: Samples with a caption.
        questions: Number of questions.
        skipped: Samples and shards that training would skip, with reasons.
        pictures: Clips for the contact sheet, uint8 (F, 3, H, W), with their captions.
    """

    shards: int = 0
    bytes: int = 0
    samples: int = 0
    suffixes: Counter[str] = field(default_factory=Counter)
    resolutions: Counter[str] = field(default_factory=Counter)
    rates: Counter[str] = field(default_factory=Counter)
    durations: list[float] = field(default_factory=list)
    features: Counter[str] = field(default_factory=Counter)
    captions: int = 0
    questions: int = 0
    skipped: list[SkippedSample] = field(default_factory=list)
    pictures: list[tuple[Tensor, str]] = field(default_factory=list)

    def lines(self) -> list[str]:
        """Return the report as text."""
        found = [
            f"shards      {self.shards} ({self.bytes / 2**20:.1f} MiB)",
            f"samples     {self.samples}",
            f"members     {_counted(self.suffixes)}",
        ]
        if self.durations:
            low, high = min(self.durations), max(self.durations)
            found += [
                f"seconds     {low:.2f} to {high:.2f}, median {median(self.durations):.2f}",
                f"pixels      {_counted(self.resolutions)} (height x width)",
                f"frames/s    {_counted(self.rates)}",
            ]
        if self.features:
            found.append(f"features    {_counted(self.features)} (tokens x width)")
        found += [f"texts       {self.captions} captions, {self.questions} questions"]
        return [printable(line) for line in found + self._skipped_lines()]

    def _skipped_lines(self) -> list[str]:
        if not self.skipped:
            return ["skipped     none"]
        shards = len({sample.shard for sample in self.skipped})
        found = [f"skipped     {len(self.skipped)} in {shards} of {self.shards} shards"]
        reasons = Counter(sample.reason for sample in self.skipped).most_common()
        found += [f"  {reason:<22}{count:>7}" for reason, count in reasons]
        for reason, count in reasons:
            named = [sample for sample in self.skipped if sample.reason == reason]
            found += [f"{reason}: {d.shard} {d.key}{' (' + d.detail + ')' if d.detail else ''}" for d in named[:LISTED]]
            found += [f"{reason}: and {count - LISTED} more"] if count > LISTED else []
        return found


def write_skipped(report: ShardReport, path: str | Path) -> None:
    """Write all skipped samples, one json object per line, in the format of a run's lists.

    Args:
        report: Report of any source.
        path: File to write.
    """
    lines = [json.dumps(asdict(sample)) + "\n" for sample in report.skipped]
    with writing_to(path):
        make_folder(Path(path).parent)
        Path(path).write_text("".join(lines), encoding="utf-8")


def _counted(counts: Counter[str], limit: int = 6) -> str:
    shown = ", ".join(f"{name} {count}" for name, count in counts.most_common(limit))
    return shown + (f" and {len(counts) - limit} more" if len(counts) > limit else "") or "none"


def write_contact_sheet(report: ShardReport, path: str | Path) -> None:
    """Write a picture with some frames of the first samples and their captions.

    Args:
        report: Report of shards with videos.
        path: File to write, a .png or .jpg.

    Raises:
        UserError: There is no clip to show.
    """
    from PIL import Image, ImageDraw

    if not report.pictures:
        raise UserError(f"there is no clip to show, so {path} is not written.")
    columns, line = 2, 14
    rows = -(-len(report.pictures) // columns)
    width, height = SHEET_FRAMES * SHEET_SIDE + 8, SHEET_SIDE + line + 8
    sheet = Image.new("RGB", (columns * width, rows * height), "white")
    draw = ImageDraw.Draw(sheet)
    for index, (frames, caption) in enumerate(report.pictures):
        left, top = index % columns * width, index // columns * height
        draw.text((left + 2, top), caption.encode("latin-1", "replace").decode("latin-1")[:64], fill="black")
        for number, frame in enumerate(frames.permute(0, 2, 3, 1).numpy()):
            picture = Image.fromarray(frame)
            scale = SHEET_SIDE / max(picture.size)
            picture = picture.resize(
                (round(picture.width * scale), round(picture.height * scale)), Image.Resampling.NEAREST
            )
            sheet.paste(picture, (left + number * SHEET_SIDE, top + line))
    with writing_to(path):
        make_folder(Path(path).parent)
        sheet.save(path)
