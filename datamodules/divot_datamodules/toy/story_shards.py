"""Stories of the toy world as tar shards: numbered videos and a json with the story in each sample."""

import json
from dataclasses import asdict, dataclass
from typing import ClassVar, Literal

import numpy as np

from divot_datamodules.decoding.video_writing import encode_video
from divot_datamodules.shards.writing import Sample
from divot_datamodules.toy.shards import SPLITS, Split, ToyDataConfig
from divot_datamodules.toy.stories import NIGHT, sample_story
from divot_datamodules.toy.world import BACKGROUND, ToyWorld
from divot_lightning.errors import require_at_least

Look = Literal["day", "night"]
BACKGROUNDS: dict[Look, tuple[int, int, int]] = {"day": BACKGROUND, "night": NIGHT}
"""Background by look; "day" is that of the toy world's clips."""


@dataclass(frozen=True)
class ToyStoryConfig(ToyDataConfig):
    """Settings of the stories; equal settings give equal bytes. The numbers of samples are numbers of stories.

    Attributes:
        num_clips: Clips of each story.
        continuous: Whether a story is one scene; see `divot_datamodules.toy.stories.sample_story`.
        look: Background of the clips.
    """

    world: ClassVar[str] = "toy stories"
    num_clips: int = 3
    continuous: bool = False
    look: Look = "night"

    def __post_init__(self) -> None:
        super().__post_init__()
        require_at_least(1, num_clips=self.num_clips)

    def sample(self, split: Split, number: int) -> Sample:
        """Make one story, independent of all others.

        Args:
            split: The split; validation stories have combinations of attributes of the training.
            number: Index of the story in the split.

        Returns:
            The key and its members: "clip0.mp4", "clip1.mp4", ... (16 frames at 8 per second each) and "json": the
            story as the task `story` reads it, and for each clip attributes and start.
        """
        world = ToyWorld(size=self.size, background=BACKGROUNDS[self.look])
        rng = np.random.default_rng([self.seed, SPLITS.index(split), number])
        story = sample_story(
            world,
            "held_out" if split == "held_out" else "train",
            rng,
            num_clips=self.num_clips,
            continuous=self.continuous,
        )
        text = {
            "story": {"instruction": story.instruction, "texts": story.sentences},
            "changes": list(story.changes),
            "scenes": [asdict(scene) for scene in story.scenes],
            "continuous": self.continuous,
            "background": list(world.background),
        }
        videos = (encode_video(world.render(scene), world.frames_per_second, crf=self.crf) for scene in story.scenes)
        members = {f"clip{at}.mp4": video for at, video in enumerate(videos)}
        return f"{split}-{number:06d}", {**members, "json": json.dumps(text).encode()}
