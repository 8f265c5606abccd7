"""Compare generated captions with the references of a video, by the metrics of the captioning literature.

Captions are split into words as COCO's caption evaluation does, see `caption_words`. BLEU is torchmetrics'. ROUGE-L and
CIDEr-D are defined here as in COCO's evaluation: torchmetrics has another ROUGE-L and no CIDEr, and packages that have
them need Java (pycocoevalcap) or an audio model (aac-metrics). METEOR needs Java and WordNet and is left out.
"""

import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from statistics import fmean
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor
from torchmetrics.functional.text import bleu_score

from divot_lightning.errors import UserError
from divot_lightning.evaluation.metrics.caption_words import caption_words
from divot_lightning.parts.benchmarks import BenchmarkItem, Prediction
from divot_lightning.parts.metrics import JoinedMetric, Measured

BLEU_ORDERS = (1, 2, 3, 4)

ROUGE_BETA = 1.2
"""Weight of recall against precision in COCO's ROUGE-L; 1 would make it an F1."""

CIDER_ORDERS = (1, 2, 3, 4)
CIDER_SIGMA = 6.0
"""Standard deviation, in words, of CIDEr-D's penalty for another length (Vedantam et al. 2015, section 4.2)."""

CIDER_SCALE = 10.0
"""CIDEr-D is ten times a mean of cosines, and so between 0 and 10."""

NGram = tuple[str, ...]


class CaptionScores(JoinedMetric):
    """BLEU of orders 1 to 4 without smoothing (Papineni et al. 2002), ROUGE-L (Lin 2004) and CIDEr-D.

    BLEU and CIDEr-D depend on all captions together, so the state is the captions with their references, as bytes.
    """

    inputs: ClassVar[Literal["answers", "clips"]] = "answers"
    dtype_of_numbers: ClassVar[torch.dtype] = torch.uint8

    def measure(self, prediction: Prediction, item: BenchmarkItem) -> dict[str, Any]:
        """Return the caption."""
        return {"caption": prediction.answer}

    def update(self, measured: Sequence[Measured], items: Sequence[BenchmarkItem]) -> None:
        """Add captions."""
        rows = [[entry["caption"], list(item.references)] for entry, item in zip(measured, items, strict=True)]
        lines = "".join(json.dumps(row) + "\n" for row in rows).encode()
        if lines:
            self.add(torch.frombuffer(bytearray(lines), dtype=torch.uint8))

    def compute(self) -> dict[str, Tensor]:
        """Return `bleu_1` to `bleu_4` and `rouge_l` in [0, 1], `cider_d` in [0, 10]; NaN without captions."""
        rows = [json.loads(line) for line in bytes(self.joined().numpy()).decode().splitlines()]
        captions, references = [row[0] for row in rows], [row[1] for row in rows]
        words = [_spaced(text) for text in captions], [[_spaced(text) for text in texts] for texts in references]
        bleu = {f"bleu_{order}": bleu_score(*words, n_gram=order) for order in BLEU_ORDERS}
        values = torch.tensor([list(row.values()) for row in _item_values(captions, references)], dtype=torch.float64)
        return {**bleu, **dict(zip(("rouge_l", "cider_d"), values.view(-1, 2).mean(dim=0), strict=True))}

    def item_values(self, measured: Sequence[Measured], items: Sequence[BenchmarkItem]) -> list[dict[str, float]]:
        """Return ROUGE-L and CIDEr-D of each caption."""
        return _item_values([entry["caption"] for entry in measured], [item.references for item in items])


def _item_values(captions: Sequence[str], references: Sequence[Sequence[str]]) -> list[dict[str, float]]:
    ciders = cider_of_captions(captions, references)
    return [
        {"rouge_l": rouge_of_caption(text, targets), "cider_d": cider}
        for text, targets, cider in zip(captions, references, ciders, strict=True)
    ]


