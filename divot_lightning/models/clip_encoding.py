"""Encode clips so that the tokens of a clip do not depend on the other clips of its batch.

Letters: M clips, F frames, Q tokens per clip, C feature width, H W pixels.
"""

import torch
from torch import Tensor

from divot_lightning.models.pixels import to_unit_range
from divot_lightning.models.tokenizer.video_tokenizer import VideoTokenizer

CLIPS_AT_ONCE = {"cpu": 4}
"""Clips per call of the tokenizer by device type; 1 elsewhere.

One clip per call makes the same call for the same clip, so its tokens are always the same. On a CPU, four clips per
call (the last call is filled up) take about three quarters of the time with a small tokenizer. The result of a row does
not depend on the other rows or on its index there: `tests/divot_lightning/models/test_clip_encoding.py` checks it. A
GPU does not guarantee this (matrix products may split their sums by row index), and one clip keeps a ViT-H busy.
"""


@torch.no_grad()
def encode_clips(tokenizer: VideoTokenizer, video_MF3HW: Tensor) -> Tensor:
    """Compute the tokens of stored clips, for cached features and for training.

    The same clip gives the same bits in every batch: matrix libraries choose their algorithm by the size of the batch,
    so the tokenizer is always called with the same batch size. Autocast is left as the caller has set it. Another
    precision, kind of device or number of threads gives tokens that differ by rounding.

    The number of calls depends only on the number of clips. Where the tokenizer's weights are sharded over ranks, all
    ranks must pass the same number of clips.

    Args:
        tokenizer: In evaluation mode.
        video_MF3HW: At least one clip, uint8 in [0, 255]; all frames, or only those that the tokenizer reads.

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
