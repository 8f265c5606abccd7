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


def is_right(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    """Compare the answer with the known one."""
    return {"right": float(results[0].strip() == doc["answer"])}


def mean(values: list[float]) -> float:
    """Return the mean."""
    return sum(values) / len(values)
