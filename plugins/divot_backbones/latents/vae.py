"""What image VAEs and video VAEs have in common: frozen weights, samples of the posterior, and statistics.

Shape letters: B batch, F frames, H W pixels, f latent frames, c latent channels, h w latent grid.
"""

from typing import Any, Self

import torch
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from torch import Tensor

from divot_backbones.pretrained import Origin, build_model, stored_config
from divot_lightning.errors import UserError, require_at_least
from divot_lightning.parts.latents import Latents
from divot_lightning.parts.randomness import Randomness


class FrozenVAE(Latents):
    """Latents of a frozen VAE of `diffusers`; `init_args` holds its whole config, so its folder is needed only once.

    Args:
        class_name: Class of the VAE.
        origin: Where it comes from.
        batch_size: Frames or clips that pass through the VAE at a time, at least 1; None where the device decides.
    """

    def __init__(self, class_name: str, origin: Origin, batch_size: int | None) -> None:
        super().__init__()
        if batch_size is not None:
            require_at_least(1, "latents.", batch_size=batch_size)
        vae, self.source = build_model(class_name, origin)
        self.vae = vae.requires_grad_(False).eval()
        without_origin = {"pretrained": None, "revision": None, "subfolder": None}
        self.init_args = {**self.init_args, **without_origin, "config": stored_config(vae)}

    def train(self, mode: bool = True) -> Self:
        """Stay in evaluation mode."""
        return super().train(False)

    def encode(self, video_BFCHW: Tensor, generator: Randomness = None) -> Tensor:
        """Turn pixels into latents (B, f, c, h, w), float32: a sample of the VAE's posterior, normalised."""
        return self.sample(self.posterior(video_BFCHW), generator)

    def check_pixels(self, video_BFCHW: Tensor) -> None:
        """Refuse frames that do not divide into latent cells.

        Raises:
            UserError: Height or width is no multiple of `block_size`.
        """
        height, width = video_BFCHW.shape[-2:]
        if height % self.block_size or width % self.block_size:
            raise UserError(
                f"frames of {height}x{width} pixels do not divide into latent cells of {self.block_size} pixels\n"
                f"allowed: multiples of {self.block_size}; change the data's size"
            )


def posterior_of(vae: Any, pixels: Tensor) -> Tensor:
    """Return the parameters of a VAE's posterior in float32; under autocast the network uses half precision."""
    parameters: Tensor = vae.encode(pixels).latent_dist.parameters
    return parameters.float()


def sample_posterior(parameters: Tensor, channels: int, generator: Randomness) -> Tensor:
    """Sample a posterior (B, 2c or c, ...): mean and logarithm of the variance, or the latents themselves."""
    if parameters.shape[1] == channels:
        return parameters
    return DiagonalGaussianDistribution(parameters).sample(generator)


def per_channel(values: Any, channels: int, like: Tensor) -> Tensor:
    """Return statistics as (c, 1, 1, 1) or, where a VAE has them per latent frame, (c, f, 1, 1).

    Args:
        values: One number per channel, or per channel and latent frame, channels first.
        channels: Latent channels c.
        like: Latents (B, c, f, h, w), for the number of frames, the device and the dtype.

    Raises:
        UserError: The numbers do not fit the latents.
    """
    tensor = torch.as_tensor(values).flatten().to(like)
    frames = like.shape[2]
    columns = len(tensor) // channels
    if len(tensor) % channels or 1 < columns < frames:
        raise UserError(
            f"latents: the VAE has {len(tensor)} numbers of statistics, which do not fit {channels} channels "
            f"of {frames} latent frames"
        )
    return tensor.view(channels, columns, 1, 1)[:, :frames]
