"""MSR-VTT: videos with twenty captions each, to be captioned or generated."""

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import numpy as np

from divot_lightning.evaluation.benchmarks.clips import ClipBenchmark
from divot_lightning.evaluation.benchmarks.files import BenchmarkFolder, field_of
from divot_lightning.parts.benchmarks import Benchmark, BenchmarkData, BenchmarkItem

CAPTION_SEED = 0
"""Seed that chooses the one caption per video from which a clip is generated; the paper does not state its choice."""

MSRVTT_SPLITS = ("test", "validate", "train")
_FOLDERS = ("TestVideo", "TrainValVideo", "videos/all", "videos", "all", ".")


def read_msrvtt(folder: str | Path, split: str) -> BenchmarkData:
    """Read MSR-VTT (Xu et al. 2016).

    `test_videodatainfo.json`, for the other splits `train_val_videodatainfo.json`, or `videodatainfo.json` or
    `MSRVTT_data.json` with all of them: {"videos": [{"video_id", "split"}], "sentences": [{"video_id", "caption"}]}.
    Videos `<video_id>.mp4` in any of `TestVideo`, `TrainValVideo`, `videos/all`, `videos`, `all`.

    Each item has all captions as references. Its `question` is empty, and `facts["prompt"]` is the one caption from
    which a clip is generated, chosen at random with a fixed seed (Divot, arXiv:2412.04432, section 4.1).

    Args:
        folder: The folder of these files.
        split: "train", "validate" or "test".
    """
    files = BenchmarkFolder(folder, "msrvtt")
    first = "test_videodatainfo.json" if split == "test" else "train_val_videodatainfo.json"
    read = files.read_json(first, "videodatainfo.json", "MSRVTT_data.json")
    name, videos = next(iter(files.files)), files.videos(*_FOLDERS)
    captions: dict[str, list[str]] = defaultdict(list)
    for entry in field_of(read, "sentences", list, f"msrvtt: {name}"):
        where = f"msrvtt: a sentence in {name}"
        captions[field_of(entry, "video_id", str, where)].append(field_of(entry, "caption", str, where))

    def items() -> Iterator[BenchmarkItem]:
        for number, entry in enumerate(field_of(read, "videos", list, f"msrvtt: {name}")):
            video = field_of(entry, "video_id", str, f"msrvtt: video {number} in {name}")
            if entry.get("split", split) != split or not captions[video]:
                continue
            media, media_name = videos.find(video)
            texts = captions[video]
            prompt = texts[int(np.random.default_rng([CAPTION_SEED, number]).integers(len(texts)))]
            yield BenchmarkItem(video, media, media_name, references=tuple(texts), facts={"prompt": prompt})

    return files.data(items())


class CaptionBenchmark(Benchmark):
    """Captions, compared with those of people; the prompt is the one that the run was trained on."""

    default_prompt: ClassVar[str | None] = None
    main_scores: ClassVar[tuple[str, ...]] = ("cider_d", "bleu_4")
    metrics: ClassVar[tuple[str, ...]] = ("captions",)


class MSRVTT(CaptionBenchmark):
    """Captions of MSR-VTT's videos (Xu et al. 2016)."""

    splits: ClassVar[tuple[str, ...]] = MSRVTT_SPLITS

    def items(self, data: str | Path, split: str) -> BenchmarkData:
        """Read the videos; see `read_msrvtt`."""
        return read_msrvtt(data, split)


class MSRVTTGeneration(ClipBenchmark):
    """One clip for one caption of each of MSR-VTT's videos."""

    splits: ClassVar[tuple[str, ...]] = MSRVTT_SPLITS

    def items(self, data: str | Path, split: str) -> BenchmarkData:
        """Read the captions; see `read_msrvtt`."""
        return read_msrvtt(data, split)
