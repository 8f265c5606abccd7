"""The mixture of the released pretraining recipe: its sources, and a model of their lengths; see `packing.py`."""

from dataclasses import dataclass

import numpy as np

from divot_lightning.parts.segments import Clips, Segment, Text

LONGEST = 1400


@dataclass
class Source:
    """A source of the mixture: its batch and weight in the released recipe, and the model of its lengths."""

    name: str
    batch: int
    weight: float
    maximum: int
    generate: bool
    more_words: int
    video: bool

    def sample(self, draws: np.random.Generator) -> list[Segment]:
        words = Text(" ".join(["word"] * int(9 + draws.poisson(self.more_words))), learn=not self.generate)
        if self.generate:
            return [words, Clips(1, "generate", kind="video" if self.video else "image")]
        seconds = draws.lognormal(np.log(18) - 0.6**2 / 2, 0.6)
        count = min(20, int(np.ceil(seconds / 2))) if self.video else 1
        return [Clips(count, "read", kind="video" if self.video else "image"), words]

    def batch_of(self, fraction: float) -> int:
        """Return the number of samples in a fraction of the batch, at least 1."""
        return max(1, round(self.batch * fraction))


SOURCES = [
    Source("video captions", 8, 1.3, LONGEST, generate=False, more_words=9, video=True),
    Source("text to video", 32, 1.0, 180, generate=True, more_words=9, video=True),
    Source("image captions", 32, 0.3, 300, generate=False, more_words=5, video=False),
    Source("text to image", 32, 0.3, 180, generate=True, more_words=40, video=False),
]
