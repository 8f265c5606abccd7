"""The batch that the data give to a stage: its keys, with their shapes, types and meanings.

Shape letters: B samples of the batch, M clips of all its samples, F frames, H height, W width, Q tokens per clip,
C feature width.
"""

from collections.abc import Mapping
from typing import Any, NotRequired, TypedDict

from torch import Tensor

from divot_lightning.parts.segments import Segment
from divot_lightning.parts.sequences.rows import SequenceBatch


class Batch(TypedDict):
    """One process's samples of a training or evaluation step.

    The (de-)tokenizer stages get exactly one clip of each sample, in "video", or in "tokens" and "latents". The LLM
    stages get "segments", "sequences", and all clips of the samples in either "video" or "features", in the order in
    which the segments name them; a batch of texts alone has neither. The adaptation of a de-tokenizer gets what the LLM
    stages get, and with "features" also "latents".

    Attributes:
        key: The samples' keys, B strings.
        sample_index: int64 (B,), on the CPU. The samples' numbers in the order of the data, never used twice in a
            training. They seed random choices, so that these do not depend on the number of processes.
        counted: Samples that count for the loss: B, or 0 for a dummy batch, which only keeps the ranks in sync.
        position: Number of the next step in the plan of the order. The data module saves it in checkpoints.
        video: uint8 in [0, 255], RGB: (B, F, 3, H, W) for the (de-)tokenizer stages, (M, F, 3, H, W) for LLM stages.
        tokens: float32 (B, Q, C), cached tokens for the refinement of a de-tokenizer, in place of "video".
        latents: float32 (B, ...), with "tokens" or "features": what `Latents.sample` takes.
        features: float32 (M, Q, C), the tokenizer's features of the clips, cached.
        segments: Texts and clips of each sample in order, B lists.
        sequences: The same as token sequences, int64 tensors on the CPU, for stages that train a language model: see
            `divot_lightning.parts.sequences.rows.SequenceBatch`. The data workers tokenise and lay out.
        step_counts: Numbers of targets in all batches of the optimizer step; only with accumulated gradients, see
            `divot_lightning.training.accumulation.StepCounts`.
    """

    key: list[str]
    sample_index: Tensor
    counted: int
    position: int
    video: NotRequired[Tensor]
    tokens: NotRequired[Tensor]
    latents: NotRequired[Tensor]
    features: NotRequired[Tensor]
    segments: NotRequired[list[list[Segment]]]
    sequences: NotRequired[SequenceBatch]
    step_counts: NotRequired[Any]


def num_samples(batch: Mapping[str, Any]) -> int:
    """Count the samples of a batch, those of a dummy batch too."""
    counted = next((name for name in ("segments", "latents") if name in batch), "video")
    return len(batch[counted])


def num_real_samples(batch: Mapping[str, Any]) -> int:
    """Count the samples that enter the loss: 0 in a dummy batch, which only keeps processes in sync."""
    return int(batch.get("counted", num_samples(batch)))
