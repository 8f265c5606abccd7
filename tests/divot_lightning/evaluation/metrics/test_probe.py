"""The ridge probe reads what is linear in tokens, and chance otherwise."""

import torch

from divot_lightning.evaluation.metrics.probe import probe_accuracy


def test_linear_classes_are_read():
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 4, (400,), generator=generator)
    features = torch.nn.functional.one_hot(labels, 4).float() @ torch.randn(4, 32, generator=generator)
    features = features + 0.3 * torch.randn(400, 32, generator=generator)
    names = [f"class {int(label)}" for label in labels]
    assert probe_accuracy(features[:300], names[:300], features[300:], names[300:]) > 0.97


def test_features_without_the_label_give_chance():
    features = torch.randn(600, 16, generator=torch.Generator().manual_seed(1))
    names = [str(at % 4) for at in range(600)]
    assert probe_accuracy(features[:400], names[:400], features[400:], names[400:]) < 0.4


def test_unseen_labels_are_wrong():
    features = torch.eye(4).repeat(5, 1)
    names = ["a", "b", "c", "d"] * 5
    assert probe_accuracy(features, names, features[:4], ["a", "b", "c", "new"]) == 0.75
