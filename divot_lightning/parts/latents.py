"""The base class of latents: the small form of a clip in which the video diffusion works.

Shape letters: B batch, F frames, H W pixels, f latent frames, c latent channels, h w latent grid.
"""

from abc import ABC, abstractmethod

from torch import Tensor, nn

from divot_lightning.parts.part import Part
from divot_lightning.parts.randomness import Randomness


class Latents(Part, nn.Module, ABC):
    """Turns clips into latents and back; nothing in it is trained.

    The statistics that bring latents to a standard deviation near 1 (a scale, or a mean and a standard deviation per
    channel) are applied inside. So is the rule of frames: causal video VAEs take 1 + n * frame_stride frames, and a
    clip of another length is filled up by `encode` and cut by `decode`.

    Attributes:
        channels: Latent channels c, set by `__init__`.
        block_size: Pixels per latent cell, in height and in width, set by `__init__`.
        frame_stride: Frames per latent frame; 1 where each frame has latents of its own.
        source: Local folder that the frozen weights come from; None without weights, or if they were not read.
    """

    channels: int
    block_size: int
    frame_stride: int = 1
    source: str | None = None

    def latent_frames(self, num_frames: int) -> int:
        """Return the number of latent frames f of a clip: one for its first frame, then one per `frame_stride`."""
        return 1 + -(-(num_frames - 1) // self.frame_stride)

    @abstractmethod
    def encode(self, video_BFCHW: Tensor, generator: Randomness = None) -> Tensor:
        """Turn pixels into latents.

        Args:
            video_BFCHW: RGB, float in [-1, 1]; H and W are multiples of `block_size`, F is at least 1.
            generator: Random generator on the video's device, or one per clip on the CPU, for latents that are samples.

        Returns:
            Latents (B, f, c, h, w), float, without gradient; at least float32 where they are samples.

        Raises:
            UserError: The pixels do not divide into blocks.
        """

    def posterior(self, video_BFCHW: Tensor) -> Tensor:
        """Return what `sample` needs to give the latents of clips, so that it can be cached; see `encode`.

        Where latents are samples, override this and `sample`, and let `encode` call one after the other: a cached clip
        then has new latents in each pass, as one that is encoded has.

        Returns:
            (B, ...), float32, without gradient. By default the latents themselves, which then must not be random.
        """
        return self.encode(video_BFCHW).float()

    def sample(self, posterior: Tensor, generator: Randomness = None) -> Tensor:
        """Return latents of clips, given what `posterior` returned; see `encode`."""
        return posterior

    @abstractmethod
    def decode(self, latents_BFchw: Tensor, num_frames: int) -> Tensor:
        """Turn latents back into pixels.

        Args:
            latents_BFchw: Latents (B, f, c, h, w), float.
            num_frames: Frames F of the clip that was encoded; f must be `latent_frames(num_frames)`.

        Returns:
            Pixels (B, F, 3, H, W), float, nominally in [-1, 1].
        """
