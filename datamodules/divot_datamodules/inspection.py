"""What shards hold and what is wrong in them, ahead of training.

Shape letters: F frames, H height, W width.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import numpy as np
from torch import Tensor

from divot_datamodules.clip_sampling import ClipSettings
from divot_datamodules.decoding import IMAGE_SUFFIXES, DecodeError, probe
from divot_datamodules.ledger import Defect
from divot_datamodules.samples import Sample, SampleDecoder, SampleError
from divot_datamodules.shard_reading import (
    MEDIA_SUFFIXES,
    RawSample,
    check_shard,
    expand_shards,
    read_samples,
)
from divot_lightning.errors import UserError

SHEET_SAMPLES, SHEET_FRAMES, SHEET_SIDE = 16, 4, 96


@dataclass
class ShardReport:
    """What was seen.

    Attributes:
        shards: Number of shards.
        bytes: Their size; only what is local counts.
        samples: Number of samples, good or bad.
        suffixes: Number of members by suffix.
        resolutions: Number of videos by "height x width".
        rates: Number of videos by frames per second.
        durations: Seconds of each video.
        captions: Samples with a caption.
        questions: Questions in all.
        defects: What is wrong.
        pictures: Clips for the contact sheet, uint8 (F, 3, H, W), with their captions.
    """

    shards: int = 0
    bytes: int = 0
    samples: int = 0
    suffixes: Counter[str] = field(default_factory=Counter)
    resolutions: Counter[str] = field(default_factory=Counter)
    rates: Counter[str] = field(default_factory=Counter)
    durations: list[float] = field(default_factory=list)
    captions: int = 0
    questions: int = 0
    defects: list[Defect] = field(default_factory=list)
    pictures: list[tuple[Tensor, str]] = field(default_factory=list)

    def lines(self) -> list[str]:
        """Returns the report as text."""
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
        found += [f"texts       {self.captions} captions, {self.questions} questions"]
        reasons = Counter(defect.reason for defect in self.defects)
        found += [f"defects     {_counted(reasons)}" if reasons else "defects     none"]
        return found + [
            f"  {d.reason}: {d.shard} {d.key}{' (' + d.detail + ')' if d.detail else ''}" for d in self.defects
        ]


def _counted(counts: Counter[str], limit: int = 6) -> str:
    shown = ", ".join(f"{name} {count}" for name, count in counts.most_common(limit))
    return shown + (f" and {len(counts) - limit} more" if len(counts) > limit else "") or "none"


def find_shards(source: str) -> list[str]:
    """Lists shards as a recipe does, or those of all subfolders if a folder itself holds none."""
    folder = Path(source)
    if folder.is_dir() and not any(folder.glob("*.tar")):
        found = sorted(str(path) for path in folder.rglob("*.tar"))
        if found:
            return found
    return expand_shards(source)


def inspect_shards(
    shards: list[str], clip: ClipSettings | None = None, on_sample: Callable[[], None] | None = None
) -> ShardReport:
    """Reads shards, decodes one clip of each sample as training would, and counts.

    Args:
        shards: Paths and URLs.
        clip: The clips that training would ask for.
        on_sample: Called after each sample, for a progress bar.
    """
    report, decoder = ShardReport(), SampleDecoder(clip or ClipSettings())
    for shard in shards:
        report.shards += 1
        report.bytes += Path(shard).stat().st_size if Path(shard).is_file() else 0
        for raw in _samples(shard, report):
            report.samples += 1
            report.suffixes.update(list(raw.members))
            try:
                _look_at(raw, decoder, report)
            except (SampleError, DecodeError) as error:
                report.defects.append(Defect(error.reason, shard, raw.key, error.detail))
            if on_sample is not None:
                on_sample()
    return report


def _samples(shard: str, report: ShardReport) -> Iterator[RawSample]:
    try:
        check_shard(shard)
    except UserError as error:
        report.defects.append(Defect("broken_shard", shard, "", str(error).splitlines()[0]))
        return
    yield from read_samples(shard, report.defects.append)


def _look_at(raw: RawSample, decoder: SampleDecoder, report: ShardReport) -> None:
    for suffix, data in raw.members.items():
        ending = suffix.split(".")[-1]
        if ending in MEDIA_SUFFIXES and ending not in IMAGE_SUFFIXES:
            info = probe(data)
            report.durations.append(info.duration)
            report.resolutions[f"{info.height}x{info.width}"] += 1
            report.rates[f"{info.fps:.4g}"] += 1
    sample = decoder(raw, None)
    caption = sample.text.get("caption")
    report.captions += bool(caption)
    questions = sample.text.get("questions")
    report.questions += len(questions) if isinstance(questions, list) else "question" in sample.text
    _keep_picture(sample, str(caption or sample.key), report)


def _keep_picture(sample: Sample, caption: str, report: ShardReport) -> None:
    if sample.video is not None and len(report.pictures) < SHEET_SAMPLES:
        video = sample.video[0]
        chosen = np.linspace(0, len(video) - 1, SHEET_FRAMES).round().astype(int)
        report.pictures.append((video[chosen].clone(), caption))


def write_contact_sheet(report: ShardReport, path: str | Path) -> None:
    """Writes a picture with some frames of the first samples and their captions.

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
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path)
