"""Measure one model in a process of its own.

Run: `python -m divot_lightning.experiments.quickstart.measure KIND [KIND ...] ...`

Every kind of measurement writes `scores.json`, and `clips.npz` and `texts.json` for the report, into a folder of its
own inside the output folder.

Shape letters: N clips, F frames, H height, W width, Q tokens per clip, C token width.
"""

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from divot_datamodules.decoding.clip_sampling import ClipConfig
from divot_datamodules.tasks.built_in import CaptionTask, QuestionTask
from divot_datamodules.toy.world import ATTRIBUTES, Reading, ToyWorld
from divot_lightning.checkpoint.components import find_component, load_component
from divot_lightning.errors import UserError
from divot_lightning.evaluation.answers.text_match import ExactMatch, ToyCaptionAccuracy, normalise_text
from divot_lightning.evaluation.metrics.probe import probe_accuracy
from divot_lightning.evaluation.metrics.toy_protocol import fresh_clips, generation_scores, reconstruction_scores
from divot_lightning.evaluation.scores import Score, save_scores
from divot_lightning.experiments.quickstart.clips import Clips, load_clips
from divot_lightning.experiments.quickstart.score_facts import describe_clips, describe_data, describe_run, shard_hashes
from divot_lightning.inference.generate import ClipGenerator, generate_clip_features
from divot_lightning.inference.reconstruct import Reconstructor
from divot_lightning.models.video_llm.model import VideoLLM
from divot_lightning.parts.head_options import HELP, split_head_options
from divot_lightning.parts.head_sampling import sampling_of
from divot_lightning.parts.segments import Segment, Text

BATCH_SIZE = 64
MAX_NEW_TOKENS = 24
THEN = "then"
"""Separates two measurements of one process."""


def decode(models: Reconstructor, tokens_NQC: Tensor, seed: int) -> tuple[Tensor, list[Reading]]:
    """Decode tokens to clips and read the clips with the oracle, with a progress bar.

    Returns:
        Clips, uint8 (N, F, 3, H, W), and the oracle's readings.
    """
    generator = torch.Generator().manual_seed(seed)
    world = ToyWorld(size=models.detokenizer.config.size, num_frames=models.detokenizer.config.num_frames)
    videos, readings = [], []
    with tqdm(total=len(tokens_NQC), desc="clips", unit="clip", mininterval=1.0) as bar:
        for video_BFCHW in models.decode(tokens_NQC, generator):
            videos.append(video_BFCHW)
            for video in video_BFCHW:
                readings.append(world.read(video.numpy()))
                bar.update()
    return torch.cat(videos), readings


def _save(
    args: argparse.Namespace,
    scores: Sequence[Score],
    texts: Any,
    items: dict[str, list[float]],
    model: dict[str, Any] | None = None,
    **arrays: Any,
) -> None:
    output = args.output / args.kind
    output.mkdir(parents=True, exist_ok=True)
    (output / "texts.json").write_text(json.dumps(texts), encoding="utf-8")
    (output / "items.json").write_text(json.dumps(items), encoding="utf-8")
    if arrays:
        np.savez_compressed(output / "clips.npz", **arrays)
    described = [replace(score, model=model or {}) for score in scores]
    save_scores(described, output / "scores.json")  # written last: if this file exists, all others do


def _right(reading: Reading, attributes: dict[str, str]) -> bool:
    return reading.valid and all(getattr(reading, name) == attributes[name] for name in ATTRIBUTES)


def _oracle_items(name: str, clips: Clips, readings: Sequence[Reading]) -> dict[str, list[float]]:
    """Return for each score whether each clip is right, 1.0 or 0.0; comparisons of models are paired by clip."""
    truths = [text["attributes"] for text in clips.texts]
    pairs = list(zip(readings, truths, strict=True))
    items = {"all": [float(_right(reading, truth)) for reading, truth in pairs]}
    for what in ATTRIBUTES:
        items[what] = [float(reading.valid and getattr(reading, what) == truth[what]) for reading, truth in pairs]
    return {f"{name}/{what}": values for what, values in items.items()}


def _shown(clips: Clips, readings: Sequence[Reading]) -> list[dict[str, Any]]:
    """Return the caption of each clip and the oracle's reading."""
    return [
        {"caption": text["caption"], "right": _right(reading, text["attributes"]), "reading": asdict(reading)}
        for text, reading in zip(clips.texts, readings, strict=True)
    ]


