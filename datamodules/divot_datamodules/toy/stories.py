"""Stories of the toy world: sentences and clips in turn, in which one attribute changes from clip to clip.

The first sentence is a caption. Each further one names only what changes, "it is green", so that everything else has
to be taken from what came before. The instruction gives the first sentence and asks about the changes in their order:
"Tell me what happens . a red circle moves slowly to the left . what colour is it ? where does it move ?"

All words are words of the toy world's captions and questions, so a video LLM that was pretrained on these can be tuned
to tell stories.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from divot_datamodules.toy.world import (
    DIRECTIONS,
    SPEEDS,
    VALUES,
    Scene,
    Split,
    ToyWorld,
    caption,
    parse_caption,
    toward,
)

NIGHT = (30, 30, 70)
"""Background of stories: a look that the toy world's clips do not have, as a cartoon is to real videos."""

QUESTIONS = {"colour": "what colour is it ?", "direction": "where does it move ?", "speed": "how does it move ?"}
"""What can change, and how the instruction asks for it."""


def change(attribute: str, value: str) -> str:
    """Return the sentence that says what an attribute changes to.

    >>> change("colour", "green"), change("direction", "left"), change("speed", "slowly")
    ('it is green', 'it moves to the left', 'it moves slowly')
    """
    end = toward(value) if attribute == "direction" else value
    return f"it is {end}" if attribute == "colour" else f"it moves {end}"


_CHANGES = {change(attribute, value): (attribute, value) for attribute in QUESTIONS for value in VALUES[attribute]}


@dataclass(frozen=True)
class ToyStory:
    """A story.

    Attributes:
        scenes: The content of each clip.
        changes: For each clip but the first, the attribute that changes.
    """

    scenes: tuple[Scene, ...]
    changes: tuple[str, ...]

    @property
    def instruction(self) -> str:
        """The instruction: the first sentence, and a question about each change."""
        questions = " ".join(QUESTIONS[attribute] for attribute in self.changes)
        return f"Tell me what happens . {caption(self.scenes[0])} . {questions}"

    @property
    def sentences(self) -> list[str]:
        """One sentence per clip."""
        later = zip(self.scenes[1:], self.changes, strict=True)
        return [caption(self.scenes[0]), *(change(name, getattr(scene, name)) for scene, name in later)]


def follow(sentences: Sequence[str]) -> list[tuple[str, dict[str, str]]]:
    """Read sentences one after the other.

    Args:
        sentences: Those of a story, in order.

    Returns:
        For each sentence the attribute that it changes, "" for a whole caption, and the attributes of its clip; it ends
        before the first sentence that is none of a story's.

    >>> follow(["a red circle moves slowly to the left", "it is green", "it moves up"])[2]
    ('direction', {'colour': 'green', 'shape': 'circle', 'speed': 'slowly', 'direction': 'up'})
    >>> len(follow(["a red circle moves slowly to the left", "it is to the left", "it moves up"]))
    1
    """
    states: list[tuple[str, dict[str, str]]] = []
    for sentence in sentences:
        whole, changed = parse_caption(sentence), _CHANGES.get(" ".join(sentence.split()))
        if whole is not None:
            states.append(("", whole))
        elif changed is not None and states:
            states.append((changed[0], {**states[-1][1], changed[0]: changed[1]}))
        else:
            break
    return states


def sample_story(
    world: ToyWorld, split: Split, rng: np.random.Generator, *, num_clips: int = 3, continuous: bool = False
) -> ToyStory:
    """Sample a story.

    Args:
        world: The world of its clips.
        split: "train": no clip has a held-out combination of attributes. "held_out": the first clip has one, the others
            may.
        rng: Source of randomness.
        num_clips: Number of clips.
        continuous: False: every clip has its own start, and two different attributes change (with more than two changes
            each attribute changes before any changes again). True: one scene. A clip continues where the last one
            ended, at the same speed, and each sentence says where to; the shape may also move straight on.

    Returns:
        The story.
    """
    while True:
        order = [str(name) for _ in range(num_clips) for name in rng.permutation(list(QUESTIONS))]
        changes = ("direction",) * (num_clips - 1) if continuous else tuple(order[: num_clips - 1])
        scenes = [world.sample(split, rng)]
        for attribute in changes:
            choices = (_continued if continuous else _cut)(world, scenes[-1], attribute, rng)
            if split == "train":
                allowed = set(world.combinations("train"))
                choices = [s for s in choices if (s.colour, s.shape, s.direction, s.speed) in allowed]
            if not choices:  # a scene that would leave the picture whatever happens
                break
            scenes.append(choices[int(rng.integers(len(choices)))])
        if len(scenes) == num_clips:
            return ToyStory(tuple(scenes), changes)


def _cut(world: ToyWorld, before: Scene, attribute: str, rng: np.random.Generator) -> list[Scene]:
    """Return the scenes that differ in an attribute, each with a start of its own."""
    values: list[dict[str, Any]] = [{attribute: value} for value in VALUES[attribute]]
    changed = [replace(before, **new) for new in values if new[attribute] != getattr(before, attribute)]
    starts = [[float(rng.uniform(*span)) for span in world.start_range(s.direction, s.speed)] for s in changed]
    return [replace(s, start_row=row, start_column=column) for s, (row, column) in zip(changed, starts, strict=True)]


def _continued(world: ToyWorld, before: Scene, attribute: str, rng: np.random.Generator) -> list[Scene]:
    """Return the scenes in which the shape moves on from where it would be in the frame after the last one."""
    assert attribute == "direction", attribute
    row, column = next_start(world, before)
    scenes = [replace(before, direction=name, start_row=row, start_column=column) for name in DIRECTIONS]
    return [scene for scene in scenes if _stays(world, scene)]


def next_start(world: ToyWorld, scene: Scene) -> tuple[float, float]:
    """Return where the shape would be in the frame after a clip: row and column in pixels."""
    distance = SPEEDS[scene.speed] * world.size * world.num_frames
    row, column = (step * distance for step in DIRECTIONS[scene.direction])
    return scene.start_row + row, scene.start_column + column


def _stays(world: ToyWorld, scene: Scene) -> bool:
    spans = world.start_range(scene.direction, scene.speed)
    starts = (scene.start_row, scene.start_column)
    return all(low <= start <= high for start, (low, high) in zip(starts, spans, strict=True))


def one_clip_instruction(state: Mapping[str, str], changes: Sequence[str]) -> str:
    """Return the instruction of a story that begins with given attributes.

    >>> state = {"colour": "red", "shape": "circle", "speed": "slowly", "direction": "up"}
    >>> one_clip_instruction(state, ["speed"])
    'Tell me what happens . a red circle moves slowly up . how does it move ?'
    """
    return ToyStory((Scene(**state, start_row=0.0, start_column=0.0),), tuple(changes)).instruction
