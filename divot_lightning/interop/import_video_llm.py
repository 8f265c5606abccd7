"""Import Divot's released video LLM: language model, projector, generation head and learnable queries.

Shape letters: Q queries, D LLM width, C feature width, P parameters of a token's mixture, K its components.
"""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from accelerate import init_empty_weights
from torch import Tensor
from transformers import AutoConfig

from divot_heads.gmm import GMMHead
from divot_lightning.errors import UserError
from divot_lightning.interop.adapters import RELEASED_ALPHA, merge_adapters
from divot_lightning.interop.folders import Imported, import_component, require_new
from divot_lightning.interop.released_files import read_folder, read_released
from divot_lightning.interop.released_keys import KeyTable
from divot_lightning.models.video_llm.config import BuiltVideoLLMConfig
from divot_lightning.models.video_llm.language_model import vocabulary_size
from divot_lightning.models.video_llm.model import VideoLLM
from divot_lightning.parts.part import PartSpec
from divot_lightning.parts.segments import SPECIAL_TOKEN_NAMES
from divot_lightning.parts.sequences.text_tokenizer import read_text_tokenizer

AGENT = Path("agent", "pytorch_model.bin")
_EMBEDDINGS, _OUTPUT = "model.embed_tokens.weight", "lm_head.weight"
_LLM, _ADDED = "llm/", "added/"
"""Prefixes that keep apart names of the language model, of the agent, and of what the released files leave implicit."""

AGENT_RULES = {
    "input_resampler.proj.0.{kind}": "input_projector.hidden.{kind}",
    "input_resampler.proj.2.{kind}": "input_projector.out.{kind}",
    "output_resampler.proj.{layer}.{kind}": "head.proj.{layer}.{kind}",
    f"{_ADDED}queries": "queries.weight_QD",
    f"{_ADDED}feature_mean": "feature_mean_C",
    f"{_ADDED}feature_std": "feature_std_C",
}


def import_video_llm(
    released: str | Path, folder: str | Path, text_tokenizer: str | Path | None = None, num_queries: int = 64
) -> Imported:
    """Turn a released folder, such as `Divot_sft_gen`, into a component folder of a video LLM.

    The learnable queries are the embeddings of the tokens `<frame_00000>` and following. Adapters that are not merged
    yet, in the agent or in `llm/`, are merged.

    Args:
        released: Folder with `llm/`, a transformers model, and `agent/pytorch_model.bin`.
        folder: Where to; it must not exist.
        text_tokenizer: Folder of the released text tokenizer; None looks for `tokenizer` in `released` and beside it,
            and in `llm/`.
        num_queries: Tokens of a clip; 64 in the released model.

    Raises:
        UserError: A file is missing, damaged or another one, the text tokenizer lacks a token, or `folder` exists.
    """
    require_new(folder)
    released = Path(released)
    tokenizer_folder = _text_tokenizer(released, text_tokenizer)
    agent = read_released(released / AGENT)
    language_model = _language_model(
        released / "llm", {name: agent.pop(name) for name in list(agent) if name.startswith("llm.")}
    )
    if _is_tied(released / "llm"):
        language_model = _tie(language_model, released / "llm")
    query_ids = _query_ids(tokenizer_folder, num_queries, language_model, released)
    feature_dim, components = _sizes(agent, released / AGENT)
    head = PartSpec(f"{GMMHead.__module__}.{GMMHead.__qualname__}", {"num_components": components})
    config = BuiltVideoLLMConfig(num_queries=num_queries, feature_dim=feature_dim, head=head)
    module = _without_weights(config, released / "llm", tokenizer_folder)
    weights = {
        **{_LLM + name: value for name, value in language_model.items()},
        **agent,
        f"{_ADDED}queries": language_model[_EMBEDDINGS][query_ids],
        # The released model reads and predicts features as they are.
        f"{_ADDED}feature_mean": torch.zeros(feature_dim),
        f"{_ADDED}feature_std": torch.ones(feature_dim),
    }
    return import_component(weights, _table(module, weights), module, released, folder, keep_dtype=True)


def _table(module: VideoLLM, released: Mapping[str, Tensor]) -> KeyTable:
    """Return the names of a released video LLM -> the module's; those of the language model stay as they are."""
    same = {_LLM + name: f"language_model.{name}" for name in module.language_model.state_dict()}
    buffers = {
        name: "rotary frequencies, which are computed" for name in released if name.endswith("rotary_emb.inv_freq")
    }
    return KeyTable("video LLM", {**same, **AGENT_RULES}, buffers)


