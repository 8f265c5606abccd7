"""BLEU and ROUGE-L equal their definitions."""

import math
from collections import Counter

import pytest

from divot_lightning.errors import UserError
from divot_lightning.evaluation.caption_metrics import CaptionBLEU, CaptionROUGE, caption_words, rouge_of_caption

CAPTIONS = ["A red car drives down the long road.", "Two dogs play in the snow", "a man's hat"]
REFERENCES = [
    ["a red car drives along the road", "the car goes down the long winding road"],
    ["two dogs play in snow today", "dogs are playing in the snow"],
    ["a man's red hat", "the hat of a man"],
]


def ngrams(words, order):
    return Counter(tuple(words[at : at + order]) for at in range(len(words) - order + 1))


def bleu(captions, references, longest):
    """Papineni et al. 2002, section 2.3: clipped counts over the corpus, brevity penalty by the closest length."""
    right, total, length, wanted_length = [0] * longest, [0] * longest, 0, 0
    for caption, texts in zip(captions, references, strict=True):
        words, wanted = caption_words(caption), [caption_words(text) for text in texts]
        length += len(words)
        wanted_length += min((len(text) for text in wanted), key=lambda n: (abs(n - len(words)), n))
        for order in range(1, longest + 1):
            counts = ngrams(words, order)
            most = Counter()
            for text in wanted:
                most |= ngrams(text, order)
            right[order - 1] += sum((counts & most).values())
            total[order - 1] += sum(counts.values())
    if 0 in right:
        return 0.0
    precision = math.exp(sum(math.log(r / t) for r, t in zip(right, total, strict=True)) / longest)
    return precision * min(1.0, math.exp(1 - wanted_length / length))


def longest_common(a, b):
    table = [[0] * (len(b) + 1) for _ in range(len(a) + 1)]
    for i, x in enumerate(a):
        for j, y in enumerate(b):
            table[i + 1][j + 1] = table[i][j] + 1 if x == y else max(table[i][j + 1], table[i + 1][j])
    return table[-1][-1]


def rouge(caption, references):
    values = []
    for text in references:
        a, b = caption_words(caption), caption_words(text)
        common = longest_common(a, b)
        values.append(0.0 if common == 0 else 2 * common / (len(a) + len(b)))
    return max(values)


@pytest.mark.parametrize("order", [1, 2, 4])
def test_bleu_equals_the_definition(order):
    metric = CaptionBLEU(order)
    for at in range(3):
        metric.update(CAPTIONS[at : at + 1], REFERENCES[at : at + 1])
    assert metric.compute().item() == pytest.approx(bleu(CAPTIONS, REFERENCES, order), rel=1e-5)
    assert metric.compute() > 0


def test_rouge_equals_the_definition_with_the_best_reference():
    metric = CaptionROUGE()
    metric.update(CAPTIONS, REFERENCES)
    expected = sum(rouge(*pair) for pair in zip(CAPTIONS, REFERENCES, strict=True)) / 3
    assert metric.compute().item() == pytest.approx(expected, rel=1e-6)


def test_case_and_punctuation_do_not_count():
    assert rouge_of_caption("A DOG, barks!", ["a dog barks"]) == pytest.approx(1.0)


def test_a_caption_without_references_is_named():
    with pytest.raises(UserError, match="'a lone caption'"):
        rouge_of_caption("a lone caption", [])
