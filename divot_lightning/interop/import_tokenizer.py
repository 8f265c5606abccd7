"""Import Divot's released tokenizer, with its frozen ViT."""

from pathlib import Path

from accelerate import init_empty_weights
from torch import Tensor

from divot_backbones.vision.clip import ClipVision
from divot_lightning.errors import UserError
from divot_lightning.interop.folders import Imported, import_component, require_new
from divot_lightning.interop.openclip_keys import NOT_FOR_PATCHES, VIT_RULES, split_projections
from divot_lightning.interop.released_files import read_released
from divot_lightning.interop.released_keys import TOKENIZER, KeyTable, with_prefixes
from divot_lightning.models.tokenizer.config import TokenizerConfig
from divot_lightning.models.tokenizer.video_tokenizer import VideoTokenizer

RELEASED_VIT = "vit_model.model."
"""Prefix of the ViT in a released file that contains it."""


def import_tokenizer(
    file: str | Path, folder: str | Path, vision: str | Path | None = None, config: TokenizerConfig | None = None
) -> Imported:
    """Turn `Divot_tokenizer.bin` into a component folder of a tokenizer.

    Args:
        file: The released file.
        folder: Where to; it must not exist.
        vision: Checkpoint of OpenCLIP's ViT-H/14, for a file without the ViT, which is frozen in training.
        config: Config of the file's tokenizer; that of the released one by default.

    Raises:
        UserError: A file is damaged or another one, the ViT is in none of them or in both, or the folder exists.
    """
    require_new(folder)
    released = _with_vit(read_released(file), file, vision)
    with init_empty_weights():
        module = VideoTokenizer(config or TokenizerConfig(vision=ClipVision))
    rules = {**TOKENIZER.ours_by_released, **with_prefixes(VIT_RULES, RELEASED_VIT, "vision.model.")}
    ignored = {RELEASED_VIT + prefix: why for prefix, why in NOT_FOR_PATCHES.items()}
    return import_component(released, KeyTable("tokenizer", rules, ignored), module, file, folder)


def _with_vit(released: dict[str, Tensor], file: str | Path, vision: str | Path | None) -> dict[str, Tensor]:
    """Return the weights of both files, those of the ViT under `RELEASED_VIT`."""
    contained = any(name.startswith(RELEASED_VIT) for name in released)
    if contained and vision is not None:
        raise UserError(f"{file} contains the ViT, so {vision} would have no effect\nleave --vision out")
    if not contained and vision is None:
        raise UserError(
            f"{file} does not contain the ViT, which is frozen in training\n"
            "give the checkpoint of OpenCLIP's ViT-H-14 (laion2b_s32b_b79k) as --vision FILE"
        )
    if vision is not None:
        released = {**released, **{RELEASED_VIT + name: value for name, value in read_released(vision).items()}}
    # The tokenizer's own layers keep queries, keys and values together.
    vit = {name.removeprefix(RELEASED_VIT): value for name, value in released.items() if name.startswith(RELEASED_VIT)}
    own = {name: value for name, value in released.items() if not name.startswith(RELEASED_VIT)}
    return {**own, **{RELEASED_VIT + name: value for name, value in split_projections(vit).items()}}
