"""Load feature networks for the Frechet video distance: a TorchScript file, or a torch module that can be imported.

Shape letters: B batch, F frames, H height, W width, K features.
"""

import importlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from divot_lightning.errors import UserError
from divot_lightning.io.files import file_sha256

I3D_OPTIONS: dict[str, Any] = {"rescale": True, "resize": True, "return_features": True}
"""Arguments of the widely used `i3d_torchscript.pt`, which resizes to 224x224 and scales to [-1, 1] by itself and
returns 400 features of Kinetics-400 I3D (Carreira & Zisserman 2017)."""


MAX_FEATURES = 8192
"""Most features of a network: the covariance of more would need as many clips, and gigabytes."""


@dataclass(frozen=True)
class VideoFeatures:
    """A feature network, with its description for protocols.

    Attributes:
        network: Takes float clips (B, 3, F, H, W) in [0, 255], returns features (B, K).
        options: Further arguments of each call.
        source: Name and content hash of the network, for the protocol of a score.
        device: Where it runs.
    """

    network: Callable[..., Tensor]
    options: dict[str, Any] = field(default_factory=dict)
    source: dict[str, Any] = field(default_factory=dict)
    device: str = "cpu"

    @torch.no_grad()
    def __call__(self, video_BFCHW: Tensor) -> Tensor:
        """Return features (B, K), float64 on the CPU, of clips, uint8 (B, F, 3, H, W)."""
        video_BCFHW = video_BFCHW.to(self.device).float().transpose(1, 2)
        try:
            features_BK = self.network(video_BCFHW, **self.options)
        except (RuntimeError, TypeError) as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[-1]
            raise UserError(
                f"the feature network {self.source.get('network')} fails on clips of shape {tuple(video_BCFHW.shape)}\n"
                f"with the options {self.options}: {reason[:300]}"
            ) from error
        if features_BK.ndim != 2 or len(features_BK) != len(video_BFCHW):
            raise UserError(
                f"the feature network {self.source.get('network')} gives {tuple(features_BK.shape)} for "
                f"{len(video_BFCHW)} clips; it must give (clips, features)"
            )
        if features_BK.shape[1] > MAX_FEATURES:
            raise UserError(
                f"the feature network {self.source.get('network')} gives {features_BK.shape[1]} features per clip; a "
                f"Frechet distance takes at most {MAX_FEATURES}"
            )
        return features_BK.double().cpu()


def load_video_features(network: str, *, options: dict[str, Any] | None = None, device: str = "cpu") -> VideoFeatures:
    """Load a feature network.

    Args:
        network: A TorchScript file, such as I3D's; or `package.module:name` of a module, or of a function without
            arguments that returns one.
        options: Arguments of each call; None takes `I3D_OPTIONS` for a file and none for a name.
        device: Where it runs.

    Raises:
        UserError: There is no such file or name, or it cannot be loaded.
    """
    path = Path(network)
    if path.is_file():
        try:
            loaded: Any = torch.jit.load(str(path), map_location=device).eval()
        except RuntimeError as error:
            raise UserError(f"{path} is no TorchScript file, which the feature network must be") from error
        chosen = dict(I3D_OPTIONS if options is None else options)
        source = {"network": path.name, "sha256": file_sha256(path), "options": chosen}
        return VideoFeatures(loaded, chosen, source, device)
    module, _, name = network.partition(":")
    if not name:
        raise UserError(
            f"the feature network {network!r} is neither a file nor package.module:name\n"
            "Give a TorchScript file, such as i3d_torchscript.pt, or the name of a torch module."
        )
    chosen = dict(options or {})
    source = {"network": network, "options": chosen}
    return VideoFeatures(_imported(module, name, network, device), chosen, source, device)


def _imported(module: str, name: str, network: str, device: str) -> Callable[..., Tensor]:
    try:
        found = getattr(importlib.import_module(module), name)
        built = found if isinstance(found, nn.Module) else found()
    except (ImportError, AttributeError, TypeError) as error:
        raise UserError(f"the feature network {network!r} cannot be loaded: {error}") from error
    if not isinstance(built, nn.Module):
        raise UserError(f"the feature network {network!r} is a {type(built).__name__}; it must be a torch module")
    return built.to(device).eval()
