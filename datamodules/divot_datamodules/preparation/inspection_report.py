"""What was seen in shards, as text, as a list of defects and as a picture.

Shape letters: F frames, H height, W width.
"""

import json
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median

from torch import Tensor

from divot_datamodules.loading.skipped_samples import LISTED, SkippedSample
from divot_lightning.errors import UserError
from divot_lightning.io.output_files import writing_to
from divot_lightning.io.printing import printable

SHEET_SAMPLES, SHEET_FRAMES, SHEET_SIDE = 16, 4, 96


@dataclass
class ShardReport:
    """What was seen.

    Attributes:
        shards: Number of shards or jsonl files.
        bytes: Their size; only what is local counts.
        samples: Number of samples, good or bad.
        suffixes: Number of members by suffix.
        resolutions: Number of videos by "height x width".
        rates: Number of videos by frames per second.
        durations: Seconds of each video.
        features: Samples with cached features by "tokens x width".
        captions: Samples with a caption.
        questions: Questions in all.
        skipped: What is wrong.
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
        return [printable(line) for line in found + self._defect_lines()]

    def _defect_lines(self) -> list[str]:
        if not self.skipped:
            return ["defects     none"]
        shards = len({defect.shard for defect in self.skipped})
        found = [f"defects     {len(self.skipped)} in {shards} of {self.shards} shards"]
        reasons = Counter(defect.reason for defect in self.skipped).most_common()
        found += [f"  {reason:<22}{count:>7}" for reason, count in reasons]
        for reason, count in reasons:
            named = [defect for defect in self.skipped if defect.reason == reason]
            found += [f"{reason}: {d.shard} {d.key}{' (' + d.detail + ')' if d.detail else ''}" for d in named[:LISTED]]
            found += [f"{reason}: and {count - LISTED} more"] if count > LISTED else []
        return found


def write_skipped(report: ShardReport, path: str | Path) -> None:
    """Write all defects, one json object per line, as the ledger of a run does.

    Args:
        report: Of any data.
        path: A file.
    """
    lines = [json.dumps(asdict(defect)) + "\n" for defect in report.skipped]
    with writing_to(path):
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_text("".join(lines), encoding="utf-8")


def _counted(counts: Counter[str], limit: int = 6) -> str:
    shown = ", ".join(f"{name} {count}" for name, count in counts.most_common(limit))
    return shown + (f" and {len(counts) - limit} more" if len(counts) > limit else "") or "none"


def write_contact_sheet(report: ShardReport, path: str | Path) -> None:
    """Write a picture with some frames of the first samples and their captions.

    Args:
        report: Of shards that hold videos.
        path: A .png or .jpg.
    """
    from PIL import Image, ImageDraw

    if not report.pictures:
        raise UserError(f"there is no clip to show, so {path} is not written.")
    columns, line = 2, 14
    rows = -(-len(report.pictures) // columns)
    width, height = SHEET_FRAMES * SHEET_SIDE + 8, SHEET_SIDE + line + 8
    sheet = Image.new("RGB", (columns * width, rows * height), "white")
    draw = ImageDraw.Draw(sheet)
    for place, (frames, caption) in enumerate(report.pictures):
        left, top = place % columns * width, place // columns * height
        draw.text((left + 2, top), caption.encode("latin-1", "replace").decode("latin-1")[:64], fill="black")
        for number, frame in enumerate(frames.permute(0, 2, 3, 1).numpy()):
            picture = Image.fromarray(frame)
            scale = SHEET_SIDE / max(picture.size)
            picture = picture.resize(
                (round(picture.width * scale), round(picture.height * scale)), Image.Resampling.NEAREST
            )
            sheet.paste(picture, (left + number * SHEET_SIDE, top + line))
    with writing_to(path):
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        sheet.save(path)
