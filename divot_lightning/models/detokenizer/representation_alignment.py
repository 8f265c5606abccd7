"""REPA: hidden states of the denoiser are aligned with the patches of a frozen vision encoder (arXiv:2410.06940).

Letters: B clips, F frames, T H W steps in time, rows and columns of the hidden states, D their channels, E channels of
the encoder's patches, N L the two axes before the channels of a sequence of hidden states.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional

from divot_lightning.errors import UserError
from divot_lightning.parts.denoisers import Denoiser
from divot_lightning.parts.vision_encoders import VisionEncoder


@dataclass(kw_only=True)
class RepresentationAlignmentConfig:
    """Config of REPA; the defaults are those of arXiv:2410.06940, which aligns the eighth of 28 blocks.

    Attributes:
        vision: The frozen encoder of the clean frames, such as DINOv2.
        block: Name of the denoiser's submodule whose output is aligned, such as `blocks.1`. It returns (B, L, D), or
            (B * T, L, D) for a block that sees single frames, or maps (B * T, D, H, W).
        width: Channels D of this output.
        weight: Weight of the alignment beside the denoising loss.
        projector_width: Hidden channels of the MLP between D and the encoder's channels.
    """

    vision: Callable[[], VisionEncoder]
    block: str
    width: int
    weight: float = 0.5
    projector_width: int = 2048


class RepresentationAlignment(nn.Module):
    """The frozen encoder and the projector; both serve training alone and are not exported.

    Args:
        config: The config.
        denoiser: The denoiser that is aligned; it is not stored.

    Raises:
        UserError: The encoder is not frozen, or the denoiser has no such block.
    """

    def __init__(self, config: RepresentationAlignmentConfig, denoiser: Denoiser) -> None:
        super().__init__()
        self.config, self.token_grid = config, denoiser.token_grid
        blocks = [name for name, _ in denoiser.named_modules() if name]
        if config.block not in blocks:
            raise UserError(
                f"repa.block {config.block!r} is no submodule of {type(denoiser).__name__}\n"
                f"choose a block among its submodules: {', '.join(blocks)[:200]} ..."
            )
        self.vision = config.vision()
        if not self.vision.frozen:
            raise UserError("repa.vision is trained; set its frozen to true, or it would learn to be easy to predict")
        hidden = config.projector_width
        self.projector = nn.Sequential(
            nn.Linear(config.width, hidden),
            nn.SiLU(),
            nn.Linear(hidden, hidden),
            nn.SiLU(),
            nn.Linear(hidden, self.vision.patch_dim),
        )

    def forward(self, hidden: Tensor, video_BF3HW: Tensor) -> Tensor:
        """Return the alignment loss, scalar float32 in [-1, 1]; -1 is perfect.

        Args:
            hidden: Output of the block for the noisy clips.
            video_BF3HW: The clean clips, float in [-1, 1].

        Raises:
            UserError: The output of the block has another width or layout.
        """
        hidden_BTHWD = hidden_as_grid(hidden, len(video_BF3HW), self.token_grid)
        if hidden_BTHWD.shape[-1] != self.config.width:
            raise UserError(
                f"repa.width is {self.config.width}, but {self.config.block} returns {hidden_BTHWD.shape[-1]} channels"
            )
        patches_BTPE = self.vision(_whole_steps(video_BF3HW, self.vision.frame_stride)).float()
        times, rows, columns = hidden_BTHWD.shape[1:4]
        target_BTHWE = resize_patches(patches_BTPE, self.vision.grid, (times, rows, columns))
        return negative_cosine(self.projector(hidden_BTHWD), target_BTHWE)


def negative_cosine(predicted: Tensor, target: Tensor) -> Tensor:
    """Return minus the cosine similarity over the last axis, averaged over all others (arXiv:2410.06940).

    >>> import torch
    >>> negative_cosine(torch.tensor([[1.0, 0.0], [0.0, 2.0]]), torch.tensor([[3.0, 0.0], [1.0, 0.0]]))
    tensor(-0.5000)
    """
    return -functional.cosine_similarity(predicted.float(), target.float(), dim=-1).mean()


def resize_patches(patches_BTPE: Tensor, grid: tuple[int, int], size: tuple[int, int, int]) -> Tensor:
    """Average the encoder's patches to the grid of the hidden states, or repeat them where it is finer.

    Args:
        patches_BTPE: Patches, row by row.
        grid: Rows and columns of P.
        size: Steps in time, rows and columns of the result.

    Returns:
        (B, T, H, W, E).
    """
    maps_BETHW = patches_BTPE.unflatten(2, grid).movedim(-1, 1)
    return functional.adaptive_avg_pool3d(maps_BETHW, size).movedim(1, -1)


def hidden_as_grid(hidden: Tensor, batch: int, token_grid: tuple[int, int, int] | None) -> Tensor:
    """Arrange the output of a block by time, row and column.

    Args:
        hidden: Sequences (B, L, D) or (B * T, L, D), ordered by time, row and column; or maps (B * T, D, H, W).
        batch: Clips B.
        token_grid: T, H, W of the denoiser's sequences; None for a denoiser of maps.

    Returns:
        (B, T, H, W, D).

    Raises:
        UserError: The output has no such layout.
    """
    if hidden.ndim == 4 and len(hidden) % batch == 0:
        return hidden.unflatten(0, (batch, -1)).movedim(2, -1)
    if hidden.ndim == 3 and token_grid is not None:
        steps, rows, columns = token_grid
        if tuple(hidden.shape[:2]) in ((batch, steps * rows * columns), (batch * steps, rows * columns)):
            return hidden.reshape(batch, *token_grid, -1)
    raise UserError(
        f"repa.block returns {tuple(hidden.shape)} for {batch} clips, and the denoiser's grid is {token_grid}\n"
        "choose a block that returns one vector for each step in time, row and column"
    )


@contextmanager
def captured_output(module: nn.Module) -> Iterator[list[Tensor]]:
    """Collect what a module returns within the block; of a tuple the first entry."""
    outputs: list[Tensor] = []

    def collect(_module: nn.Module, _inputs: object, output: Tensor | tuple[Tensor, ...]) -> None:
        outputs.append(output[0] if isinstance(output, tuple) else output)

    handle = module.register_forward_hook(collect)
    try:
        yield outputs
    finally:
        handle.remove()


def _whole_steps(video_BF3HW: Tensor, frame_stride: int) -> Tensor:
    """Return the frames that fill whole steps of the encoder."""
    return video_BF3HW[:, : video_BF3HW.shape[1] // frame_stride * frame_stride]
