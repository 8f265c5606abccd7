"""Files of cached features: safetensors with "tokens", and "latents" if asked for; metadata name what made them.

Shape letters: N clips, Q tokens per clip, C feature width.
"""

import json

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from torch import Tensor

from divot_datamodules.decoding.sample_errors import DATA_ERRORS
from divot_lightning.parts.sources import SampleError

TOKENIZER_FIELD = "tokenizer_sha256"
"""Key in the safetensors metadata: the SHA-256 of the tokenizer that made the features."""


LATENTS_FIELD = "latents_sha256"
"""Key in the safetensors metadata: the SHA-256 of the de-tokenizer's latents that "latents" come from."""


def read_latents(data: bytes, latents_sha256: str | None) -> Tensor | None:
    """Read a sample's cached latents, or what they are sampled from: float32 (N, ...); None if the file has none.

    Args:
        data: A safetensors file; nothing in it can run code.
        latents_sha256: SHA-256 that the latents must have; None reads none.

    Raises:
        SampleError: "bad_features", "foreign_features".
    """
    if latents_sha256 is None:
        return None
    tensors, metadata = _load(data)
    latents, found = tensors.get("latents"), metadata.get(LATENTS_FIELD)
    if latents is None:
        return None
    if latents.dtype != torch.float32 or latents.ndim < 2 or 0 in latents.shape:
        raise SampleError("bad_features", f"latents {latents.dtype} {tuple(latents.shape)}, not float32 (clips, ...)")
    if found != latents_sha256:
        raise SampleError("foreign_features", f"latents {str(found)[:16]}..., not {latents_sha256[:16]}...")
    return latents


def read_features(data: bytes, tokenizer_sha256: str | None = None) -> Tensor:
    """Read a sample's cached features.

    Args:
        data: A safetensors file with "tokens"; nothing in it can run code.
        tokenizer_sha256: Refuse features whose metadata names another tokenizer; None for no check.

    Returns:
        float32 (N, Q, C); N, Q and C are at least 1.

    Raises:
        SampleError: "bad_features", "foreign_features".
    """
    tensors, metadata = _load(data)
    if "tokens" not in tensors:
        raise SampleError("bad_features", f"holds {sorted(tensors)[:8]}, not 'tokens'")
    tokens, tokenizer = tensors["tokens"], metadata.get(TOKENIZER_FIELD)
    if tokens.ndim not in (2, 3) or tokens.dtype != torch.float32 or 0 in tokens.shape:
        seen = f"{tokens.dtype} {tuple(tokens.shape)}"
        raise SampleError("bad_features", f"{seen}, not float32 (clips, tokens, width)")
    if tokenizer_sha256 is not None and tokenizer is not None and tokenizer != tokenizer_sha256:
        raise SampleError("foreign_features", f"made by tokenizer {tokenizer[:16]}..., not {tokenizer_sha256[:16]}...")
    return tokens.reshape(-1, *tokens.shape[-2:])


def _load(data: bytes) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors of a file by name, and its metadata."""
    try:
        tensors = load_safetensors(data)
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    except (SafetensorError, KeyError, *DATA_ERRORS) as error:  # a KeyError for a dtype that torch does not have
        raise SampleError("bad_features", f"{type(error).__name__}: {error}"[:300]) from error
    return tensors, header.get("__metadata__") or {}
