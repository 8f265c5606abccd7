"""LPIPS with the shape of AlexNet and random weights: torchvision, which has the trained ones, is no dependency."""

from contextlib import contextmanager
from unittest import mock

import torch
from torch import nn


def random_alexnet_features(net="alex", pretrained=True):
    """The convolutions of AlexNet (Krizhevsky 2014, one column), drawn with a fixed seed."""
    with torch.random.fork_rng():
        torch.manual_seed(5)
        return nn.Sequential(
            *(nn.Conv2d(3, 64, 11, stride=4, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2)),
            *(nn.Conv2d(64, 192, 5, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2)),
            *(nn.Conv2d(192, 384, 3, padding=1), nn.ReLU()),
            *(nn.Conv2d(384, 256, 3, padding=1), nn.ReLU()),
            *(nn.Conv2d(256, 256, 3, padding=1), nn.ReLU()),
        ).eval()


@contextmanager
def random_network():
    """Lets torchmetrics build its LPIPS on that network."""
    with (
        mock.patch("torchmetrics.image.lpip._TORCHVISION_AVAILABLE", True),
        mock.patch("torchmetrics.functional.image.lpips._get_tv_model_features", random_alexnet_features),
    ):
        yield
