"""Write what a pipeline makes of many prompts; what is there, made with the same settings, is not made again."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from divot_lightning.inference.clip_requests import ClipRequest
from divot_lightning.inference.pipeline import DivotPipeline
from divot_lightning.inference.results import STORY_FILE, ClipFeatures, Settings, output_paths, save_clip
from divot_lightning.io.jsonl import LineFile, read_rows
from divot_lightning.models.video_llm.story import StorySampling


def generate_files(
    pipeline: DivotPipeline,
    prompts: Sequence[str],
    output: str | Path,
    *,
    num: int = 1,
    request: ClipRequest | None = None,
    temperature: float = 1.0,
    seed: int = 0,
) -> Iterator[tuple[str, Path]]:
    """Write ``num`` clips for each prompt, all from one stream of random numbers.

    Args:
        pipeline: The models.
        prompts: Captions of the clips.
        output: See ``output_paths``.
        num: Clips per prompt.
        request: How the clips are asked for.
        temperature: Spread of the features that the head samples.
        seed: Of all randomness.

    Yields:
        Prompt and path, as soon as the file is written; all clips of a prompt come before those of the next prompt.
    """
    texts = [prompt for prompt in prompts for _ in range(num)]
    models = pipeline.models
    clips = models.generate(texts, request=request, temperature=temperature, seed=seed)
    asked = (request or ClipRequest()).describe()
    settings = models.generation_settings(seed=seed, temperature=temperature, **asked)
    for number, (text, path, (video, _)) in enumerate(zip(texts, output_paths(output, len(texts)), clips, strict=True)):
        # The number in the stream is a setting: it decides which random numbers the clip gets.
        yield text, save_clip(path, video.numpy(), models.fps, {"prompt": text, "number": number, **settings})


def generate_missing(
    pipeline: DivotPipeline,
    entries: Sequence[Mapping[str, Any]],
    output: str | Path,
    *,
    num: int = 1,
    request: ClipRequest | None = None,
    temperature: float = 1.0,
    seed: int = 0,
) -> Iterator[tuple[str, Path]]:
    """Write ``num`` clips for each prompt of a file; a prompt's clips do not depend on the other prompts.

    Args:
        pipeline: The models.
        entries: From `read_prompts`: "prompt", and "seed" if it has its own.
        output: The file; line 0 writes ``<stem>-0<suffix>``, or ``<stem>-0-0<suffix>`` and so on if ``num`` is above 1.
        num: Clips per prompt.
        request: How the clips are asked for.
        temperature: Spread of the features that the head samples.
        seed: Of entries without their own.

    Yields:
        Prompt and path of each file, whether it was there or is new.
    """
    for entry, path in zip(entries, _numbered(output, len(entries)), strict=True):
        own = entry.get("seed", seed)
        asked = (request or ClipRequest()).describe()
        settings = pipeline.models.generation_settings(seed=own, temperature=temperature, num=num, **asked)
        paths = output_paths(path, num)
        if not all(
            one.is_file() and _settings_in(one.with_suffix(".json")) == _json({"prompt": entry["prompt"], **settings})
            for one in paths
        ):
            made = pipeline.generate(entry["prompt"], num=num, seed=own, request=request, temperature=temperature)
            paths = made.save(path)
        yield from ((entry["prompt"], one) for one in paths)


def tell_missing(
    pipeline: DivotPipeline, entries: Sequence[Mapping[str, Any]], folders: Sequence[Path], num_clips: int, seed: int
) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Write the story of each instruction into its folder.

    Args:
        pipeline: The models.
        entries: From `read_prompts`: "instruction", and "seed" if it has its own.
        folders: One per entry.
        num_clips: Most clips of a story.
        seed: Of entries without their own.

    Yields:
        Each folder with the content of its story.json.
    """
    for entry, folder in zip(entries, folders, strict=True):
        own = entry.get("seed", seed)
        settings = pipeline.story_settings(StorySampling(), None, seed=own, num_clips=num_clips)
        there = _settings_in(folder / STORY_FILE)
        wanted = _json({"instruction": entry["instruction"], **settings})
        if {name: value for name, value in there.items() if name != "parts"} != wanted:
            pipeline.story(entry["instruction"], num_clips, seed=own).save(folder)
        yield folder, _settings_in(folder / STORY_FILE)


def answer_missing(
    pipeline: DivotPipeline, pairs: Sequence[tuple[str, str]], output: Path, *, max_clips: int
) -> tuple[int, int]:
    """Add the answers that a jsonl file does not have yet to its end, each as soon as it is known.

    Args:
        pipeline: The models.
        pairs: Videos and questions; neighbours with the same video encode it once.
        output: The file; it has an object per line: video, question, answer and all settings.
        max_clips: Most clips of a video.

    Returns:
        The number of new answers, and of those that were there.
    """
    settings = pipeline.models.settings(max_clips=max_clips)
    there = [{**row, "answer": None} for row in read_rows(output)] if output.is_file() else []
    output.parent.mkdir(parents=True, exist_ok=True)
    file, new = LineFile(output), 0
    encoded: tuple[str, ClipFeatures] | None = None
    for video, question in pairs:
        row = _json({"video": video, "question": question or None, "answer": None, **settings})
        if row in there:
            continue
        if encoded is None or encoded[0] != video:
            encoded = (video, pipeline.encode(video, max_clips=max_clips))
        file.append([{**row, "answer": pipeline.ask(encoded[1], question).text}])
        there.append(row)
        new += 1
    file.close()
    return new, len(pairs) - new


def _numbered(output: str | Path, count: int) -> list[Path]:
    output_paths(output, count)  # refuses another kind of file
    whole = Path(output)
    return [whole.with_name(f"{whole.stem}-{number}{whole.suffix}") for number in range(count)]


def _settings_in(file: Path) -> dict[str, Any]:
    """Return the content of a json file; empty if it is missing or damaged."""
    try:
        return dict(json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return {}


def _json(settings: Settings) -> dict[str, Any]:
    return dict(json.loads(json.dumps(settings, default=str)))
