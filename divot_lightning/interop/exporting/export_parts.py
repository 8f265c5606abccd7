"""Write a component with its inner models in the formats of their own libraries.

A part is written once: the component's `config.json` names the sub-folder that holds its weights, and
`divot_lightning.checkpoint.components` reads them from there.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from diffusers import ModelMixin
from diffusers.utils import recurse_remove_peft_layers
from huggingface_hub import save_torch_state_dict
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from transformers import PreTrainedModel

from divot_lightning.checkpoint.components import new_component
from divot_lightning.errors import UserError
from divot_lightning.io.component_files import CONFIG_FILE
from divot_lightning.models.detokenizer.video_detokenizer import VideoDetokenizer
from divot_lightning.models.video_llm.model import VideoLLM
from divot_lightning.models.weights import fill, stored_tensors, weight_files
from divot_lightning.parts.heads import GenerationHead
from divot_lightning.parts.part import build_part, spec_of
from divot_lightning.parts.registries.kinds import HEADS

PARTS: dict[str, tuple[str, type[nn.Module]]] = {
    "language_model": ("language_model", PreTrainedModel),
    "head": ("head", GenerationHead),
    "denoiser.model": ("denoiser", ModelMixin),
    "latents.vae": ("vae", ModelMixin),
}
"""Sub-folder and class of the parts that are written in a format of their own, by their path in the component."""

ADAPTER = "adapter"
"""Sub-folder with the adapters of a language model, as PEFT writes them."""


def write_component(module: nn.Module, folder: Path, max_shard_size: int | str) -> None:
    """Write a component folder whose parts other libraries can load.

    Args:
        module: The component, whole.
        folder: Where to.
        max_shard_size: Largest size of a file with weights, as "5GB".
    """
    parts = {path: name for path, (name, kind) in PARTS.items() if isinstance(_inner(module, path), kind)}
    with new_component(module, folder, parts) as weights_file:
        work = weights_file.parent
        for path, name in parts.items():
            _write_part(module, module.get_submodule(path), work / name, max_shard_size)
        if isinstance(module, VideoLLM):
            _write_language_files(module, work)
        rest = _not_in_parts(module, work, parts)
        if rest:
            save_torch_state_dict(
                rest, work, filename_pattern="model{suffix}.safetensors", max_shard_size=max_shard_size
            )


def merge_module_adapters(module: nn.Module) -> None:
    """Merge the adapters of a component's language model or denoiser into its weights, in float32."""
    if isinstance(module, VideoLLM) and module.config.lora is not None:
        module.merge_lora()
    denoiser: Any = getattr(module, "denoiser", None)
    if isinstance(module, VideoDetokenizer) and denoiser.init_args.get("training") == "lora":
        for layer in [each for each in denoiser.modules() if isinstance(each, BaseTunerLayer)]:
            layer.merge()
        recurse_remove_peft_layers(denoiser.model)
        denoiser.init_args["training"] = "full"
        merged: Any = spec_of(denoiser)
        module.config = replace(module.config, denoiser=merged)


def load_head(folder: str | Path) -> GenerationHead:
    """Load an exported generation head.

    Args:
        folder: Folder `video_llm/head` of an export.

    Returns:
        The head, on the CPU, in evaluation mode; it takes and gives normalised features.

    Raises:
        UserError: The folder holds no head, or its class is not trusted.
    """
    folder = Path(folder)
    try:
        described = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
        spec, supplied = described["head"], {name: int(described[name]) for name in ("hidden_dim", "feature_dim")}
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{folder} holds no exported head ({type(error).__name__})") from error
    head: GenerationHead = build_part(spec, HEADS, str(folder / CONFIG_FILE), **supplied)
    missing, unexpected = fill(head, stored_tensors(weight_files(folder)))
    if missing or unexpected:
        raise UserError(f"the weights in {folder} do not fit a {type(head).__name__}: {(missing + unexpected)[0]}")
    return head.eval()


def _inner(module: nn.Module, path: str) -> nn.Module | None:
    try:
        return module.get_submodule(path)
    except AttributeError:
        return None


def _write_part(owner: nn.Module, part: nn.Module, folder: Path, max_shard_size: int | str) -> None:
    if isinstance(part, PreTrainedModel | ModelMixin):
        # The config keeps the dtype of the pretrained weights, which inference goes back to.
        dtype = getattr(part.config, "dtype", None)
        part.save_pretrained(folder, max_shard_size=max_shard_size)
        if isinstance(part, PreTrainedModel):
            part.config.dtype = dtype
        return
    assert isinstance(owner, VideoLLM)
    folder.mkdir()
    sizes = {"hidden_dim": owner.causal_lm.config.hidden_size, "feature_dim": owner.feature_dim}
    described = {"head": asdict(spec_of(owner.head)), **sizes}
    (folder / CONFIG_FILE).write_text(json.dumps(described, indent=1) + "\n", encoding="utf-8")
    save_torch_state_dict(
        part.state_dict(), folder, filename_pattern="model{suffix}.safetensors", max_shard_size=max_shard_size
    )


def _write_language_files(module: VideoLLM, folder: Path) -> None:
    """Write the text tokenizer beside the language model, and adapters that were not merged."""
    language_model: Any = module.language_model
    module.text_tokenizer.save_pretrained(folder / "language_model")
    if module.config.lora is not None:
        base = module.config.language_model or ""
        language_model.peft_config["default"].base_model_name_or_path = "" if Path(base).is_absolute() else base
        # Rows of marker tokens are among the adapter's weights; no base model is looked for to compare vocabularies.
        language_model.save_pretrained(folder / ADAPTER, save_embedding_layers=False)


def _not_in_parts(module: nn.Module, folder: Path, parts: Mapping[str, str]) -> dict[str, Tensor]:
    """Return the tensors of a component that no part's folder holds under their own name.

    Some architectures are renamed or merged when transformers writes them; those are stored with the component too.
    """
    state = module.state_dict(keep_vars=True)
    written: set[int] = set()
    for path, name in parts.items():
        for key, stored in stored_tensors(weight_files(folder / name), f"{path}.").items():
            if key in state and torch.equal(stored.read(), state[key].detach()):
                written.add(id(state[key]))
    return {name: value.detach() for name, value in state.items() if id(value) not in written}
