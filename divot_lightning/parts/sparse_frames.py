"""Which of a clip's frames the tokenizer reads; free of torch, so that a data module can decode only these."""

from divot_lightning.errors import UserError


def sparse_frame_indices(total: int, count: int) -> list[int]:
    """Choose which of a clip's frames the tokenizer reads: evenly spaced from the first one, then the last one.

    The step is ``total // (count - 1)`` rounded down, and the last frame always closes the clip (the released rule).

    >>> sparse_frame_indices(16, 5)
    [0, 4, 8, 12, 15]
    >>> sparse_frame_indices(5, 5)
    [0, 1, 2, 3, 4]

    Args:
        total: Frames of the clip, at least ``count``.
        count: Frames to choose.
    """
    if total < count:
        raise UserError(f"tokenizer: the clip has {total} frames; it reads {count}, so give at least {count}")
    if count == 1:
        return [0]
    step = total // (count - 1) if total > count else 1
    return [index * step for index in range(count - 1)] + [total - 1]
