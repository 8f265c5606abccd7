"""Coupling layers: invertible maps with a cheap determinant (Real NVP, arXiv:1605.08803, section 3).

Shape letters: X any dimensions, C feature width, W context width.
"""

import torch
from torch import Tensor, nn

from divot_heads.denoiser import zero_init

LARGEST_LOG_SCALE = 3.0
"""A layer scales a channel by a factor between e^-3 and e^3, so that no step of training makes it explode."""


class AffineCoupling(nn.Module):
    """z = (x_kept, (x_changed - shift) e^(-scale)), where shift and scale are a network of x_kept and the context."""

    def __init__(self, kept: slice, changed: slice, feature_dim: int, context_dim: int) -> None:
        """Build the network, which is zero at first: a new layer is the identity.

        Args:
            kept: Channels that stay as they are; may be empty.
            changed: All other channels.
            feature_dim: C.
            context_dim: W; also the width of the network.
        """
        super().__init__()
        self.kept, self.changed = kept, changed
        num_kept, num_changed = (len(range(feature_dim)[part]) for part in (kept, changed))
        assert num_kept + num_changed == feature_dim
        last = zero_init(nn.Linear(context_dim, 2 * num_changed))
        self.net = nn.Sequential(
            nn.Linear(num_kept + context_dim, context_dim),
            nn.SiLU(),
            nn.Linear(context_dim, context_dim),
            nn.SiLU(),
            last,
        )

    def forward(self, states_XC: Tensor, context_XW: Tensor, inverse: bool = False) -> tuple[Tensor, Tensor]:
        """Return the transformed states_XC and the log of the determinant of this map, (X)."""
        inputs = torch.cat([states_XC[..., self.kept], context_XW], dim=-1)
        shift, raw = self.net(inputs).chunk(2, dim=-1)
        scale = LARGEST_LOG_SCALE * torch.tanh(raw / LARGEST_LOG_SCALE)
        moved_XC = states_XC.clone()
        changed = states_XC[..., self.changed]
        moved_XC[..., self.changed] = changed * scale.exp() + shift if inverse else (changed - shift) * (-scale).exp()
        return moved_XC, scale.sum(dim=-1) * (1 if inverse else -1)


class CouplingFlow(nn.Module):
    """One affine layer of all channels, then couplings that keep and change each channel in turn.

    The channels are split in halves, then in even and odd ones, so that each channel meets all others.
    """

    def __init__(self, feature_dim: int, context_dim: int, num_couplings: int) -> None:
        """Build the layers.

        Args:
            feature_dim: C, at least 2.
            context_dim: W.
            num_couplings: Layers after the affine one.
        """
        super().__init__()
        halves = slice(0, feature_dim // 2), slice(feature_dim // 2, feature_dim)
        even, odd = slice(0, feature_dim, 2), slice(1, feature_dim, 2)
        in_turn = [halves, halves[::-1], (even, odd), (odd, even)]
        splits = [(slice(0, 0), slice(0, feature_dim)), *(in_turn[i % 4] for i in range(num_couplings))]
        self.layers = nn.ModuleList(AffineCoupling(kept, changed, feature_dim, context_dim) for kept, changed in splits)

    def forward(self, states_XC: Tensor, context_XW: Tensor, inverse: bool = False) -> tuple[Tensor, Tensor]:
        """Turn features into noise, or back if `inverse`.

        Returns:
            The transformed states_XC and the log of the determinant of this map, (X).
        """
        log_det_X = torch.zeros_like(states_XC[..., 0])
        for layer in reversed(self.layers) if inverse else self.layers:
            states_XC, part_X = layer(states_XC, context_XW, inverse=inverse)
            log_det_X = log_det_X + part_X
        return states_XC, log_det_X
