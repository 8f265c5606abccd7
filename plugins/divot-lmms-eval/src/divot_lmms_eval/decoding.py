"""Translate the decoding settings of lmms-eval's tasks. No lmms-eval in here."""

import logging
from collections.abc import Iterable, Mapping
from typing import Any

logger = logging.getLogger(__name__)

MAX_NEW_TOKENS = 256
"""Of tasks that name no number."""


def decoding_of(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of `DivotPipeline.ask` for the `generation_kwargs` of a task; beams become greedy decoding.

    >>> decoding_of({"max_new_tokens": 16, "temperature": 0.7, "do_sample": False, "until": ["."]})
    {'max_new_tokens': 16, 'temperature': 0.0, 'top_p': 1.0}
    >>> decoding_of({"temperature": 0.7, "top_p": None})
    {'max_new_tokens': 256, 'temperature': 0.7, 'top_p': 1.0}
    """
    if (settings.get("num_beams") or 1) > 1:
        logger.warning("the task asks for %s beams; Divot decodes without beams.", settings["num_beams"])
    temperature = float(settings.get("temperature") or 0.0)
    sampled = settings.get("do_sample", temperature > 0)
    return {
        "max_new_tokens": int(settings.get("max_new_tokens") or MAX_NEW_TOKENS),
        "temperature": temperature if sampled else 0.0,
        "top_p": float(settings.get("top_p") or 1.0),
    }


def until(text: str, ends: str | Iterable[str] | None) -> str:
    r"""Return the text before the first of the ends that a task names.

    >>> until("a red car.\nIt moves", ["\n", "It"])
    'a red car.'
    """
    for end in [ends] if isinstance(ends, str) else ends or ():
        text = text.split(end)[0] if end else text
    return text.strip()
