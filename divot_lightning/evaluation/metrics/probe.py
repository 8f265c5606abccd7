"""A linear probe: how well a linear classifier reads labels from tokens.

Shape letters: N samples, K features, V classes.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

PENALTIES = (1e-3, 1e-2, 1e-1, 1.0, 10.0)


def _fit(features_NK: Tensor, targets_NV: Tensor, penalty: float) -> Tensor:
    gram_KK = features_NK.T @ features_NK / len(features_NK)
    eye_KK = torch.eye(len(gram_KK), dtype=gram_KK.dtype)
    return torch.linalg.solve(gram_KK + penalty * eye_KK, features_NK.T @ targets_NV / len(features_NK))


def probe_accuracy(train_NK: Tensor, train_labels: Sequence[str], test_NK: Tensor, test_labels: Sequence[str]) -> float:
    """Fit a ridge classifier and return its accuracy on the test set.

    One-hot regression on standardised features with a constant; the penalty is the best of `PENALTIES` on the last
    fifth of the training set, then everything is fitted again with it. Deterministic.

    Args:
        train_NK: Features to fit on, float.
        train_labels: Their labels.
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
