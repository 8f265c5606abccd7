"""The toy world as tar shards of real h264 videos, with captions, questions and a text tokenizer.

The folder contains `train/`, `validation/` (combinations of the training split, other clips), `held_out/` (combinations
that training never sees) and `text_tokenizer/`.
"""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
from tqdm import tqdm

from divot_datamodules.decoding.video_writing import encode_video
from divot_datamodules.shards.writing import Sample, ShardFolder
from divot_datamodules.toy.text_tokenizer import toy_text_tokenizer
from divot_datamodules.toy.world import ToyWorld, caption, questions
from divot_lightning.errors import UserError, require_at_least

Split = Literal["train", "validation", "held_out"]
SPLITS: tuple[Split, ...] = ("train", "validation", "held_out")


@dataclass(frozen=True)
class ToyDataConfig:
    """Settings of the toy data; equal settings give equal bytes.

    Attributes:
        world: Name of the world in the settings that are stored with the shards.
        size: Height and width in pixels.
        train: Number of training clips.
        validation: Number of clips with the same combinations of attributes, from other start positions.
        held_out: Number of clips with combinations that training never sees.
        seed: Decides all random choices.
        samples_per_shard: Most samples in a shard; a split has at least four shards, so that ranks and workers can
            share it.
        crf: Constant rate factor of the h264 encoder; 0 keeps pixels within 2 levels of 255.
    """

    world: ClassVar[str] = "toy"
    size: int = 32
    train: int = 4096
    validation: int = 256
    held_out: int = 256
    seed: int = 0
    samples_per_shard: int = 256
    crf: int = 0

    def __post_init__(self) -> None:
        require_at_least(16, size=self.size)
        require_at_least(0, seed=self.seed)
        for name in (*SPLITS, "samples_per_shard"):
            require_at_least(1, **{name: getattr(self, name)})
        if self.size % 2:
            raise UserError(f"size is {self.size}; h264 needs an even number of pixels.")

    def shards_of(self, split: Split) -> list[range]:
        """Return the sample numbers of each shard of a split."""
        count: int = getattr(self, split)
        step = max(1, min(self.samples_per_shard, -(-count // 4)))
        return [range(start, min(start + step, count)) for start in range(0, count, step)]

    def sample(self, split: Split, number: int) -> Sample:
        """Make one sample of the toy data, independent of all others.

        Args:
            split: The split.
            number: Index of the sample in the split.

        Returns:
            The key and its members: "mp4" (16 frames at 8 per second) and "json" (caption, questions, attributes,
            start).
        """
        world = ToyWorld(size=self.size)
        rng = np.random.default_rng([self.seed, SPLITS.index(split), number])
        scene = world.sample("held_out" if split == "held_out" else "train", rng)
        facts = asdict(scene)
        start = [facts.pop("start_row"), facts.pop("start_column")]
        text = {"caption": caption(scene), "questions": questions(scene), "attributes": facts, "start": start}
        video = encode_video(world.render(scene), world.frames_per_second, crf=self.crf)
        return f"{split}-{number:06d}", {"mp4": video, "json": json.dumps(text).encode()}


def write_toy_data(folder: str | Path, config: ToyDataConfig, *, progress: bool = False) -> bool:
    """Write the toy data, or continue an interrupted call.

    Args:
        folder: Folder to write.
        config: Settings of the data.
        progress: Whether to show a bar with rate and time left.

    Returns:
        Whether anything was written; False if the folder already contained exactly this data.
    """
    folder = Path(folder)
    shared = {name: value for name, value in asdict(config).items() if name not in SPLITS}
    folders = {
        split: ShardFolder(
            folder / split, kind="video", settings={"world": config.world, **shared, "samples": getattr(config, split)}
        )
        for split in SPLITS
    }
    missing = [split for split in SPLITS if not folders[split].complete]
    total = sum(getattr(config, split) for split in missing)
    with tqdm(total=total, desc="toy clips", unit="clip", disable=not (progress and missing)) as bar:
        for split in missing:
            for number, indices in enumerate(config.shards_of(split)):
                if folders[split].has(number):
                    bar.update(len(indices))
                    continue
                folders[split].write(number, _samples(config, split, indices, bar))
            folders[split].finish()
    tokenizer_missing = not (folder / "text_tokenizer" / "tokenizer.json").is_file()
    if tokenizer_missing:
        toy_text_tokenizer().save_pretrained(str(folder / "text_tokenizer"))
    return bool(missing) or tokenizer_missing


def _samples(config: ToyDataConfig, split: Split, indices: range, bar: "tqdm[None]") -> Iterator[Sample]:
    for index in indices:
        yield config.sample(split, index)
        bar.update()
