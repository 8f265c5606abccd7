"""Examples that are ready to click: clips, and texts whose words the runs know."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from shutil import copyfile
from typing import Any

from divot_datamodules.toy.stories import one_clip_instruction
from divot_datamodules.toy.world import ATTRIBUTES, caption, questions
from divot_lightning.checkpoint.run_components import find_component
from divot_lightning.demo.clips import TOY_SCENES, Clip, ClipStore, toy_examples
from divot_lightning.demo.systems import Ability, System
from divot_lightning.errors import UserError
from divot_lightning.inference.unknown_words import unknown_words
from divot_lightning.parts.sequences.text_tokenizer import load_text_tokenizer

MOST_TEXTS = 3

PROMPTS = ("a dog runs along the beach", "waves break on the rocks", "a balloon rises over the mountains")
QUESTIONS = ("What happens in the video?", "What moves, and where to?", "What colours are there?")
STORIES = ("Tell the story of a dog that finds a ball.", "Tell the story of a ship in a storm.")

TOY_CAPTIONS = tuple(caption(scene) for scene in TOY_SCENES)
TOY_STORIES = tuple(
    one_clip_instruction({name: getattr(scene, name) for name in ATTRIBUTES}, ["colour", "direction"])
    for scene in TOY_SCENES[:2]
)
TOY_QUESTIONS = tuple(turn["question"] for turn in questions(TOY_SCENES[0]))[:MOST_TEXTS]


@dataclass(frozen=True)
class ExampleClip:
    """A clip to click.

    Attributes:
        clip: What the page needs to use it, as of an upload.
        view: Its address, to look at.
    """

    clip: dict[str, Any]
    view: str


@dataclass(frozen=True)
class Examples:
    """What the page offers.

    Attributes:
        clips: Clips to reconstruct and to ask about.
        texts: Questions, prompts and instructions, by what they are for.
    """

    clips: tuple[ExampleClip, ...]
    texts: dict[Ability, tuple[str, ...]]

    def describe(self) -> dict[str, Any]:
        """Return them as JSON values."""
        return asdict(self)


def make_examples(systems: Sequence[System], clips: ClipStore, folder: Path, videos: Sequence[Path] = ()) -> Examples:
    """Write example clips and choose texts.

    Args:
        systems: The runs.
        clips: Gets the example clips.
        folder: A folder that the page serves.
        videos: Example clips; by default some of the toy world.

    Raises:
        UserError: One of the videos cannot be read.
    """
    folder.mkdir(parents=True, exist_ok=True)
    files = [(path, path.name) for path in videos] or toy_examples(folder)
    shown = [_example(clips, path, name, folder) for path, name in files]
    candidates: dict[Ability, tuple[str, ...]] = {
        "ask": QUESTIONS + TOY_QUESTIONS,
        "generate": PROMPTS + TOY_CAPTIONS,
        "story": STORIES + TOY_STORIES + TOY_CAPTIONS,
    }
    return Examples(tuple(shown), {name: _known(texts, name, systems) for name, texts in candidates.items()})


def _example(clips: ClipStore, path: Path, name: str, folder: Path) -> ExampleClip:
    if not path.is_file():
        raise UserError(f"there is no file {path}")
    clip: Clip = clips.add_example(path, name)
    served = folder / f"{clip.id}{path.suffix}"
    copyfile(path, served)
    return ExampleClip(clip.describe(), f"files/{folder.name}/{served.name}")


def _known(texts: Sequence[str], ability: Ability, systems: Sequence[System]) -> tuple[str, ...]:
    """Return the first texts of which the first run that can use them knows every word."""
    able = [system for system in systems if ability in system.abilities]
    if not able:
        return ()
    tokenizer, _ = load_text_tokenizer(find_component(able[0].pipeline.models.run, "video_llm") / "text_tokenizer")
    return tuple(text for text in texts if not unknown_words(tokenizer, text))[:MOST_TEXTS]
