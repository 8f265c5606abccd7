"""Build a stage on torch's meta device: no memory for parameters, and no weight file is read or downloaded."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from diffusers import ModelMixin
from huggingface_hub import snapshot_download
from lightning import LightningModule
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from divot_backbones import pretrained
from divot_lightning.checkpoint import components
from divot_lightning.io import hub


@contextlib.contextmanager
def without_weights() -> Iterator[None]:
    """Within the block, create parameters on the meta device and pretrained modules from their config alone.

    torch's own `with torch.device("meta")` is not enough: modules that load weights would still read the files.
    """
    register = nn.Module.register_parameter

    def register_on_meta(self: nn.Module, name: str, param: nn.Parameter | None) -> None:
        if param is not None and param.device.type != "meta":
            param = nn.Parameter(param.detach().to("meta"), requires_grad=param.requires_grad)
        register(self, name, param)

    with contextlib.ExitStack() as replaced:
        for owner, name, new in (
            (nn.Module, "register_parameter", register_on_meta),
            (components, "load_weights", _leave_weights),
            (AutoModelForCausalLM, "from_pretrained", staticmethod(_language_model)),
            (PreTrainedModel, "from_pretrained", classmethod(_vision_model)),
            (ModelMixin, "from_pretrained", classmethod(_diffusers_model)),
            (pretrained, "snapshot_download", _download_configs),
            (hub, "snapshot_download", _download_configs),
        ):
            replaced.enter_context(patch.object(owner, name, new))
        yield


def build_shapes(stage: LightningModule) -> LightningModule:
    """Build a stage's modules without memory for parameters, and move all other tensors to the meta device."""
    with without_weights(), torch.no_grad():
        stage.configure_model()
    return stage.to("meta")


def _leave_weights(module: nn.Module, folder: str | Path) -> None:
    """Replace `load_weights`: load nothing."""


def _language_model(folder: str, *, attn_implementation: str | None = None, **ignored: Any) -> tuple[nn.Module, Any]:
    config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    model: nn.Module = AutoModelForCausalLM.from_config(
        config, attn_implementation=attn_implementation, trust_remote_code=False
    )
    return model, {"missing_keys": []}


def _vision_model(
    model_class: type[PreTrainedModel],
    name: str,
    *,
    config: PretrainedConfig | None = None,
    revision: str = "main",
    output_loading_info: bool = False,
    **ignored: Any,
) -> Any:
    """Replace `from_pretrained` of transformers' models, which vision encoders call."""
    assert model_class.config_class is not None
    config = config or model_class.config_class.from_pretrained(name, revision=revision, local_files_only=True)
    model = model_class(config)
    return (model, {"missing_keys": []}) if output_loading_info else model


def _diffusers_model(
    model_class: Any, folder: Path, *, local_files_only: bool, output_loading_info: bool, **changes: Any
) -> tuple[nn.Module, Any]:
    config = model_class.load_config(folder, local_files_only=local_files_only)
    return model_class.from_config(config, **changes), {"missing_keys": []}


def _download_configs(name: str, *, revision: str | None, local_files_only: bool = False, **patterns: Any) -> str:
    """Replace `snapshot_download`: configs and text tokenizers, but no weights."""
    return snapshot_download(
        name, revision=revision, local_files_only=local_files_only, allow_patterns=["*.json", "*.model", "*.txt"]
    )
