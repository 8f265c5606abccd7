"""Join samples to batches, and lay out their texts as token sequences.

Shape letters: B batch, M clips of a batch, F frames, H height, W width, Q tokens per clip, C feature width.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np
import torch

from divot_datamodules.decoding.samples import Item, Sample, check_item
from divot_lightning.errors import UserError
from divot_lightning.parts.sequences.collator import SequenceCollator
from divot_lightning.parts.sequences.limits import SampleLimits
from divot_lightning.parts.sequences.tokens import TokenSequence
from divot_lightning.parts.sources import SampleError

MakeItems = Callable[[Sample, np.random.Generator], list[Item]]


def checked_items(sample: Sample, make_items: MakeItems, rng: np.random.Generator, limits: SampleLimits) -> list[Item]:
    """Turn a sample into items of a batch, without their token sequences.

    Args:
        sample: The decoded sample.
        make_items: Samples the task and builds the items.
        rng: For the random choices of the task.
        limits: Limits of the stage.

    Raises:
        SampleError: The stage cannot use the sample.
    """
    items = make_items(sample, rng)
    for item in items:
        check_item(item, limits)
    return items


Holder = TypeVar("Holder", SequenceCollator, SampleLimits)


def with_max_length(stage: Holder, max_length: int | None) -> Holder:
    """Return a collator or limits of a stage with a lower greatest length of sequences; None changes nothing."""
    if max_length is None or stage.layout is None:
        return stage
    longest = min(max_length, stage.layout.max_length or max_length)
    return replace(stage, layout=replace(stage.layout, max_length=longest))


def laid_out(items: list[Item], collator: SequenceCollator) -> list[TokenSequence]:
    """Tokenise and lay out the texts of items."""
    return [collator.sequence(item["segments"]) for item in items]


def lay_out_ahead(
    sample: Sample, make_items: MakeItems, rng: np.random.Generator, limits: SampleLimits, collator: SequenceCollator
) -> list[TokenSequence] | None:
    """Lay out a sample in the worker that decoded it.

    Args:
        sample: The decoded sample.
        make_items: See `checked_items`. The training process calls it again with the same random numbers.
        rng: For the random choices of the task.
        limits: Limits of the stage.
        collator: Lays out texts.

    Returns:
        A sequence for each item; None if the stage cannot use the sample, which the training process finds as well.
    """
    try:
        return laid_out(checked_items(sample, make_items, rng, limits), collator)
    except SampleError:
        return None


def collate(items: list[Item], collator: SequenceCollator | None = None) -> dict[str, Any]:
    """Join items to a batch.

    Args:
        items: At least one item; with a collator, each has its "sequence".
        collator: Joins token sequences; None for stages without a language model to train.

    Returns:
        The keys of `divot_lightning.parts.batch.Batch` that hold samples: "key" (B strings) and "video" (uint8,
        (B, F, 3, H, W)), or "tokens" and "latents", for the (de-)tokenizer stages; for the LLM stages "segments" (B
        lists), "sequences" and "video" (M, F, 3, H, W) or "features" (float32, (M, Q, C)), with "latents" if the stage
        uses them, of all M clips in order of appearance.

    Raises:
        UserError: Items have different kinds or shapes, and the stage has no `SampleLimits` to find the wrong ones.
    """
    batch: dict[str, Any] = {"key": [item["key"] for item in items]}
    if "segments" not in items[0]:
        media = [name for name in ("video", "tokens", "latents") if name in items[0]]
        if any(set(item) != set(items[0]) for item in items):
            raise UserError("a batch would mix videos and cached latents; take one kind of shards for a stage.")
        return {**batch, **{name: torch.stack([item[name] for item in items]) for name in media}}
    batch["segments"] = [item["segments"] for item in items]
    if any(set(item) != set(items[0]) for item in items):
        raise UserError("a batch would mix videos and cached features; take one kind of shards for a stage.")
    if collator is not None:
        batch["sequences"] = collator.batch([item["sequence"] for item in items])
    clips = [name for name in ("video", "features", "latents") if name in items[0]]
    for name in clips:
        shapes = {tuple(item[name].shape[1:]): item["key"] for item in items}
        if len(shapes) == 1:
            continue
        (one, key), (other, other_key) = list(shapes.items())[:2]
        raise UserError(
            f"a batch would mix clips of the shapes {one} (sample {key!r}) and {other} ({other_key!r}); which of them "
            "the stage takes is not known to the data.\nUse shards of one tokenizer; `divot data inspect` finds others."
        )
    return {**batch, **{name: torch.cat([item[name] for item in items]) for name in clips}}
