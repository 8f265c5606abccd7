"""BLEU, ROUGE-L and CIDEr-D equal their definitions and what COCO's caption evaluation computes."""

import math
from collections import Counter

import numpy as np
import pytest

from divot_lightning.errors import UserError
from divot_lightning.evaluation.metrics.caption_metrics import CaptionScores, cider_of_captions, rouge_of_caption
from divot_lightning.evaluation.metrics.caption_words import caption_words
from divot_lightning.parts.benchmarks import BenchmarkItem, Prediction
from tests.divot_lightning.evaluation.measuring import scores_of

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
    right, total, length, target_length = [0] * longest, [0] * longest, 0, 0
    for caption, texts in zip(captions, references, strict=True):
        words, targets = caption_words(caption), [caption_words(text) for text in texts]
        length += len(words)
        target_length += min((len(text) for text in targets), key=lambda n: (abs(n - len(words)), n))
        for order in range(1, longest + 1):
            counts = ngrams(words, order)
            most = Counter()
            for text in targets:
                most |= ngrams(text, order)
            right[order - 1] += sum((counts & most).values())
            total[order - 1] += sum(counts.values())
    if 0 in right:
        return 0.0
    precision = math.exp(sum(math.log(r / t) for r, t in zip(right, total, strict=True)) / longest)
    return precision * min(1.0, math.exp(1 - target_length / length))


def longest_common(a, b):
    table = [[0] * (len(b) + 1) for _ in range(len(a) + 1)]
    for i, x in enumerate(a):
        for j, y in enumerate(b):
            table[i + 1][j + 1] = table[i][j] + 1 if x == y else max(table[i][j + 1], table[i + 1][j])
    return table[-1][-1]


def rouge(caption, references):
    """Lin 2004, section 3.2, with beta 1.2, of the best precision and the best recall over the references."""
    a, texts = caption_words(caption), [caption_words(text) for text in references]
    precision = max(longest_common(a, b) / len(a) for b in texts)
    recall = max(longest_common(a, b) / len(b) for b in texts)
    return 2.44 * precision * recall / (recall + 1.44 * precision) if precision else 0.0


def cider(captions, references):
    """Vedantam et al. 2015, sections 4 and 4.2, with a vector over all n-grams of the corpus for each caption."""
    texts = [[caption_words(text) for text in targets] for targets in references]
    predicted = [caption_words(text) for text in captions]
    values = np.zeros(len(captions))
    for order in range(1, 5):
        known = sorted(
            {gram for words in [*predicted, *(w for t in texts for w in t)] for gram in ngrams(words, order)}
        )
        videos_with = [
            sum(any(gram in ngrams(words, order) for words in targets) for targets in texts) for gram in known
        ]
        idf = np.log(len(captions)) - np.log(np.maximum(videos_with, 1))

        def vector(words, order=order, known=known, idf=idf):
            return idf * np.array([ngrams(words, order)[gram] for gram in known])

        for at, (words, targets) in enumerate(zip(predicted, texts, strict=True)):
            for reference in targets:
                a, b = vector(words), vector(reference)
                length = np.linalg.norm(a) * np.linalg.norm(b)
                cosine = np.minimum(a, b) @ b / length if length else 0.0
                values[at] += cosine * np.exp(-((len(words) - len(reference)) ** 2) / 72) / len(targets)
    return 10 * values / 4


def scores(captions, references):
    items = [BenchmarkItem("", None, "", references=tuple(texts)) for texts in references]
    return scores_of(CaptionScores(), [Prediction(text) for text in captions], items)


@pytest.mark.parametrize("order", [1, 2, 4])
def test_bleu_equals_the_definition(order):
    found = scores(CAPTIONS, REFERENCES)[f"bleu_{order}"]
    assert found == pytest.approx(bleu(CAPTIONS, REFERENCES, order), rel=1e-5)
    assert found > 0


def test_rouge_equals_the_definition_with_the_best_reference():
    expected = sum(rouge(*pair) for pair in zip(CAPTIONS, REFERENCES, strict=True)) / 3
    assert scores(CAPTIONS, REFERENCES)["rouge_l"] == pytest.approx(expected, rel=1e-6)


def test_cider_equals_the_definition():
    for captions, references in ((CAPTIONS, REFERENCES), zip(*MEASURED, strict=True)):
        captions, references = list(captions), list(references)
        np.testing.assert_allclose(
            cider_of_captions(captions, references), cider(captions, references), rtol=1e-9, atol=1e-12
        )


MEASURED = [
    (
        "A red car drives down the long road.",
        ["a red car drives along the road", "the car goes down the long winding road", "A car's driving on a road"],
    ),
    (
        "Two dogs play in the snow",
        ["two dogs play in snow today", "dogs are playing in the snow", "two puppies run around, barking"],
    ),
    (
        "a man's hat isn't on the table",
        ["a man's red hat", "the hat of a man isn't on a table", "there is no hat on the table"],
    ),
    (
        "someone is cooking cooking cooking food",
        ["a woman is cooking food in the kitchen", "someone cooks a meal", "a person is cooking"],
    ),
    (
        "a man is talking",
        ["a man is talking about a car", "a man talks to the camera", "the man is speaking (on a stage)"],
    ),
    (
        "a band plays music on a stage for a very large crowd of people at night",
        ["a band plays on stage", "people watch a band perform", "a band is playing music"],
    ),
    (
        "the cat sleeps",
        ["a boy rides a bike", "a child is riding a bicycle down the street", "kid on bike"],
    ),
]


def test_all_scores_equal_those_of_the_coco_caption_evaluation():
    """Measured with pycocoevalcap 1.2, its PTBTokenizer of Stanford CoreNLP 3.4.1 included."""
    captions, references = [text for text, _ in MEASURED], [texts for _, texts in MEASURED]
    ciders = [2.637202, 3.118564, 2.598983, 0.943739, 2.236152, 0.282561, 0.001058]
    assert cider_of_captions(captions, references) == pytest.approx(ciders, abs=5e-7)
    assert np.mean(cider_of_captions(captions, references)) == pytest.approx(1.688322840154731, rel=1e-9)
    rouges = [0.809735, 0.833333, 0.739394, 0.5, 0.693182, 0.525862, 0.152882]
    assert [rouge_of_caption(*pair) for pair in MEASURED] == pytest.approx(rouges, abs=5e-7)
    found = scores(captions, references)
    assert found["rouge_l"] == pytest.approx(0.6077696969518184, rel=1e-9)
    assert found["cider_d"] == pytest.approx(1.688322840154731, rel=1e-9)
    bleus = [found[f"bleu_{order}"] for order in (1, 2, 3, 4)]
    assert bleus == pytest.approx([0.75, 0.619139, 0.49468, 0.328991], abs=1e-6)


def test_a_caption_without_words_scores_nothing():
    assert cider_of_captions(["", "a cat", "a dog"], [["a red car"], ["a cat"], ["dogs"]])[0] == 0.0
    assert rouge_of_caption("", ["a cat"]) == rouge_of_caption("a cat", [""]) == 0.0


def test_the_caption_of_a_single_video_has_no_cider():
    assert cider_of_captions(["a red car"], [["a red car"]]) == [0.0]


def test_case_and_punctuation_do_not_count():
    assert rouge_of_caption("A DOG, barks!", ["a dog barks"]) == pytest.approx(1.0)


def test_a_caption_without_references_is_named():
    with pytest.raises(UserError, match="'a lone caption'"):
        rouge_of_caption("a lone caption", [])
    with pytest.raises(UserError, match="'a lone caption'"):
        cider_of_captions(["a lone caption"], [[]])