def measure_reconstruction(args: argparse.Namespace) -> None:
    """Encode held-out clips, decode them again, and measure the result."""
    models = Reconstructor.from_run(args.run)
    clips = load_clips(args.clips, models.detokenizer.config.size)
    made, readings = decode(models, models.encode(clips.media), args.seed)
    weights, model = describe_run(args.run, ("tokenizer", "detokenizer"))
    protocol = _protocol(args, models) | weights
    scores = reconstruction_scores(clips.media, made, readings, clips.texts, protocol)
    # The best that generation can reach through this de-tokenizer: its tokens are those of real clips.
    scores += generation_scores(clips.media, made, readings, clips.texts, protocol)
    items = _oracle_items("reconstruction", clips, readings)
    _save(args, scores, _shown(clips, readings), items, model, original=clips.media, made=made)


def measure_world(args: argparse.Namespace) -> None:
    """Score other real clips of the same captions as if a model had generated them: the best possible scores."""
    clips = load_clips(args.clips, args.size)
    world = ToyWorld(size=args.size, num_frames=clips.media.shape[1])
    made, _ = fresh_clips(clips.texts, world, args.seed)
    readings = [world.read(video.numpy()) for video in tqdm(made, desc="clips", unit="clip", mininterval=1.0)]
    protocol = describe_data(args.clips) | describe_clips(ClipConfig(args.size, args.size))
    _save(args, generation_scores(clips.media, made, readings, clips.texts, protocol), [], {})


def measure_generation(args: argparse.Namespace) -> None:
    """Generate one clip for each held-out caption."""
    generator = ClipGenerator.from_run(args.run, args.detokenizer, head=args.head)
    models, template = generator.reconstructor, generator.template
    clips = load_clips(args.clips, models.detokenizer.config.size)
    captions = [text["caption"] for text in clips.texts]
    tokens_NQC = generate_clip_features(generator.video_llm, captions, template=template, seed=args.seed)
    made, readings = decode(models, tokens_NQC, args.seed)
    weights, model = describe_run(args.run, ("video_llm", "tokenizer", "detokenizer"), args.detokenizer)
    # Sampling settings of the head belong to the model, not to the protocol: compared heads have different ones.
    model |= {"head": sampling_of(generator.video_llm.head)}
    protocol = _protocol(args, models) | weights | {"temperature": 1.0, "template": template}
    protocol |= {"prompts": "the caption of each held-out clip"}
    scores = generation_scores(clips.media, made, readings, clips.texts, protocol)
    _save(args, scores, _shown(clips, readings), _oracle_items("generation", clips, readings), model, made=made)


def measure_captions(args: argparse.Namespace) -> None:
    """Write a caption for each held-out clip, greedily."""
    clips, predictions = _continue(args, CaptionTask().segments)
    targets = [text["caption"] for text in clips.texts]
    metric = ToyCaptionAccuracy()
    metric.update(predictions, targets)
    protocol, model = _text_protocol(args, "pretraining")
    scores = [
        Score(f"captions/{what}", value.item(), len(predictions), protocol) for what, value in metric.compute().items()
    ]
    rows = [{"key": k, "expected": t, "said": p} for k, t, p in zip(clips.keys, targets, predictions, strict=True)]
    _save(args, scores, rows, {"captions/exact": _exact(rows)}, model)


def _exact(rows: Sequence[dict[str, str]]) -> list[float]:
    return [float(normalise_text(row["said"]) == normalise_text(row["expected"])) for row in rows]


