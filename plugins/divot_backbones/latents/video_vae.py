"""Latents of a video VAE of `diffusers`, which compresses time as well.

Shape letters: B batch, F frames, H W pixels, f latent frames, c latent channels, h w latent grid.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from divot_backbones.latents.vae import FrozenVAE, per_channel, posterior_of, sample_posterior
from divot_backbones.pretrained import Origin
from divot_lightning.errors import require_one_of
from divot_lightning.parts.randomness import Randomness


class _VideoVAE(NamedTuple):
    """What differs between the video VAEs; each function reads the VAE's config.

    Attributes:
        channels: Name of the setting with the number of latent channels.
        block_size: Pixels per latent cell.
        frame_stride: Frames per latent frame, after the first frame.
    """

    channels: str
    block_size: Callable[[Any], int]
    frame_stride: Callable[[Any], int]


def _levels(config: Any) -> int:
    """Return the pixels per cell of a VAE that halves the picture between its levels."""
    return int(2 ** (len(config.block_out_channels) - 1))


VIDEO_VAES = {
    "AutoencoderKLCogVideoX": _VideoVAE("latent_channels", _levels, lambda c: int(c.temporal_compression_ratio)),
    "AutoencoderKLCosmos": _VideoVAE(
        "latent_channels", lambda c: int(c.spatial_compression_ratio), lambda c: int(c.temporal_compression_ratio)
    ),
    "AutoencoderKLHunyuanVideo": _VideoVAE(
        "latent_channels", lambda c: int(c.spatial_compression_ratio), lambda c: int(c.temporal_compression_ratio)
    ),
    "AutoencoderKLLTXVideo": _VideoVAE(
        "latent_channels",
        lambda c: int(c.patch_size * 2 ** sum(c.spatio_temporal_scaling)),
        lambda c: int(c.patch_size_t * 2 ** sum(c.spatio_temporal_scaling)),
    ),
    "AutoencoderKLMochi": _VideoVAE(
        "latent_channels", lambda c: math.prod(c.spatial_expansions), lambda c: math.prod(c.temporal_expansions)
    ),
    "AutoencoderKLWan": _VideoVAE(
        "z_dim",
        lambda c: int((c.patch_size or 1) * 2 ** len(c.temperal_downsample)),
        lambda c: int(2 ** sum(c.temperal_downsample)),
    ),
}
"""The video VAEs that are supported, by class name. All take 1 + n * frame_stride frames: the first frame has a latent
frame of its own. Their statistics need no column: a mean and a standard deviation where a VAE has them, times a scaling
factor where it has one."""


class VideoVAELatents(FrozenVAE):
    """Latents of a frozen video VAE of `diffusers`: one latent frame for the first frame, then one per `frame_stride`.

    These VAEs take 1 + n * `frame_stride` frames. A clip of another length is filled up by repeating its first frame in
    front, which the VAE encodes alone, and `decode` drops these frames again: the paper's 16 frames become 17, and 5
    latent frames with a stride of 4.
    """

    def __init__(
        self,
        vae: str,
        pretrained: str | None = None,
        revision: str | None = None,
        subfolder: str | None = None,
        config: dict[str, Any] | None = None,
        batch_size: int = 1,
    ) -> None:
        """Build the VAE.

        Args:
            vae: Class of the VAE in `diffusers`, one of `VIDEO_VAES`, such as `AutoencoderKLWan`.
            pretrained: Folder of such a VAE, or id of a hub repository.
            revision: Commit of the hub repository; needed with an id.
            subfolder: Folder inside, such as `vae`.
            config: Arguments of the class, for a VAE whose weights are loaded later; instead of `pretrained`.
            batch_size: Clips that pass through the VAE at a time.

        Raises:
            UserError: The class is not supported, or its folder or config does not fit.
        """
        require_one_of(VIDEO_VAES, "latents.", vae=vae)
        super().__init__(vae, Origin("latents", pretrained, revision, subfolder, config), batch_size)
        self.batch_size = batch_size
        row, settings = VIDEO_VAES[vae], self.vae.config
        self.channels = int(settings[row.channels])
        self.block_size, self.frame_stride = row.block_size(settings), row.frame_stride(settings)

    def _added_frames(self, num_frames: int) -> int:
        return (1 - num_frames) % self.frame_stride

    @torch.no_grad()
    def posterior(self, video_BFCHW: Tensor) -> Tensor:
        """Return mean and logarithm of the variance of each latent, (B, 2c, f, h, w), float32; see `Latents`."""
        self.check_pixels(video_BFCHW)
        added = video_BFCHW[:, :1].expand(-1, self._added_frames(video_BFCHW.shape[1]), -1, -1, -1)
        video_BCFHW = torch.cat([added, video_BFCHW], dim=1).transpose(1, 2)
        return torch.cat([posterior_of(self.vae, clips) for clips in video_BCFHW.split(self.batch_size)])

    def sample(self, posterior: Tensor, generator: Randomness = None) -> Tensor:
        """Sample the posterior, and normalise it; see `Latents.sample`."""
        latents_Bcfhw = sample_posterior(posterior, self.channels, generator)
        mean, std = _statistics(self.vae, self.channels, latents_Bcfhw)
        return ((latents_Bcfhw - mean) / std).transpose(1, 2)

    @torch.no_grad()
    def decode(self, latents_BFchw: Tensor, num_frames: int) -> Tensor:
        """Turn latents back into pixels (B, F, 3, H, W), nominally in [-1, 1]; see `Latents.decode`."""
        normal_Bcfhw = latents_BFchw.transpose(1, 2)
        mean, std = _statistics(self.vae, self.channels, normal_Bcfhw)
        latents_Bcfhw = normal_Bcfhw * std + mean
        chunks = [self._decode(clips) for clips in latents_Bcfhw.split(self.batch_size)]
        return torch.cat(chunks).transpose(1, 2)[:, self._added_frames(num_frames) :]

    def _decode(self, latents_Bcfhw: Tensor) -> Tensor:
        if not self.vae.config.get("timestep_conditioning", False):
            return self.vae.decode(latents_Bcfhw).sample
        # A decoder of LTX that also removes a little noise: time 0 means that there is none.
        return self.vae.decode(latents_Bcfhw, latents_Bcfhw.new_zeros(len(latents_Bcfhw))).sample


def _statistics(vae: Any, channels: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation of the VAE's own latents, to be broadcast over latents (B, c, f, h, w)."""
    buffers = dict(vae.named_buffers())

    def find(name: str, default: float) -> Any:
        # LTX has them as buffers, among its weights; the others in their config.
        found = buffers.get(name, vae.config.get(name))
        return [default] * channels if found is None else found

    scale = vae.config.get("scaling_factor") or 1.0
    mean = per_channel(find("latents_mean", 0.0), channels, like)
    return mean, per_channel(find("latents_std", 1.0), channels, like) / scale