def _language_model(folder: Path, in_agent: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights of the language model in the names of transformers, with all adapters merged."""
    weights = merge_adapters(read_folder(folder), in_agent, RELEASED_ALPHA, str(folder.parent / AGENT))
    files = [file for name in ("adapter_model.safetensors", "adapter_model.bin") if (file := folder / name).is_file()]
    if files:
        alpha = _read_json(folder / "adapter_config.json").get("lora_alpha", RELEASED_ALPHA)
        weights = merge_adapters(weights, read_released(files[0]), float(alpha), str(files[0]))
    return weights


def _is_tied(llm: Path) -> bool:
    """Return whether the output layer of a language model shares the weight of its word embeddings."""
    stored = _read_json(llm / "config.json")
    try:
        config = AutoConfig.for_model(**stored)
    except (TypeError, ValueError) as error:
        raise UserError(
            f"{llm / 'config.json'} (model_type {stored.get('model_type')!r}) is no config of a language model that "
            "transformers knows\ngive the folder of the release"
        ) from error
    return bool(config.tie_word_embeddings)


def _tie(weights: Mapping[str, Tensor], llm: Path) -> dict[str, Tensor]:
    """Give a shared weight both of its names, whichever the files have.

    Raises:
        UserError: They hold two different ones, as when both layers were trained apart; one of them would be lost.
    """
    both = [weights[name] for name in (_EMBEDDINGS, _OUTPUT) if name in weights]
    if len(both) == 2 and not torch.equal(*both):
        raise UserError(
            f"{llm} has tie_word_embeddings in its config.json, but {_EMBEDDINGS} and {_OUTPUT} differ\n"
            "if they were trained apart, set tie_word_embeddings to false there"
        )
    return {**weights, **dict.fromkeys((_EMBEDDINGS, _OUTPUT), both[0])} if both else dict(weights)


def _text_tokenizer(released: Path, given: str | Path | None) -> Path:
    places = (
        [released / "tokenizer", released.parent / "tokenizer", released / "llm"] if given is None else [Path(given)]
    )
    found = next((folder for folder in places if (folder / "tokenizer_config.json").is_file()), None)
    if found is None:
        raise UserError(
            f"there is no text tokenizer in {', '.join(map(str, places))}\n"
            "give the folder with the released tokenizer.model and tokenizer_config.json: --text-tokenizer FOLDER"
        )
    return found


def _query_ids(tokenizer_folder: Path, num_queries: int, weights: Mapping[str, Tensor], released: Path) -> list[int]:
    """Return the ids of the tokens whose embeddings are the queries.

    Raises:
        UserError: The text tokenizer lacks one of them or a marker of clips, or knows more tokens than have embeddings.
    """
    tokenizer = read_text_tokenizer(tokenizer_folder)
    queries = [f"<frame_{index:05d}>" for index in range(num_queries)]
    known = tokenizer.get_vocab()
    missing = [name for name in [*SPECIAL_TOKEN_NAMES, *queries] if name not in known]
    if missing:
        raise UserError(
            f"the text tokenizer in {tokenizer_folder} has no token {missing[0]} ({len(missing)} are missing)\n"
            "it is not the one of the released model; give that: --text-tokenizer FOLDER"
        )
    if _EMBEDDINGS not in weights:
        raise UserError(
            f"{released / 'llm'} holds no {_EMBEDDINGS}; it is no language model of Mistral's or Llama's kind"
        )
    rows, needed = len(weights[_EMBEDDINGS]), vocabulary_size(tokenizer)
    if rows < needed:
        raise UserError(
            f"{released / 'llm'} has embeddings of {rows} tokens, and the text tokenizer in {tokenizer_folder} knows "
            f"{needed}\ngive the two of the same release"
        )
    return [known[name] for name in queries]


def _sizes(agent: Mapping[str, Tensor], file: Path) -> tuple[int, int]:
    """Return C and K from the shapes of the agent's layers: a token's mixture has P = K (2 C + 1) parameters."""
    first, last = (agent.get(f"{name}.weight") for name in ("input_resampler.proj.0", "output_resampler.proj.2"))
    if first is None or last is None or first.ndim != 2:
        raise UserError(f"{file} holds no input_resampler.proj and output_resampler.proj; it is no released agent")
    components, rest = divmod(len(last), 2 * first.shape[1] + 1)
    if rest or not components:
        raise UserError(
            f"{file}: {len(last)} outputs of output_resampler.proj.2 are no mixture of Gaussians of width "
            f"{first.shape[1]}"
        )
    return first.shape[1], components


def _without_weights(config: BuiltVideoLLMConfig, llm: Path, text_tokenizer: Path) -> VideoLLM:
    """Build the video LLM of released folders, without memory for its parameters."""
    stored = _read_json(llm / "config.json")
    with TemporaryDirectory() as temporary:
        component = Path(temporary)
        shutil.copytree(
            text_tokenizer, component / "text_tokenizer", ignore=shutil.ignore_patterns("*.bin", "*.safetensors")
        )
        (component / "language_model").mkdir()
        (component / "language_model" / "config.json").write_text(json.dumps(stored), encoding="utf-8")
        with init_empty_weights():
            return VideoLLM(config, folder=component)


def _read_json(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{file} is missing or damaged ({type(error).__name__}); download it again") from error
    if not isinstance(content, dict):
        raise UserError(f"{file} holds no settings by name; download it again")
    return content
