"""Functions that the task files name."""

from typing import Any

import av


def video(doc: dict[str, Any]) -> list[str]:
    """Return the video as a path."""
    return [doc["video"]]


def frames(doc: dict[str, Any]) -> list[Any]:
    """Return the video as a list of PIL pictures, as long-video benchmarks do."""
    with av.open(doc["video"]) as container:
        return [frame.to_image() for frame in container.decode(video=0)]


def text(doc: dict[str, Any], lmms_eval_specific_kwargs: dict[str, Any] | None = None) -> str:
    """Return the question."""
    return doc["question"]


ROUNDS = ("shape", "colour", "direction")
"""What the rounds of `divot_toy_rounds` are about."""


def rounds(
    doc: dict[str, Any],
    lmms_eval_specific_kwargs: dict[str, Any] | None = None,
    previous_output: list[str] | None = None,
    round_idx: int = 0,
    previous_round_info: dict[str, str] | None = None,
) -> Any:
    """Return the first question; in later rounds: media, question, whether it is over, the answers, what to remember.

    The second question names the shape that was the first answer.
    """
    if not previous_output:
        return "what shape is it ?"
    if round_idx == len(ROUNDS):
        return None, None, True, previous_output, None
    known = previous_round_info or {"shape": previous_output[0]}
    question = (f"what colour is the {known['shape']} ?", "where does it move ?")[round_idx - 1]
    return video(doc), question, False, previous_output, known


def share_right(doc: dict[str, Any], results: list[list[str]]) -> dict[str, float]:
    """Return the share of rounds whose answer is the known one."""
    [answers] = results
    return {"right": mean([float(answer == doc[name]) for answer, name in zip(answers, ROUNDS, strict=True)])}


def is_right(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    """Compare the answer with the known one."""
    return {"right": float(results[0].strip() == doc["answer"])}


def mean(values: list[float]) -> float:
    """Return the mean."""
    return sum(values) / len(values)
