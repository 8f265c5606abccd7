"""A linear probe: how well a linear classifier reads labels from tokens.

Shape letters: N samples, K features, V classes.
"""

import math
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from divot_datamodules.toy.world import VALUES
from divot_lightning.parts.benchmarks import BenchmarkItem, Prediction
from divot_lightning.parts.metrics import JoinedMetric, Measured

PENALTIES = (1e-3, 1e-2, 1e-1, 1.0, 10.0)


def _fit(features_NK: Tensor, targets_NV: Tensor, penalty: float) -> Tensor:
    gram_KK = features_NK.T @ features_NK / len(features_NK)
    eye_KK = torch.eye(len(gram_KK), dtype=gram_KK.dtype)
    return torch.linalg.solve(gram_KK + penalty * eye_KK, features_NK.T @ targets_NV / len(features_NK))


def probe_accuracy(train_NK: Tensor, train_labels: Sequence[Any], test_NK: Tensor, test_labels: Sequence[Any]) -> float:
    """Fit a ridge classifier and return its accuracy on the test set.

    One-hot regression on standardised features with a constant; the penalty is the best of `PENALTIES` on the last
    fifth of the training set, then everything is fitted again with it. Deterministic.

    Args:
        train_NK: Features to fit on, float.
        train_labels: Their labels, of a type that can be sorted.
        test_NK: Features to test on; never used to choose anything.
        test_labels: Their labels; labels that training never saw count as wrong.

    Returns:
        Fraction of right labels in [0, 1].

    >>> sign = torch.tensor([[-1.0], [1.0]]).repeat(10, 1)
    >>> probe_accuracy(sign, ["minus", "plus"] * 10, torch.tensor([[2.0]]), ["plus"])
    1.0
    """
    names = sorted(set(train_labels))
    labels_N = torch.tensor([names.index(label) for label in train_labels])
    targets_NV = torch.nn.functional.one_hot(labels_N, len(names)).double()
    mean_K, std_K = train_NK.double().mean(dim=0), train_NK.double().std(dim=0).clamp_min(1e-8)

    def standardise(features_NK: Tensor) -> Tensor:
        scaled_NK = (features_NK.double() - mean_K) / std_K
        return torch.cat([scaled_NK, torch.ones(len(scaled_NK), 1, dtype=torch.float64)], dim=1)

    inputs_NK, held = standardise(train_NK), max(1, len(train_NK) // 5)

    def held_accuracy(penalty: float) -> float:
        weights_KV = _fit(inputs_NK[:-held], targets_NV[:-held], penalty)
        return ((inputs_NK[-held:] @ weights_KV).argmax(dim=1) == labels_N[-held:]).double().mean().item()

    penalty = max(PENALTIES, key=held_accuracy)
    predicted_N = (standardise(test_NK) @ _fit(inputs_NK, targets_NV, penalty)).argmax(dim=1)
    right = [names[int(index)] == label for index, label in zip(predicted_N, test_labels, strict=True)]
    return sum(right) / len(right)


class ToyProbe(JoinedMetric):
    """Accuracy of a linear probe for each attribute of the toy world.

    It is fitted on the items whose facts have `fit`, and tested on the others; `order` is their order.
    """

    inputs: ClassVar[Literal["answers", "clips", "features"]] = "features"
    width: Tensor

    def __init__(self) -> None:
        super().__init__()
        # A process without an item does not know the number of features.
        self.add_state("width", torch.zeros((), dtype=torch.int64), dist_reduce_fx="max")

    def measure(self, prediction: Prediction, item: BenchmarkItem) -> dict[str, Any]:
        """Return all tokens of a clip as one vector."""
        assert prediction.features is not None
        return {"tokens": prediction.features.flatten().tolist()}

    def update(self, measured: Sequence[Measured], items: Sequence[BenchmarkItem]) -> None:
        """Add clips."""
        for entry, item in zip(measured, items, strict=True):
            facts, self.width = item.facts, self.width.new_tensor(len(entry["tokens"]))
            labels = [sorted(values).index(facts["attributes"][name]) for name, values in VALUES.items()]
            self.add(torch.tensor([facts["order"], facts["fit"], *labels, *entry["tokens"]], dtype=torch.float64))

    def _split(self) -> tuple[Tensor, Tensor]:
        """Return a row for each clip to fit on and to test on, in order: its labels, then its tokens."""
        rows_NK = self.joined().view(-1, 2 + len(VALUES) + int(self.width))
        rows_NK = rows_NK[rows_NK[:, 0].argsort()]
        fitted_N = rows_NK[:, 1].bool()
        return rows_NK[fitted_N, 2:], rows_NK[~fitted_N, 2:]

    def compute(self) -> dict[str, Tensor]:
        """Return the accuracy for each attribute, scalars in float64; NaN without clips."""
        parts = self._split()
        if not all(map(len, parts)):
            return {name: torch.tensor(math.nan, dtype=torch.float64) for name in VALUES}
        train_NK, test_NK = (part[:, len(VALUES) :].float() for part in parts)
        found = {}
        for column, name in enumerate(VALUES):
            train_labels, test_labels = (part[:, column].tolist() for part in parts)
            value = probe_accuracy(train_NK, train_labels, test_NK, test_labels)
            found[name] = torch.tensor(value, dtype=torch.float64)
        return found

    def counts(self) -> dict[str, int]:
        """Return the number of clips that the probe is tested on."""
        return dict.fromkeys(VALUES, len(self._split()[1]))

    def describe(self) -> dict[str, Any]:
        """Return the classifier."""
        return {"probe": "ridge on all tokens of a clip"}
