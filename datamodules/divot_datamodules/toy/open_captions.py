"""Captions that leave things open: each attribute of a clip is named only sometimes, as captions of real videos do.

"a red shape moves" leaves shape, direction and speed to the model, which should choose them as often as the data have
them. The words are those of `divot_datamodules.toy.world.caption`, so the same text tokenizer reads both.
"""

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np

from divot_datamodules.tasks.built_in import IMAGE_PROMPTS, VIDEO_PROMPTS, GenerateTask
from divot_datamodules.toy.world import ATTRIBUTES, VALUES, ToyWorld, toward
from divot_lightning.errors import UserError
from divot_lightning.parts.segments import Kind, Segment
from divot_lightning.parts.sources import SampleError
from divot_lightning.parts.tasks import Template

NAMED = 0.5
"""Usual probability that an attribute is named: captions that name 0, 1, 2, 3, 4 attributes are then 1, 4, 6, 4, 1 of
16."""


def open_caption(named: Mapping[str, str]) -> str:
    """Return a caption that names some attributes; with all four it is `divot_datamodules.toy.world.caption`.

    Args:
        named: Values by attribute, of those that are named.

    >>> open_caption({"direction": "up"})
    'a shape moves up'
    >>> open_caption({"colour": "red", "shape": "cross", "speed": "slowly", "direction": "left"})
    'a red cross moves slowly to the left'
    """
    thing = [named["colour"]] if "colour" in named else []
    motion = [named["speed"]] if "speed" in named else []
    motion += [toward(named["direction"])] if "direction" in named else []
    return " ".join(["a", *thing, named.get("shape", "shape"), "moves", *motion])


def name_some(attributes: Mapping[str, str], probability: float, rng: np.random.Generator) -> dict[str, str]:
    """Return a random part of a clip's attributes, each with the probability, independently of the others."""
    is_named = rng.random(len(ATTRIBUTES)) < probability
    return {name: attributes[name] for name, chosen in zip(ATTRIBUTES, is_named, strict=True) if chosen}


def check_named(probability: float) -> float:
    """Return the probability that an attribute is named if it is one.

    Raises:
        UserError: It is below 0 or above 1.
    """
    if not 0 <= probability <= 1:
        raise UserError(f"named is {probability}; give a probability, 0 (name nothing) to 1 (name all attributes)")
    return probability


def value_probabilities(named: Mapping[str, str], attribute: str) -> tuple[float, ...]:
    """Return how often training clips that fit a caption have each value of an attribute, in the order of `VALUES`.

    All training combinations are equally frequent.

    Args:
        named: What the caption names.
        attribute: An attribute that it does not name: some training clip fits then, whatever else is named.

    >>> [round(value, 2) for value in value_probabilities({"colour": "red"}, "speed")]
    [0.49, 0.51]
    """
    return _value_probabilities(tuple(named.get(name) for name in ATTRIBUTES), attribute)


@cache
def _value_probabilities(named: tuple[str | None, ...], attribute: str) -> tuple[float, ...]:
    fitting = [
        combination[ATTRIBUTES.index(attribute)]
        for combination in ToyWorld().combinations("train")
        if all(name in (None, value) for name, value in zip(named, combination, strict=True))
    ]
    return tuple(fitting.count(value) / len(fitting) for value in VALUES[attribute])


class OpenGenerateTask(GenerateTask):
    """Read a caption that names some attributes of a toy clip, generate the clip.

    The sample's json has "attributes", a text for each of colour, shape, direction and speed. Each time that a sample
    is read, other attributes are named.

    Args:
        template: See `divot_lightning.parts.tasks.Task`.
        named: Probability that an attribute is named, 0 to 1; 1 gives the captions of the data.
        video_prompts: See `divot_datamodules.tasks.built_in.GenerateTask`.
        image_prompts: Likewise.
    """

    def __init__(
        self,
        template: Template = "pretraining",
        named: float = NAMED,
        video_prompts: str | Sequence[str] = VIDEO_PROMPTS,
        image_prompts: str | Sequence[str] = IMAGE_PROMPTS,
    ) -> None:
        super().__init__(template, video_prompts, image_prompts)
        self.named = check_named(named)

    def segments(
        self, text: Mapping[str, Any], rng: np.random.Generator, *, num_clips: int = 1, kind: Kind = "video"
    ) -> list[Segment]:
        """Build the segments; see `Task.segments`."""
        found = text.get("attributes")
        if not isinstance(found, Mapping) or any(found.get(name) not in VALUES[name] for name in ATTRIBUTES):
            raise SampleError("missing_attribute", "no attributes of a toy clip")
        prompt = open_caption(name_some(found, self.named, rng))
        return super().segments({"caption": prompt}, rng, num_clips=num_clips, kind=kind)