def measure_questions(args: argparse.Namespace) -> None:
    """Ask all questions about each held-out clip, greedily."""
    metric = ExactMatch(ATTRIBUTES)
    rows: list[dict[str, str]] = []
    for attribute in ATTRIBUTES:

        def prompted(text: dict[str, Any], rng: np.random.Generator, attribute: str = attribute) -> list[Segment]:
            return QuestionTask("instruction").segments({"questions": [_question(text, attribute)]}, rng)

        clips, predictions = _continue(args, prompted)
        turns = [_question(text, attribute) for text in clips.texts]
        metric.update(predictions, [turn["answer"] for turn in turns], [attribute] * len(predictions))
        rows += [
            {"key": key, "question": turn["question"], "expected": turn["answer"], "said": answer}
            for key, turn, answer in zip(clips.keys, turns, predictions, strict=True)
        ]
    protocol, model = _text_protocol(args, "instruction")
    counts = {"all": len(rows)} | dict.fromkeys(ATTRIBUTES, len(rows) // len(ATTRIBUTES))
    results = metric.compute()
    scores = [Score(f"questions/{what}", results[what].item(), count, protocol) for what, count in counts.items()]
    _save(args, scores, rows, {"questions/all": _exact(rows)}, model)


def measure_probe(args: argparse.Namespace) -> None:
    """Read the attributes from cached tokens with a linear probe."""
    train, test = load_clips(args.train), load_clips(args.features)
    protocol = describe_data(args.clips) | {"probe": "ridge on all tokens of a clip", "training_clips": len(train.keys)}
    model = {"features": shard_hashes(args.features), "train": shard_hashes(args.train)}
    scores = []
    for name in tqdm(ATTRIBUTES, desc="attributes"):
        labels = [[text["attributes"][name] for text in clips.texts] for clips in (train, test)]
        value = probe_accuracy(train.media.flatten(1), labels[0], test.media.flatten(1), labels[1])
        scores.append(Score(f"probe/{name}", value, len(test.keys), protocol))
    _save(args, scores, [], {}, model)


def _question(text: dict[str, Any], attribute: str) -> dict[str, str]:
    return next(turn for turn in text["questions"] if turn["attribute"] == attribute)


def _load_llm(run: str) -> VideoLLM:
    return load_component(find_component(run, "video_llm"), VideoLLM).eval()


def _continue(
    args: argparse.Namespace, build: Callable[[dict[str, Any], np.random.Generator], list[Segment]]
) -> tuple[Clips, list[str]]:
    """Generate the text that a task would train on, given everything before it."""
    clips, video_llm = load_clips(args.features), _load_llm(args.run)
    rng = np.random.default_rng(args.seed)
    prompts = []
    for text in clips.texts:
        segments = build(text, rng)
        learned = next(at for at, part in enumerate(segments) if isinstance(part, Text) and part.learn)
        prompts.append(segments[:learned])
    predictions, at = [], 0
    for part in _batches(prompts, "texts"):
        predictions += video_llm.generate_text(part, clips.media[at : at + len(part)], max_new_tokens=MAX_NEW_TOKENS)
        at += len(part)
    return clips, predictions


def _batches(items: list[Any], unit: str) -> Iterator[list[Any]]:
    with tqdm(total=len(items), desc=unit, unit="sample", mininterval=1.0) as bar:
        for at in range(0, len(items), BATCH_SIZE):
            yield items[at : at + BATCH_SIZE]
            bar.update(min(BATCH_SIZE, len(items) - at))


def _protocol(args: argparse.Namespace, models: Reconstructor) -> dict[str, Any]:
    config = asdict(models.detokenizer.config)
    sampling = {"sampling": config["sampling"], "objective": config["objective"], "noise_seed": args.seed}
    return describe_data(args.clips) | describe_clips(models.clip) | sampling


def _text_protocol(args: argparse.Namespace, template: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the protocol of texts about cached features, and the description of the model."""
    weights, model = describe_run(args.run, ("video_llm",), features={"features": args.features})
    decoding = {"greedy": True, "max_new_tokens": MAX_NEW_TOKENS}
    return describe_data(args.clips) | weights | {"decoding": decoding, "template": template}, model


KINDS: dict[str, Callable[[argparse.Namespace], None]] = {
    "reconstruction": measure_reconstruction,
    "world": measure_world,
    "generation": measure_generation,
    "captions": measure_captions,
    "questions": measure_questions,
    "probe": measure_probe,
}


def main(argv: Sequence[str]) -> int:
    """Run measurements.

    Args:
        argv: The words after the module's name; the word `then` separates two measurements.

    Returns:
        The exit status.
    """
    torch.set_num_threads(1)
    with torch.no_grad():
        for words in _split_at(argv, THEN):
            args = _arguments(words)
            for kind in args.kinds:
                KINDS[kind](argparse.Namespace(**vars(args), kind=kind))
    return 0


def _split_at(words: Sequence[str], mark: str) -> list[list[str]]:
    """Split words at a mark.

    >>> _split_at(["a", "then", "b", "c"], "then")
    [['a'], ['b', 'c']]
    """
    parts: list[list[str]] = [[]]
    for word in words:
        if word == mark:
            parts.append([])
        else:
            parts[-1].append(word)
    return parts


def _arguments(words: Sequence[str]) -> argparse.Namespace:
    head, others = split_head_options(words)
    args = _parser().parse_args(others)
    if head and "generation" not in args.kinds:
        raise UserError(f"--head.{next(iter(head))} has no effect on {', '.join(args.kinds)}; leave it out")
    args.head = head
    return args


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m divot_lightning.experiments.quickstart.measure")
    parser.add_argument("kinds", choices=KINDS, nargs="+")
    parser.add_argument("--clips", required=True, help="shards of held-out clips")
    parser.add_argument("--features", help="cached features of the same clips, for kinds that read tokens")
    parser.add_argument("--output", required=True, type=Path, help="folder for scores and examples")
    parser.add_argument("--run", help="run folder of the measured model")
    parser.add_argument("--detokenizer", help="run folder of the de-tokenizer that decodes generated clips")
    parser.add_argument("--head.NAME", dest="head", metavar="VALUE", help=HELP)
    parser.add_argument("--train", help="feature shards that the probe is fitted on")
    parser.add_argument("--size", type=int, default=32, help="height and width in pixels")
    parser.add_argument("--seed", type=int, default=0, help="of all sampling")
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
