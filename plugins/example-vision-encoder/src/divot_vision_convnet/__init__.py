"""A convolutional vision encoder for divot-lightning."""

from divot_vision_convnet.encoder import ConvNet

__all__ = ["ConvNet"]
