"""Write what a pipeline makes of many prompts; what is there, made with the same settings, is not made again."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, groupby
from pathlib import Path
from typing import Any

from divot_lightning.errors import UserError
from divot_lightning.inference.clip_requests import ClipRequest
from divot_lightning.inference.pipeline import DivotPipeline
from divot_lightning.inference.pipeline_options import Decoding, GenerateOptions
from divot_lightning.inference.results import PROMPT, STORY_FILE, Settings, output_paths, save_clip
from divot_lightning.io.jsonl import LineFile, read_rows
from divot_lightning.io.output_files import make_folder
from divot_lightning.models.video_llm.story import StorySampling


@dataclass(frozen=True)
class ClipSampling:
    """How the clips of each prompt are made.

    Attributes:
        num: Clips per prompt.
        request: How the clips are asked for.
        temperature: Spread of the features that the head samples.
        seed: Of all randomness; a prompt of a file may have its own.
        decoding: How the de-tokenizer samples.
    """

    num: int = 1
    request: ClipRequest = field(default_factory=ClipRequest)
    temperature: float = 1.0
    seed: int = 0
    decoding: Decoding = field(default_factory=Decoding)


def generate_files(
    pipeline: DivotPipeline, prompts: Sequence[str], output: str | Path, how: ClipSampling
) -> Iterator[tuple[str, Path]]:
    """Write the clips of each prompt, all from one stream of random numbers.

    Args:
        pipeline: The models.
        prompts: Captions of the clips.
        output: See ``output_paths``.
        how: How they are sampled.

    Yields:
        Prompt and path, as soon as the file is written; all clips of a prompt come before those of the next prompt.
    """
    texts = [prompt for prompt in prompts for _ in range(how.num)]
    if PROMPT in Path(output).name:
        paths = list(chain.from_iterable(output_paths(one, how.num, text) for one, text in _named(output, prompts)))
    else:
        paths = output_paths(output, len(texts))
    models, options = pipeline.models, {"seed": how.seed, "temperature": how.temperature}
    with pipeline.sampling(how.decoding) as sampling:
        clips = models.generate(texts, request=how.request, sampling=sampling, **options)  # type: ignore[arg-type]
        settings = models.generation_settings(sampling, **options, **how.request.describe())
        for number, (text, path, (video, _)) in enumerate(zip(texts, paths, clips, strict=True)):
            # The number in the stream is a setting: it decides which random numbers the clip gets.
            yield text, save_clip(path, video.numpy(), models.fps, {"prompt": text, "number": number, **settings})


def generate_missing(
    pipeline: DivotPipeline, entries: Sequence[Mapping[str, Any]], output: str | Path, how: ClipSampling
) -> Iterator[tuple[str, Path]]:
    """Write the clips of each prompt of a file; a prompt's clips do not depend on the other prompts.

    Args:
        pipeline: The models.
        entries: From `read_prompts`: "prompt", and "seed" if it has its own.
        output: The file; line 0 writes ``<stem>-0<suffix>``, or ``<stem>-0-0<suffix>`` and so on if there are several
            clips per prompt. With ``{prompt}`` in its name, see ``output_paths``.
        how: How they are sampled.

    Yields:
        Prompt and path of each file, whether it was there or is new.
    """
    for entry, (path, text) in zip(entries, _named(output, [entry["prompt"] for entry in entries]), strict=True):
        num, seed, temperature = how.num, entry.get("seed", how.seed), how.temperature
        with pipeline.sampling(how.decoding) as sampling:
            settings = pipeline.models.generation_settings(
                sampling, num=num, seed=seed, temperature=temperature, **how.request.describe()
            )
        paths, described = output_paths(path, how.num, text), _json({"prompt": text, **settings})
        if not all(one.is_file() and _settings_in(one.with_suffix(".json")) == described for one in paths):
            options = GenerateOptions(
                num=num, seed=seed, temperature=temperature, request=how.request, decoding=how.decoding
            )
            paths = pipeline.generate(text, **options).save(path)
        yield from ((text, one) for one in paths)


def tell_missing(
    pipeline: DivotPipeline,
    entries: Sequence[Mapping[str, Any]],
    folders: Sequence[Path],
    num_clips: int,
    seed: int,
    decoding: Decoding | None = None,
) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Write the story of each instruction into its folder.

    Args:
        pipeline: The models.
        entries: From `read_prompts`: "instruction", and "seed" if it has its own.
        folders: One per entry.
        num_clips: Most clips of a story.
        seed: Of entries without their own.
        decoding: How the de-tokenizer samples.

    Yields:
        Each folder with the content of its story.json.
    """
    for entry, folder in zip(entries, folders, strict=True):
        own = entry.get("seed", seed)
        settings = pipeline.story_settings(StorySampling(), decoding, seed=own, num_clips=num_clips)
        there = _settings_in(folder / STORY_FILE)
        described = _json({"instruction": entry["instruction"], **settings})
        if {name: value for name, value in there.items() if name != "parts"} != described:
            pipeline.story(entry["instruction"], num_clips, seed=own, decoding=decoding).save(folder)
        yield folder, _settings_in(folder / STORY_FILE)


def answer_missing(
    pipeline: DivotPipeline, pairs: Sequence[tuple[str, str]], output: Path, **options: Any
) -> tuple[int, int]:
    """Add the answers that a jsonl file does not have yet to its end, those about a video as soon as they are known.

    Args:
        pipeline: The models.
        pairs: Videos and questions; neighbours with the same video are answered in one batch, which encodes it once.
        output: The file; it has an object per line: video, question, answer and all settings.
        **options: Of `DivotPipeline.ask`.

    Returns:
        The number of new answers, and of those that were there.
    """
    settings = pipeline.models.settings(**options)
    there = [{**row, "answer": None} for row in read_rows(output)] if output.is_file() else []
    make_folder(output.parent)
    file, new = LineFile(output), 0
    for video, same in groupby(pairs, key=lambda pair: pair[0]):
        rows = {q: _json({"video": video, "question": q or None, "answer": None, **settings}) for _, q in same}
        missing = {question: row for question, row in rows.items() if row not in there}
        answers = pipeline.ask(video, list(missing), **options) if missing else []
        file.append([{**missing[answer.question], "answer": answer.text} for answer in answers])
        there += missing.values()
        new += len(missing)
    file.close()
    return new, len(pairs) - new


def _named(output: str | Path, prompts: Sequence[str]) -> list[tuple[Path, str]]:
    """Return each prompt with its file: numbered, or named by the prompt."""
    whole = Path(output)
    output_paths(whole, len(prompts))  # refuses another kind of file
    if PROMPT not in whole.name:
        files = [whole.with_name(f"{whole.stem}-{number}{whole.suffix}") for number in range(len(prompts))]
    elif len(set(prompts)) < len(prompts):
        raise UserError(
            f"a text occurs twice, so {PROMPT} in --output gives no name of its own to each clip; use --num"
        )
    else:
        files = [whole] * len(prompts)
    return list(zip(files, prompts, strict=True))


def _settings_in(file: Path) -> dict[str, Any]:
    """Return the content of a json file; empty if it is missing or damaged."""
    try:
        return dict(json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return {}


def _json(settings: Settings) -> dict[str, Any]:
    return dict(json.loads(json.dumps(settings, default=str)))