def rouge_of_caption(caption: str, references: Sequence[str]) -> float:
    """Return the ROUGE-L of a caption: the F measure, with `ROUGE_BETA`, of the best precision and the best recall.

    As in COCO's evaluation the two may come from different references.

    Args:
        caption: The model's caption.
        references: Captions by people.

    Returns:
        In [0, 1].

    Raises:
        UserError: There is no reference.

    >>> round(rouge_of_caption("a red car drives", ["the blue car drives", "cat"]), 3)
    0.5
    """
    predicted, targets = caption_words(caption), _split_references(caption, references)
    common = [_longest_common(predicted, words) for words in targets]
    if not any(common):
        return 0.0
    precision = max(common) / len(predicted)
    recall = max(length / len(words) for length, words in zip(common, targets, strict=True) if words)
    return (1 + ROUGE_BETA**2) * precision * recall / (recall + ROUGE_BETA**2 * precision)


class _Vector(NamedTuple):
    """The weights of a caption's n-grams by order, the norm of each order's vector, and the number of words."""

    orders: tuple[dict[NGram, float], ...]
    norms: tuple[float, ...]
    length: int


def cider_of_captions(captions: Sequence[str], references: Sequence[Sequence[str]]) -> list[float]:
    """Return the CIDEr-D of each caption (Vedantam et al. 2015); their mean is the score of all.

    The weight of an n-gram is log(number of videos / number of videos that have it in a reference). So the value of a
    caption depends on all videos: values over different sets of videos cannot be compared, and a single video has 0.

    Args:
        captions: The model's captions, one per video.
        references: Captions by people, of the same videos.

    Returns:
        In [0, 10], one per video.

    Raises:
        UserError: A video has no reference.
    """
    targets = [_split_references(text, texts) for text, texts in zip(captions, references, strict=True)]
    seen = Counter(ngram for texts in targets for ngram in {ngram for words in texts for ngram in _ngrams(words)})
    weights = {ngram: math.log(len(targets) / count) for ngram, count in seen.items()}
    unseen = math.log(max(len(targets), 1))
    values = []
    for text, texts in zip(captions, targets, strict=True):
        predicted = _weigh(caption_words(text), weights, unseen)
        values.append(
            CIDER_SCALE * sum(_likeness(predicted, _weigh(words, weights, unseen)) for words in texts) / len(texts)
        )
    return values


def _weigh(words: Sequence[str], weights: Mapping[NGram, float], unseen: float) -> _Vector:
    """Return the tf-idf of a caption's n-grams."""
    counts = Counter(_ngrams(words))
    orders: tuple[dict[NGram, float], ...] = tuple({} for _ in CIDER_ORDERS)
    for ngram, count in counts.items():
        orders[len(ngram) - 1][ngram] = count * weights.get(ngram, unseen)
    norms = tuple(math.sqrt(math.fsum(value**2 for value in order.values())) for order in orders)
    return _Vector(orders, norms, len(words))


def _likeness(predicted: _Vector, target: _Vector) -> float:
    """Return the mean cosine over the orders, with clipped weights, times a penalty for another length.

    The weights of the caption are clipped at those of the reference, so that repeating words does not pay.
    """
    cosines = []
    for a, b, norm_a, norm_b in zip(predicted.orders, target.orders, predicted.norms, target.norms, strict=True):
        product = math.fsum(min(value, b[ngram]) * b[ngram] for ngram, value in a.items() if ngram in b)
        cosines.append(product / (norm_a * norm_b) if norm_a and norm_b else 0.0)
    penalty = math.exp(-((predicted.length - target.length) ** 2) / (2 * CIDER_SIGMA**2))
    return penalty * fmean(cosines)


def _ngrams(words: Sequence[str]) -> Iterator[NGram]:
    for order in CIDER_ORDERS:
        yield from (tuple(words[start : start + order]) for start in range(len(words) - order + 1))


def _longest_common(a: Sequence[str], b: Sequence[str]) -> int:
    """Return the length of the longest common subsequence of words."""
    row = [0] * (len(b) + 1)
    for word in a:
        before = row
        row = [0]
        for index, other in enumerate(b):
            row.append(before[index] + 1 if word == other else max(before[index + 1], row[index]))
    return row[-1]


def _split_references(caption: str, references: Sequence[str]) -> list[list[str]]:
    if not references:
        raise UserError(f"the caption {caption!r} has no reference to be compared with")
    return [caption_words(text) for text in references]


def _spaced(text: str) -> str:
    return " ".join(caption_words(text))
