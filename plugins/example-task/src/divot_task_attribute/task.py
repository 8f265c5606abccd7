"""The task "name an attribute", with its phrases."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from divot_lightning.parts.segments import Clips, Kind, Segment, Text
from divot_lightning.parts.sources import SampleError
from divot_lightning.parts.tasks import Task, Template, checked_phrases, pick_phrase

PROMPTS = ("What {} does it have ?", "Name the {} .")


class AttributeTask(Task):
    """Read the clips, name one of their attributes.

    The sample's json has "attributes", texts by name.

    Args:
        template: See `divot_lightning.parts.tasks.Task`.
        attributes: Names of the attributes to ask for; None for all that a sample has.
        prompts: Questions, with `{}` for the name of the attribute.
    """

    def __init__(
        self,
        template: Template = "pretraining",
        attributes: Sequence[str] | None = None,
        prompts: Sequence[str] = PROMPTS,
    ) -> None:
        super().__init__(template)
        self.attributes = attributes
        self.prompts = checked_phrases("prompts", prompts, num_fields=1)

    def segments(
        self, text: Mapping[str, Any], rng: np.random.Generator, *, num_clips: int = 1, kind: Kind = "video"
    ) -> list[Segment]:
        """Build the segments; see `Task.segments`."""
        found = text.get("attributes")
        names = sorted(found) if isinstance(found, Mapping) else []
        candidates = [name for name in names if self.attributes is None or name in self.attributes]
        if not candidates:
            raise SampleError("missing_attribute", f"none of the attributes {self.attributes or 'of any name'}")
        name = candidates[int(rng.integers(len(candidates)))]
        prompt = self.user_turn(pick_phrase(self.prompts, rng, name), Clips(num_clips, "read", kind))
        return [*prompt, Text(str(text["attributes"][name]), learn=True)]
