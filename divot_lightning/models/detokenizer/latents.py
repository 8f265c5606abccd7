"""The latents that the video diffusion works on: each frame by itself.

The paper uses Stable Diffusion's frozen VAE (`VAELatents`). The toy scale uses `BlockDCTLatents`, which needs no
weights: the orthonormal discrete cosine transform of JPEG, of which the lowest frequencies of every block are kept.

Shape letters: B batch, F frames, H height, W width, h latent height, w latent width, c latent channels.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from diffusers import AutoencoderKL
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from torch import Tensor, nn

from divot_lightning.errors import UserError
from divot_lightning.models.randomness import Randomness

# Rows: luma, red-blue and green-magenta axes of RGB; they are normalised later, so that errors keep their size.
_OPPONENT_COLOURS = torch.tensor([[1.0, 1.0, 1.0], [1.0, 0.0, -1.0], [1.0, -2.0, 1.0]])


def dct_matrix(size: int) -> Tensor:
    """Return the orthonormal DCT-II matrix, (size, size), frequencies by positions.

    >>> bool(torch.allclose(dct_matrix(8) @ dct_matrix(8).T, torch.eye(8), atol=1e-6))
    True
    """
    frequency, position = torch.arange(size)[:, None], torch.arange(size)[None]
    matrix = torch.cos(math.pi * (position + 0.5) * frequency / size) * math.sqrt(2 / size)
    matrix[0] /= math.sqrt(2)
    return matrix


def lowest_frequencies(size: int, count: int) -> list[tuple[int, int]]:
    """Return the `count` lowest (row, column) frequencies of a block, by diagonals as JPEG orders them.

    >>> lowest_frequencies(8, 3)
    [(0, 0), (0, 1), (1, 0)]
    """
    every = [(row, column) for row in range(size) for column in range(size)]
    return sorted(every, key=lambda frequency: (sum(frequency), frequency[0]))[:count]


@dataclass(frozen=True)
class LatentsConfig:
    """Config of the latents.

    Attributes:
        kind: `vae` as in the paper, or `block_dct`, which needs no weights (toy).
        pretrained: Folder of a `diffusers` AutoencoderKL; `vae` only.
        block_size: Side of a block in pixels; `block_dct` only.
        luma_frequencies: Kept frequencies of the luma; `block_dct` only.
        chroma_frequencies: Kept frequencies of each of the two chroma axes; `block_dct` only.
        scale: Latents are multiplied by it, so that their standard deviation is near 1; 0.18215 for Stable Diffusion's
            VAE; for the default block transform 1.5 on the toy world and 0.62 on natural videos (their standard
            deviations are 0.67 and 1.61).
    """

    kind: Literal["vae", "block_dct"] = "vae"
    pretrained: str | None = None
    block_size: int = 8
    luma_frequencies: int = 15
    chroma_frequencies: int = 6
    scale: float = 0.18215


class BlockDCTLatents(nn.Module):
    """Latents without weights: low frequencies of blocks in opponent colours.

    The transform is orthonormal, so an error in latents is the same error in pixels. The dropped frequencies are a
    fixed loss: the PSNR is 29.5 dB on the toy world at 32 x 32 with the default 27 channels, and the toy world's oracle
    still recognises every clip.
    """

    basis: Tensor

    def __init__(self, config: LatentsConfig) -> None:
        super().__init__()
        self.block_size = config.block_size
        colours = _OPPONENT_COLOURS / _OPPONENT_COLOURS.norm(dim=1, keepdim=True)
        dct = dct_matrix(config.block_size)
        counts = (config.luma_frequencies, config.chroma_frequencies, config.chroma_frequencies)
        basis = [
            torch.einsum("r,y,x->ryx", colours[axis], dct[row], dct[column])
            for axis, count in enumerate(counts)
            for row, column in lowest_frequencies(config.block_size, count)
        ]
        self.channels = len(basis)
        self.scale = config.scale
        self.register_buffer("basis", torch.stack(basis), persistent=False)

    def encode(self, video_BFCHW: Tensor, generator: Randomness = None) -> Tensor:
        """Turn pixels in [-1, 1] into latents (B, F, c, h, w). `generator` has no effect.

        H and W must be multiples of the block size. Latents have the pixels' dtype, also under autocast.
        """
        batch, frames, _, height, width = video_BFCHW.shape
        if height % self.block_size or width % self.block_size:
            raise UserError(
                f"frames of {height}x{width} pixels do not divide into blocks of {self.block_size}\n"
                f"allowed: multiples of {self.block_size}; change the data's size or latents.block_size"
            )
        folded = video_BFCHW.flatten(0, 1)
        with torch.autocast(folded.device.type, enabled=False):
            latents = nn.functional.conv2d(folded, self.basis.to(folded), stride=self.block_size)
        return latents.unflatten(0, (batch, frames)) * self.scale

    def decode(self, latents_BFchw: Tensor) -> Tensor:
        """Turn latents back into pixels (B, F, 3, H, W), nominally in [-1, 1]."""
        folded = latents_BFchw.flatten(0, 1) / self.scale
        video = nn.functional.conv_transpose2d(folded, self.basis.to(folded), stride=self.block_size)
        return video.unflatten(0, latents_BFchw.shape[:2])


class VAELatents(nn.Module):
    """Latents of a frozen `diffusers` image VAE, frame by frame.

    Frames pass through the VAE one at a time, so 16 frames need no more memory than one. The released code decodes all
    frames at once; the result is the same.
    """

    def __init__(self, vae: AutoencoderKL, scale: float) -> None:
        super().__init__()
        self.vae = vae.requires_grad_(False).eval()
        self.scale = scale
        self.channels = int(vae.config.latent_channels)
        self.block_size = 2 ** (len(vae.config.block_out_channels) - 1)

    def train(self, mode: bool = True) -> "VAELatents":
        """Stay in evaluation mode."""
        return super().train(False)

    @torch.no_grad()
    def encode(self, video_BFCHW: Tensor, generator: Randomness = None) -> Tensor:
        """Turn pixels in [-1, 1] into latents (B, F, c, h, w), float32: a sample of the VAE's posterior, scaled."""
        # Under autocast the network computes in half precision; the sample is drawn in float32.
        posteriors = (self.vae.encode(frame).latent_dist.parameters.float() for frame in video_BFCHW.unbind(1))
        frames = [DiagonalGaussianDistribution(posterior).sample(generator) for posterior in posteriors]
        return torch.stack(frames, dim=1) * self.scale

    @torch.no_grad()
    def decode(self, latents_BFchw: Tensor) -> Tensor:
        """Turn latents back into pixels (B, F, 3, H, W), nominally in [-1, 1]."""
        frames = [self.vae.decode(frame / self.scale).sample for frame in latents_BFchw.unbind(1)]
        return torch.stack(frames, dim=1)


def build_latents(config: LatentsConfig) -> BlockDCTLatents | VAELatents:
    """Build the latents of the config; `vae` reads the VAE's folder."""
    if config.kind == "block_dct":
        return BlockDCTLatents(config)
    if config.pretrained is None:
        raise UserError(
            "latents.kind is 'vae', so latents.pretrained must name the folder of a diffusers AutoencoderKL"
        )
    try:
        vae = AutoencoderKL.from_pretrained(config.pretrained, local_files_only=True)
    except (OSError, ValueError) as error:
        raise UserError(f"latents.pretrained {config.pretrained!r} is no AutoencoderKL folder: {error}") from error
    return VAELatents(vae, config.scale)
