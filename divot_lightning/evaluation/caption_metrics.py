"""How close generated captions are to the references of a video.

BLEU and ROUGE-L are torchmetrics'. CIDEr and METEOR, which the captioning literature reports beside them, are in no
library that is kept up, and are left out.
"""

from collections.abc import Sequence

import torch
from torchmetrics.functional.text.rouge import rouge_score
from torchmetrics.text import BLEUScore

from divot_lightning.errors import UserError
from divot_lightning.evaluation.item_mean import ItemMean

BLEU_ORDERS = (1, 2, 3, 4)


def caption_words(text: str) -> list[str]:
    """Splits a caption into lower-case words without punctuation.

    >>> caption_words("A man's red car.")
    ['a', "man's", 'red', 'car']
    """
    kept = "".join(char if char.isalnum() or char in "'-" else " " for char in text.lower())
    return [word for word in kept.split() if any(char.isalnum() for char in word)]


class CaptionBLEU(BLEUScore):
    """BLEU over all captions (Papineni et al. 2002), without smoothing.

    Args:
        order: Longest n-gram, 1 to 4.
    """

    def __init__(self, order: int = 4) -> None:
        super().__init__(n_gram=order)

    def update(self, captions: Sequence[str], references: Sequence[Sequence[str]]) -> None:
        """Compares captions with the references of their videos."""
        wanted = [[_spaced(text) for text in texts] for texts in references]
        super().update([_spaced(text) for text in captions], wanted)


class CaptionROUGE(ItemMean):
    """ROUGE-L F-measure (Lin 2004) of the best reference, averaged over captions."""

    higher_is_better = True

    def update(self, captions: Sequence[str], references: Sequence[Sequence[str]]) -> None:
        """Compares captions with the references of their videos."""
        values = [rouge_of_caption(text, wanted) for text, wanted in zip(captions, references, strict=True)]
        self.add(torch.tensor(values, dtype=torch.float64))


def rouge_of_caption(caption: str, references: Sequence[str]) -> float:
    """Returns the ROUGE-L F-measure of a caption and its best reference.

    >>> round(rouge_of_caption("a red car drives", ["the blue car drives", "cat"]), 3)
    0.5
    """
    if not references:
        raise UserError(f"the caption {caption!r} has no reference to be compared with")
    scores = rouge_score(
        [caption], [list(references)], accumulate="best", rouge_keys="rougeL", normalizer=str, tokenizer=caption_words
    )
    return float(scores["rougeL_fmeasure"])


def _spaced(text: str) -> str:
    return " ".join(caption_words(text))
