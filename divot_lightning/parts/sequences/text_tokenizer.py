"""Load the text tokenizer of a language model, with the tokens that mark clips."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from divot_lightning.errors import UserError
from divot_lightning.parts.segments import SPECIAL_TOKEN_NAMES


def load_text_tokenizer(folder: str | Path) -> tuple[Any, list[int]]:
    """Load a text tokenizer and add the marker tokens that it lacks.

    Args:
        folder: A transformers tokenizer folder (or a hub name that is in the local cache).

    Returns:
        A transformers tokenizer with ``SPECIAL_TOKEN_NAMES``, and the ids of those that were added.

    Raises:
        UserError: See `read_text_tokenizer`.
    """
    tokenizer = read_text_tokenizer(folder)
    known = tokenizer.get_vocab()
    new_names = [name for name in SPECIAL_TOKEN_NAMES if name not in known]
    tokenizer.add_tokens(new_names, special_tokens=True)
    return tokenizer, [tokenizer.get_vocab()[name] for name in new_names]


def read_text_tokenizer(folder: str | Path) -> Any:
    """Read a transformers tokenizer as it is stored; see `load_text_tokenizer`.

    Raises:
        UserError: There is no tokenizer that transformers can load without running code that comes with it.
    """
    from transformers import AutoTokenizer  # takes a second, and most users of this package need no text

    try:
        return AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    except Exception as error:  # tokenizers raises this class itself for a damaged file
        absent = "is no folder here, and no downloaded hub name"
        broken = f"cannot be loaded as a transformers tokenizer ({type(error).__name__})"
        raise UserError(
            f"the text tokenizer {str(folder)!r} {broken if Path(folder).exists() else absent}.\n"
            "Give a folder with tokenizer.json and tokenizer_config.json, or a hub name that was downloaded before\n"
            "(hf download NAME): training does not use the network, and code that comes with a tokenizer is never run."
        ) from error


def text_encoder(text_tokenizer: Any) -> Callable[..., list[int]]:
    """Return the function from text to ids.

    A caption that contains "</s>" or "<vid>" is text; it must not end the sequence or mark a clip. Only with the
    function's argument `special`, for the texts of a chat template, special tokens in the text become their ids.

    Args:
        text_tokenizer: A transformers tokenizer.
    """

    def encode(text: str, *, special: bool = False) -> list[int]:
        return text_tokenizer.encode(text, add_special_tokens=False, split_special_tokens=not special)

    return encode
