"""Import OpenCLIP's ViT-H/14, the vision encoder of the paper."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from accelerate import init_empty_weights
from safetensors.torch import save_file
from transformers import CLIPConfig, CLIPModel

from divot_lightning.interop.conversion import convert, ignored_reasons
from divot_lightning.interop.folders import Imported, count_numbers, require_new, whole_folder
from divot_lightning.interop.openclip_keys import CLIP, VIT_H_14, split_projections
from divot_lightning.interop.released_files import read_released


def import_clip(file: str | Path, folder: str | Path, config: Mapping[str, Any] | None = None) -> Imported:
    """Turn OpenCLIP's ViT-H/14 into a folder of a transformers `CLIPModel`.

    Args:
        file: `open_clip_pytorch_model.bin`, or safetensors of the same names.
        folder: Where to; it must not exist.
        config: Arguments of `CLIPConfig`; those of ViT-H/14 by default.

    Raises:
        UserError: The file is damaged or another one, or the folder exists.
    """
    require_new(folder)
    released = split_projections(read_released(file))
    with init_empty_weights():
        model = CLIPModel(CLIPConfig(**(config or VIT_H_14)))
    weights = convert(released, CLIP, model, file)
    with whole_folder(folder) as work:
        model.config.architectures = [type(model).__name__]
        model.config.save_pretrained(work)
        save_file(weights, work / "model.safetensors", {"format": "pt"})
    return Imported(Path(folder), count_numbers(weights), ignored_reasons(released, CLIP))
