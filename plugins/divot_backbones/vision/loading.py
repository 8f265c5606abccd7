"""Load a vision model of transformers, from a folder or from the hub's local cache; the network is not used."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.utils import logging as transformers_logging

from divot_lightning.errors import UserError, first_line
from divot_lightning.models.weights import is_sharded


def load_vision_model(
    model_class: type[PreTrainedModel], pretrained: str, revision: str | None, unused: Iterable[str] = (), **given: Any
) -> PreTrainedModel:
    """Load pretrained weights as float32, whatever dtype they are stored in: the trainer decides the precision.

    In a block of `torch.device("meta")` only the config is read, for the shapes.

    Args:
        model_class: Class of the vision model; of a model with a text part it loads the vision part.
        pretrained: Folder, or name on the hub.
        revision: Branch, tag or commit on the hub; None is `main`.
        unused: Modules and parameters that may be missing, since `drop_unused` removes them.
        **given: Further arguments of `from_pretrained`.

    Returns:
        The model.

    Raises:
        UserError: The model is not there, or weights are missing or of another size.
    """
    if torch.get_default_device().type == "meta":
        config = given.get("config") or _config_class(model_class).from_pretrained(pretrained, **local_files(revision))
        return model_class(config)
    try:
        with _quiet_transformers():
            model, report = model_class.from_pretrained(
                pretrained,
                **local_files(revision),
                **given,
                output_loading_info=True,
                dtype=torch.float32,
                weights_only=True,
            )
    except OSError as error:
        raise not_found(pretrained) from error
    except (RuntimeError, ValueError, SafetensorError, UnpicklingError) as error:
        reason = first_line(error)
        raise UserError(f"vision.pretrained: {pretrained!r} cannot be loaded: {reason}") from error
    _refuse_missing(pretrained, model_class.__name__, report["missing_keys"], tuple(unused))
    return model


def _refuse_missing(pretrained: str, class_name: str, keys: Iterable[str], allowed: Sequence[str]) -> None:
    missing = sorted(name for name in keys if not any(f".{part}" in f".{name}" for part in allowed))
    if missing:
        raise UserError(
            f"vision.pretrained: {pretrained!r} lacks {len(missing)} weights of a {class_name}, such as "
            f"{missing[0]!r}; give a model of that class"
        )


def _config_class(model_class: type[PreTrainedModel]) -> type[PreTrainedConfig]:
    assert model_class.config_class is not None
    return model_class.config_class


def local_files(revision: str | None) -> dict[str, Any]:
    """Return the arguments that keep transformers from the network; a name of the hub is read from its local cache."""
    return {"local_files_only": True, **({} if revision is None else {"revision": revision})}


def not_found(pretrained: str) -> UserError:
    """Return the error about a model that is in no folder and not in the local cache."""
    return UserError(
        f"vision.pretrained: {pretrained!r} holds no config.json and weights, and no model of that name and revision "
        f"is in the hub's local cache\ngive a folder, or download the model first, since training does not use the "
        f"network: hf download {pretrained}"
    )


def drop_unused(model: nn.Module, unused: Iterable[str]) -> None:
    """Remove modules and parameters that patch features do not use, because they would never get a gradient.

    Args:
        model: The model, changed in place.
        unused: Their names; those that the model lacks are passed over.
    """
    for name in unused:
        owner_name, _, attribute = name.rpartition(".")
        owner = model.get_submodule(owner_name)
        if getattr(owner, attribute, None) is not None:
            setattr(owner, attribute, None)


def gather_borrowed(model: nn.Module, names: Iterable[str]) -> None:
    """Let ZeRO-3 gather parameters for a module that reads them without calling the inner module that holds them.

    Without ZeRO-3 nothing happens. It may be called before every forward pass.

    Args:
        model: The model.
        names: Names of the parameters, such as `embeddings.position_embedding.weight`, which `embeddings` reads.
    """
    for name in names:
        parameter = model.get_parameter(name)
        if is_sharded(parameter):
            import deepspeed

            deepspeed.zero.register_external_parameter(model.get_submodule(name.rsplit(".", 2)[0]), parameter)


@contextmanager
def _quiet_transformers() -> Iterator[None]:
    """Keep transformers from listing every weight of a model's text part as unexpected."""
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
