"""Files of cached features: safetensors with "tokens"; their metadata names the tokenizer that made them.

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
    tokens, tokenizer = _load(data)
    if tokens.ndim not in (2, 3) or tokens.dtype != torch.float32 or 0 in tokens.shape:
        seen = f"{tokens.dtype} {tuple(tokens.shape)}"
        raise SampleError("bad_features", f"{seen}, not float32 (clips, tokens, width)")
    if tokenizer_sha256 is not None and tokenizer is not None and tokenizer != tokenizer_sha256:
        raise SampleError("foreign_features", f"made by tokenizer {tokenizer[:16]}..., not {tokenizer_sha256[:16]}...")
    return tokens.reshape(-1, *tokens.shape[-2:])


def _load(data: bytes) -> tuple[Tensor, str | None]:
    """Return the tokens, and the hash of the tokenizer that made them if the file has it."""
    try:
        tensors = load_safetensors(data)
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    except (SafetensorError, KeyError, *DATA_ERRORS) as error:  # a KeyError for a dtype that torch does not have
        raise SampleError("bad_features", f"{type(error).__name__}: {error}"[:300]) from error
    if "tokens" not in tensors:
        raise SampleError("bad_features", f"holds {sorted(tensors)[:8]}, not 'tokens'")
    return tensors["tokens"], (header.get("__metadata__") or {}).get(TOKENIZER_FIELD)
