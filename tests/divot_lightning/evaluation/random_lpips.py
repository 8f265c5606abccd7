"""LPIPS with the shape of AlexNet and random weights: torchvision, which has the trained ones, is no dependency."""

from contextlib import contextmanager
from functools import partial
from unittest import mock

import torch
from torch import nn


def random_alexnet_features(net="alex", pretrained=False, seed=5):
    """The convolutions of AlexNet (Krizhevsky 2014, one column), drawn with a fixed seed."""
    assert not pretrained, "weights must come from a file, never from a download"
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(
            *(nn.Conv2d(3, 64, 11, stride=4, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2)),
            *(nn.Conv2d(64, 192, 5, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2)),
            *(nn.Conv2d(192, 384, 3, padding=1), nn.ReLU()),
            *(nn.Conv2d(384, 256, 3, padding=1), nn.ReLU()),
            *(nn.Conv2d(256, 256, 3, padding=1), nn.ReLU()),
        ).eval()


def alexnet_weights():
    """The content of a file as torchvision publishes it."""
    weights = {f"features.{name}": value for name, value in random_alexnet_features().state_dict().items()}
    return {**weights, "classifier.1.weight": torch.zeros(2, 2)}


@contextmanager
def random_network(seed=5):
    """Let torchmetrics build its LPIPS on that network."""
    build = partial(random_alexnet_features, seed=seed)
    with mock.patch("torchmetrics.functional.image.lpips._get_tv_model_features", build):
        yield
