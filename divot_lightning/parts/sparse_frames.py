"""Choose the frames of a clip that the tokenizer reads. No torch, so that data modules can decode these alone."""

from divot_lightning.errors import UserError


def sparse_frame_indices(total: int, count: int) -> list[int]:
    """Choose the frames of a clip that the tokenizer reads: evenly spaced from the first one, then the last one.

    The step is ``total // (count - 1)``, and the last frame is always chosen (the rule of the released code).

    >>> sparse_frame_indices(16, 5)
    [0, 4, 8, 12, 15]
    >>> sparse_frame_indices(5, 5)
    [0, 1, 2, 3, 4]

    Args:
        total: Number of frames of the clip, at least ``count``.
        count: Number of frames to choose.

    Returns:
        Frame indices, rising.

    Raises:
        UserError: The clip has fewer frames.
    """
    if total < count:
        raise UserError(f"tokenizer: the clip has {total} frames; it reads {count}, so give at least {count}")
    if count == 1:
        return [0]
    step = total // (count - 1) if total > count else 1
    return [index * step for index in range(count - 1)] + [total - 1]
