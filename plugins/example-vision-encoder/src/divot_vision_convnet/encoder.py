"""A convolutional network over patches.

Shape letters: B clips, F frames, N images, P patches per frame in R rows and S columns, C channels, H W pixels.
"""

from torch import Tensor, nn
from torch.nn.functional import gelu, interpolate

from divot_lightning.errors import UserError
from divot_lightning.parts.vision_encoders import VisionEncoder


class ConvNet(VisionEncoder):
    """Embeds patches by one convolution, then mixes neighbouring patches with blocks of depthwise convolutions.

    It has no position embedding: padding and the tokenizer's own positions tell where a patch lies.
    """

    def __init__(
        self, frozen: bool = False, image_size: int = 32, patch_size: int = 4, width: int = 64, layers: int = 2
    ) -> None:
        """Build the layers.

        Args:
            frozen: Whether the weights are not trained; they are random, so this only serves as a baseline.
            image_size: Height and width, in pixels, that frames are resized to.
            patch_size: Height and width of a patch, in pixels; divides `image_size`.
            width: C, channels of a patch feature.
            layers: Number of blocks; each sees one patch further in all directions.
        """
        super().__init__(frozen)
        if patch_size < 1 or image_size < patch_size or image_size % patch_size:
            raise UserError(f"image_size={image_size} is no multiple of patch_size={patch_size}; choose one that is")
        self.embedding = nn.Conv2d(3, width, patch_size, stride=patch_size)
        self.blocks = nn.Sequential(*(Block(width) for _ in range(layers)))
        self.norm = nn.LayerNorm(width)
        side = image_size // patch_size
        self.describe(patch_dim=width, grid=(side, side), image_size=image_size)

    def encode(self, frames_BF3HW: Tensor) -> Tensor:
        """Return the patch features, (B, F, P, C); see `VisionEncoder.encode`."""
        images_N3HW = frames_BF3HW.flatten(0, 1)
        size = (self.image_size, self.image_size)
        if images_N3HW.shape[-2:] != size:
            images_N3HW = interpolate(images_N3HW.float(), size, mode="bilinear", antialias=True).to(images_N3HW.dtype)
        patches_NPC = self.blocks(self.embedding(images_N3HW)).flatten(2).transpose(1, 2)
        return self.norm(patches_NPC).unflatten(0, frames_BF3HW.shape[:2])


class Block(nn.Module):
    """A depthwise convolution over 3 x 3 patches and an MLP, with a residual connection (arXiv:2201.03545)."""

    def __init__(self, width: int) -> None:
        """Build the layers.

        Args:
            width: C.
        """
        super().__init__()
        self.neighbours = nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.norm = nn.GroupNorm(1, width)
        self.mlp_in = nn.Conv2d(width, 4 * width, 1)
        self.mlp_out = nn.Conv2d(4 * width, width, 1)

    def forward(self, patches_NCRS: Tensor) -> Tensor:
        """Return patches of the same shape."""
        mixed_NCRS = self.norm(self.neighbours(patches_NCRS))
        return patches_NCRS + self.mlp_out(gelu(self.mlp_in(mixed_NCRS)))
