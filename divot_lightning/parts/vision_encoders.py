"""The base class of vision encoders: frames in, patch features out.

Letters: B clips, F frames, T steps in time, P patches per step, C channels, H W pixels.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor, nn

from divot_lightning.errors import UserError
from divot_lightning.parts.part import Part, PartSpec, spec_of
from divot_lightning.parts.registries.kinds import VISION_ENCODERS


class VisionEncoder(Part, nn.Module, ABC):
    """Encodes the frames of clips to patch features, the input of the tokenizer.

    All arguments of a subclass are its own settings, which a recipe supplies; they must be values that JSON can hold.
    A subclass calls `super().__init__(frozen)` first and `describe` last in its `__init__`, and implements `encode`.
    Resizing, normalisation and tokens that are no patches (class token, registers) are its own business.

    Attributes:
        frozen: Whether the weights are not trained; the encoder then stays in eval mode and computes no gradient.
        source: Folder or hub name that the weights came from, None for random ones. A subclass that loads weights sets
            it: checkpoints then do not store the weights of a frozen encoder again. It also changes `init_args` so
            that they build the same network without the source, because component folders hold the weights.
        patch_dim: C, set by `describe`.
        grid: Rows and columns of patches; P is their product. Set by `describe`.
        image_size: Height and width, in pixels, that frames are resized to. Set by `describe`.
        frame_stride: Frames that become one step in time, T = F / frame_stride; 1 for an image encoder. Set by
            `describe`.
    """

    patch_dim: int
    grid: tuple[int, int]
    image_size: int
    frame_stride: int

    def __init__(self, frozen: bool = True) -> None:
        """Store whether the weights are frozen.

        Args:
            frozen: Whether the weights are not trained.
        """
        super().__init__()
        self.frozen = frozen
        self.source: str | None = None

    def describe(self, *, patch_dim: int, grid: tuple[int, int], image_size: int, frame_stride: int = 1) -> None:
        """Set the attributes of these names, and freeze the weights that are there if `frozen` is set."""
        self.patch_dim, self.grid, self.image_size, self.frame_stride = patch_dim, grid, image_size, frame_stride
        if self.frozen:
            self.requires_grad_(False)
        self.train(True)

    @abstractmethod
    def encode(self, frames_BF3HW: Tensor) -> Tensor:
        """Compute patch features; `forward` calls it.

        Args:
            frames_BF3HW: Float in [-1, 1], of any height and width. F is a multiple of `frame_stride`.

        Returns:
            patches_BTPC, float, row by row. They depend on no frame of another clip.
        """

    def forward(self, frames_BF3HW: Tensor) -> Tensor:
        """Return the same as `encode`, without gradient if the encoder is frozen.

        Raises:
            UserError: The number of frames is no multiple of `frame_stride`.
        """
        require_whole_steps(frames_BF3HW.shape[1], self.frame_stride)
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            return self.encode(frames_BF3HW)

    def train(self, mode: bool = True) -> Self:
        """Set the training mode; a frozen encoder always stays in eval mode."""
        return super().train(mode and not self.frozen)

    def init_from_scratch(self) -> None:
        """Set initial weights for a training from scratch that lasts minutes; `position_init: sin_cos` calls it.

        It is called only if the encoder is trained. An encoder without such weights need not override it.
        """


@dataclass(frozen=True)
class VisionSpec(PartSpec):
    """Class and settings of a built vision encoder, with what others have to know before it is built again.

    Attributes:
        image_size: See `VisionEncoder`.
        frame_stride: See `VisionEncoder`.
    """

    image_size: int = 0
    frame_stride: int = 1

    @classmethod
    def of(cls, encoder: VisionEncoder) -> Self:
        """Describe an encoder that was built."""
        spec = spec_of(encoder)
        return cls(spec.class_path, spec.init_args, encoder.image_size, encoder.frame_stride)

    def __call__(self) -> VisionEncoder:
        """Build the encoder again, with random weights."""
        return self.build(VISION_ENCODERS, "the stored tokenizer")


def require_whole_steps(num_frames: int, frame_stride: int) -> None:
    """Refuse frames that do not fill whole steps in time.

    Raises:
        UserError: `num_frames` is no multiple of `frame_stride`.
    """
    if num_frames % frame_stride:
        raise UserError(
            f"the vision encoder turns every {frame_stride} frames into one step in time, but it gets {num_frames}\n"
            f"set num_frames of the tokenizer to a multiple of {frame_stride}"
        )
