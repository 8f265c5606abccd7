"""A small video diffusion transformer, which replaces the DynamiCrafter U-Net at the toy scale.

Shape letters: B batch, F frames, c latent channels, h w latent grid, L patches, D width, K condition tokens,
E condition width.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from divot_lightning.errors import UserError, require_at_least
from divot_lightning.models.positions import sin_cos_positions, sinusoidal_embedding
from divot_lightning.models.transformer_block import check_heads
from divot_lightning.parts.denoisers import Denoiser


class VideoDiT(Denoiser):
    """A denoiser of video latents with attention over space-time patches and to the condition tokens."""

    outer_layers = ("embed", "shift_scale", "head")

    def __init__(
        self,
        channels: int,
        frames: int,
        grid: tuple[int, int],
        condition_tokens: int,
        condition_dim: int,
        patch_frames: int = 2,
        patch_size: int = 1,
        width: int = 128,
        layers: int = 4,
        heads: int = 4,
        condition_in_modulation: bool = False,
        gradient_checkpointing: bool = False,
    ) -> None:
        """Build the transformer.

        Args:
            channels: Latent channels c.
            frames: Latent frames F.
            grid: Latent rows h and columns w.
            condition_tokens: Condition tokens K.
            condition_dim: Condition width E.
            patch_frames: Frames per patch.
            patch_size: Latent rows and columns per patch.
            width: Width D of the transformer.
            layers: Number of blocks.
            heads: Attention heads; they divide the width.
            condition_in_modulation: Besides cross-attention, add a projection of all concatenated condition tokens to
                the time embedding that modulates every block. The paper conditions by cross-attention only (`false`).
                The toy recipes set it; its own effect there has not been measured.
            gradient_checkpointing: Keep only the inputs of each block and recompute the rest in the backward pass: less
                memory, about a third more time, the same loss and gradients.

        Raises:
            UserError: The latents do not divide into patches, or the width into heads.
        """
        super().__init__(channels, frames, grid, condition_tokens, condition_dim)
        require_at_least(1, "denoiser: ", patch_frames=patch_frames, patch_size=patch_size, layers=layers)
        if frames % patch_frames or grid[0] % patch_size or grid[1] % patch_size:
            raise UserError(
                f"{frames} frames of {grid[0]}x{grid[1]} latents do not divide into patches of "
                f"{patch_frames} frames of {patch_size}x{patch_size}"
            )
        check_heads("denoiser", width, heads)
        self.gradient_checkpointing = gradient_checkpointing
        self.patch = (patch_frames, patch_size, patch_size)
        patch_dim = channels * patch_frames * patch_size**2
        counts = (frames // self.patch[0], grid[0] // self.patch[1], grid[1] // self.patch[2])
        self.token_grid = counts
        self.embed = nn.Linear(patch_dim, width)
        self.register_parameter("position_LD", nn.Parameter(sin_cos_positions(counts, width)))
        self.time = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        self.condition = nn.Linear(condition_dim, width)
        self.modulation = nn.Linear(condition_tokens * condition_dim, width) if condition_in_modulation else None
        self.blocks = nn.ModuleList(_Block(width, heads) for _ in range(layers))
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.shift_scale = nn.Linear(width, 2 * width)
        self.head = nn.Linear(width, patch_dim)
        for layer in (self.shift_scale, self.head):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, latents_BFchw: Tensor, time_B: Tensor, condition_BKE: Tensor) -> Tensor:
        """Return the prediction, of the latents' shape; see `Denoiser.forward`."""
        state_BLD = self.embed(_to_patches(latents_BFchw, self.patch)) + self.position_LD
        embedding = sinusoidal_embedding(time_B, state_BLD.shape[-1], endpoint=True).to(state_BLD)
        modulation_BD = self.time(embedding)
        if self.modulation is not None:
            modulation_BD = modulation_BD + self.modulation(condition_BKE.flatten(1))
        modulation_BD = nn.functional.silu(modulation_BD)
        condition_BKD = self.condition(condition_BKE)
        checkpointed = self.gradient_checkpointing and torch.is_grad_enabled()
        for block in self.blocks:
            run: Callable[..., Tensor] = partial(checkpoint, block, use_reentrant=False) if checkpointed else block
            state_BLD = run(state_BLD, modulation_BD, condition_BKD)
        shift, scale = self.shift_scale(modulation_BD)[:, None].chunk(2, dim=-1)
        patches = self.head(self.norm(state_BLD) * (1 + scale) + shift)
        return _from_patches(patches, self.patch, latents_BFchw.shape)


class _Block(nn.Module):
    """Self-attention, cross-attention to the condition and an MLP, each modulated by time."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norms = nn.ModuleList(nn.LayerNorm(width, elementwise_affine=False) for _ in range(3))
        self.modulation = nn.Linear(width, 7 * width)
        self.self_qkv = nn.Linear(width, 3 * width)
        self.self_out = nn.Linear(width, width)
        self.cross_q = nn.Linear(width, width)
        self.cross_kv = nn.Linear(width, 2 * width)
        self.cross_out = nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU("tanh"), nn.Linear(4 * width, width))
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)
        # With equal random weights of queries and keys, a patch attends to similar patches from the first step.
        query_weight = self.self_qkv.weight.data[:width]
        self.self_qkv.weight.data[width : 2 * width] = query_weight

    def forward(self, state_BLD: Tensor, modulation_BD: Tensor, condition_BKD: Tensor) -> Tensor:
        shift1, scale1, gate1, scale2, shift3, scale3, gate3 = self.modulation(modulation_BD)[:, None].chunk(7, dim=-1)
        normed = self.norms[0](state_BLD) * (1 + scale1) + shift1
        query, key, value = self.self_qkv(normed).chunk(3, dim=-1)
        state_BLD = state_BLD + (1 + gate1) * self.self_out(self._attend(query, key, value))
        query = self.cross_q(self.norms[1](state_BLD) * (1 + scale2))
        key, value = self.cross_kv(condition_BKD).chunk(2, dim=-1)
        state_BLD = state_BLD + self.cross_out(self._attend(query, key, value))
        return state_BLD + (1 + gate3) * self.mlp(self.norms[2](state_BLD) * (1 + scale3) + shift3)

    def _attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        split = [part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in (query, key, value)]
        return nn.functional.scaled_dot_product_attention(*split).transpose(1, 2).flatten(2)


def _to_patches(latents_BFchw: Tensor, patch: tuple[int, int, int]) -> Tensor:
    """Cut latents into patches of (frames, rows, columns): (B, L, frames * c * rows * columns)."""
    batch, frames, channels, height, width = latents_BFchw.shape
    f, p, q = patch
    split = latents_BFchw.reshape(batch, frames // f, f, channels, height // p, p, width // q, q)
    return split.permute(0, 1, 4, 6, 2, 3, 5, 7).flatten(4).flatten(1, 3)


def _from_patches(patches_BLP: Tensor, patch: tuple[int, int, int], shape: torch.Size) -> Tensor:
    """Put patches together to latents of a shape; the inverse of `_to_patches`."""
    batch, frames, channels, height, width = shape
    f, p, q = patch
    split = patches_BLP.reshape(batch, frames // f, height // p, width // q, f, channels, p, q)
    return split.permute(0, 1, 4, 5, 2, 6, 3, 7).reshape(shape)
