"""Clips to tokens such that a clip's tokens do not depend on what it is batched with.

Letters: M clips, F frames, Q tokens per clip, C feature width, H W pixels.
"""

import torch
from torch import Tensor

from divot_lightning.models.pixels import to_unit_range
from divot_lightning.models.tokenizer.video_tokenizer import VideoTokenizer

CLIPS_AT_ONCE = {"cpu": 4}
"""Clips per call of the tokenizer by device type; 1 elsewhere.

One clip at a time makes equal calls for equal clips, so the tokens are equal by construction. On a CPU four at a time,
with the last call filled up, take about three quarters of the time for a small tokenizer, and what a row of such a
batch comes to does not depend on the other rows or on its place: `tests/divot_lightning/models/test_clip_encoding.py`.
On a GPU that is not promised (matrix products may split their sums by place), and one clip of a ViT-H is work enough.
"""


@torch.no_grad()
def encode_clips(tokenizer: VideoTokenizer, video_MF3HW: Tensor) -> Tensor:
    """Compute the tokens of stored clips, for cached features and for training alike.

    Batches of any composition give the same bits for the same clip: matrix libraries choose their way by the size of
    the batch, so the tokenizer is always called with batches of one size. Autocast is left as the caller has it; with
    other precision, on another kind of device, or with another number of threads the tokens are others.

    The number of calls depends on the number of clips only: where the tokenizer's weights are shared out over
    processes, all of them must give equally many.

    Args:
        tokenizer: In evaluation mode.
        video_MF3HW: At least one clip, uint8 in [0, 255]; dense, or the frames that the tokenizer reads.

    Returns:
        Tokens (M, Q, C), float32, on the tokenizer's device.
    """
    weight = next(tokenizer.parameters())
    size = CLIPS_AT_ONCE.get(weight.device.type, 1)
    sparse = tokenizer.select_frames(video_MF3HW)
    tokens = []
    for clips in sparse.split(size):
        filled = torch.cat([clips, clips[:1].expand(size - len(clips), *clips.shape[1:])])
        tokens.append(tokenizer(to_unit_range(filled.to(weight.device)).to(weight.dtype))[: len(clips)].float())
    return torch.cat(tokens)
