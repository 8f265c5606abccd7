"""Models of `diffusers`: from a local folder, from a revision of a hub repository, or from a config alone."""

import importlib
import json
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, NamedTuple

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from safetensors import SafetensorError
from torch import nn

from divot_lightning.errors import UserError, first_line

OTHER_INPUTS = {
    "I2VGenXLUNet": "it takes a picture besides the noisy latents",
    "LTX2VideoTransformer3DModel": "it denoises a clip together with its sound, and clips have none here",
    "UNetMotionModel": "its weights are motion layers around an image model",
    "UNetSpatioTemporalConditionModel": "it takes a picture besides the noisy latents",
    "WanAnimateTransformer3DModel": "it takes poses and a picture besides the noisy latents",
    "WanVACETransformer3DModel": "it takes control videos besides the noisy latents",
}
"""Why video models of `diffusers` cannot be a de-tokenizer's denoiser, by class."""


class Origin(NamedTuple):
    """Where a model comes from, as a recipe states it.

    Attributes:
        where: Key of the part in a recipe, for messages: `latents` or `denoiser`.
        pretrained: Local folder, or id of a hub repository; None for a model with random weights.
        revision: Commit, tag or branch of the hub repository; needed with an id.
        subfolder: Folder inside, such as `vae` or `transformer`.
        config: Arguments of the model's class; used without `pretrained`.
    """

    where: str
    pretrained: str | None
    revision: str | None
    subfolder: str | None
    config: dict[str, Any] | None


def build_model(class_name: str, origin: Origin, **derived: Any) -> tuple[Any, str | None]:
    """Build a model of `diffusers` in float32.

    Args:
        class_name: Name of its class in `diffusers`, or the dotted path of another one.
        origin: Where it comes from.
        **derived: Arguments of the class that follow from other parts; they replace those of a pretrained config.

    Returns:
        The model, and the local folder of its weights; None if they are random.

    Raises:
        UserError: Neither or both of `pretrained` and `config` are given, the folder holds another model or none, or
            the arguments do not fit.
    """
    if (origin.pretrained is None) == (origin.config is None):
        raise UserError(
            f"{origin.where}: {'both' if origin.config is not None else 'neither'} of pretrained and config given\n"
            f"give pretrained, a folder or hub id of a {class_name}, or config, the arguments of an untrained one"
        )
    module, _, name = class_name.rpartition(".")
    model_class: Any = getattr(importlib.import_module(module or "diffusers"), name)
    if origin.config is not None:
        return _untrained(model_class, origin, {**derived, **origin.config}), None
    folder = local_folder(origin)
    return _from_folder(model_class, origin, folder, derived), str(folder)


def local_folder(origin: Origin) -> Path:
    """Return the folder of a pretrained model; a revision of a hub repository is downloaded into the cache.

    Raises:
        UserError: There is neither such a folder nor such a repository, or the revision is missing.
    """
    assert origin.pretrained is not None
    folder = Path(origin.pretrained).expanduser()
    if not folder.is_dir():
        folder = _downloaded(origin)
    return folder / (origin.subfolder or "")


def stored_config(model: Any) -> dict[str, Any]:
    """Return the arguments that build a model again, as JSON values."""
    config = {name: value for name, value in model.config.items() if not name.startswith("_")}
    return json.loads(json.dumps(config))


def _downloaded(origin: Origin) -> Path:
    name = str(origin.pretrained)
    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise UserError(f"{origin.where}.pretrained: there is no folder {name!r}, and it is no id of a hub repository")
    if origin.revision is None:
        raise UserError(
            f"{origin.where}.pretrained: there is no folder {name!r}; to download that hub repository, set\n"
            f"{origin.where}.revision to a commit (or tag), so that every run gets the same weights"
        )
    patterns = [f"{origin.subfolder}/*"] if origin.subfolder else None
    try:
        return Path(snapshot_download(name, revision=origin.revision, allow_patterns=patterns))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise UserError(
            f"{origin.where}.pretrained: hub repository {name!r} at revision {origin.revision!r} cannot be read: "
            f"{first_line(error)}"
        ) from error


def _untrained(model_class: Any, origin: Origin, arguments: dict[str, Any]) -> nn.Module:
    try:
        model: nn.Module = model_class(**arguments)
    except Exception as error:  # each model fails in its own way on sizes that do not fit
        raise UserError(f"{origin.where}.config does not fit {model_class.__name__}: {first_line(error)}") from error
    return model


def _from_folder(model_class: Any, origin: Origin, folder: Path, derived: dict[str, Any]) -> nn.Module:
    try:
        stored = model_class.load_config(folder, local_files_only=True)
        found = stored.get("_class_name", model_class.__name__)
        if found == model_class.__name__:
            settings = {"local_files_only": True, "output_loading_info": True, **derived}
            model, report = model_class.from_pretrained(folder, **settings)
    except (OSError, ValueError, RuntimeError, SafetensorError, UnpicklingError) as error:
        raise UserError(
            f"{origin.where}.pretrained: {folder} is no {model_class.__name__} folder: {first_line(error)}"
        ) from error
    if found != model_class.__name__:
        why = f"\n{OTHER_INPUTS[found]}" if found in OTHER_INPUTS else ""
        raise UserError(f"{origin.where}.pretrained: {folder} holds a {found}, not a {model_class.__name__}{why}")
    if report["missing_keys"]:
        raise UserError(
            f"{origin.where}.pretrained: {folder} lacks {len(report['missing_keys'])} weights of a "
            f"{model_class.__name__}, such as {min(report['missing_keys'])!r}\ngive the whole folder of such a model"
        )
    return model.float()
