"""Measure models on single clips of the toy world, a batch at a time.

Every measurement writes `scores.json` into a folder of its own, and `items.json`, `clips.npz` and `texts.json` for the
report and for paired comparisons.

Shape letters: N clips, F frames, H height, W width, Q tokens per clip, C token width.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from divot_datamodules.decoding.clip_sampling import ClipConfig
from divot_datamodules.decoding.samples import Sample, SampleDecoder
from divot_datamodules.shards.reading import expand_shards
from divot_datamodules.shards.sources import read_all
from divot_datamodules.toy.world import ATTRIBUTES, Reading, ToyWorld
from divot_lightning.errors import UserError
from divot_lightning.evaluation.metrics.probe import probe_accuracy
from divot_lightning.evaluation.metrics.toy_protocol import fresh_clips, generation_scores, reconstruction_scores
from divot_lightning.evaluation.protocol import library_versions
from divot_lightning.evaluation.question_runner import describe_resize
from divot_lightning.evaluation.run import describe_model, weights_kind
from divot_lightning.evaluation.scores import Score, save_scores
from divot_lightning.inference.generate import generate_clip_features
from divot_lightning.inference.loaded_run import LoadedRun
from divot_lightning.io.files import file_sha256
from divot_lightning.parts.head_sampling import sampling_of


@dataclass(frozen=True)
class Clips:
    """Samples of one clip each.

    Attributes:
        keys: Their keys.
        texts: The content of their json files.
        media: uint8 video (N, F, 3, H, W) or float32 features (N, Q, C).
    """

    keys: list[str]
    texts: list[dict[str, Any]]
    media: Tensor


def load_clips(shards: str | Path, size: int = 32) -> Clips:
    """Read samples in the order of the shards.

    Args:
        shards: Folder of videos or of features.
        size: Height and width of videos, in pixels.

    Raises:
        UserError: A sample does not have exactly one clip.
    """
    decode = SampleDecoder(ClipConfig(height=size, width=size))
    samples = [decode(raw, None) for raw in read_all(shards)]
    return Clips([s.key for s in samples], [s.text for s in samples], torch.stack([_one_clip(s) for s in samples]))


def _one_clip(sample: Sample) -> Tensor:
    media = sample.video if sample.video is not None else sample.features
    if media is None or len(media) != 1:
        raise UserError(f"sample {sample.key!r} has {sample.num_clips} clips; this measures single clips")
    return media[0]


def reconstruction(output: Path, *, run: str, clips: str, seed: int = 0) -> None:
    """Encode clips, decode them again, and measure the result.

    Args:
        output: Folder of the results.
        run: Run folder of a tokenizer and a de-tokenizer.
        clips: Shards.
        seed: Of the de-tokenizer's noise.
    """
    models = LoadedRun(run)
    real = load_clips(clips, models.detokenizer.config.size)
    made, readings = _decode(models, models.encode(real.media), seed)
    protocol, model = _facts(
        clips, models.decoded_clip, run, ("tokenizer", "detokenizer"), sampling=_sampling(models, seed)
    )
    scores = reconstruction_scores(real.media, made, readings, real.texts, protocol)
    # The best that generation can reach through this de-tokenizer: its tokens are those of real clips.
    scores += generation_scores(real.media, made, readings, real.texts, protocol)
    _save(output, scores, model, _judged("reconstruction", real, readings), original=real.media, made=made)


def world(output: Path, *, clips: str, size: int = 32, seed: int = 0) -> None:
    """Score other real clips of the same captions as if a model had generated them: the best possible scores.

    Args:
        output: Folder of the results.
        clips: Shards.
        size: Height and width, in pixels.
        seed: Of the start positions.
    """
    real = load_clips(clips, size)
    rules = ToyWorld(size=size, num_frames=real.media.shape[1])
    made, _ = fresh_clips(real.texts, rules, seed)
    readings = [rules.read(video.numpy()) for video in tqdm(made, desc="clips", unit="clip", mininterval=1.0)]
    protocol, _ = _facts(clips, ClipConfig(size, size))
    _save(output, generation_scores(real.media, made, readings, real.texts, protocol), {})


def generation(
    output: Path, *, run: str, detokenizer: str, clips: str, head: Mapping[str, Any] | None = None, seed: int = 0
) -> None:
    """Generate one clip for the caption of each clip.

    `divot evaluate --benchmark toy` does this as well, but each clip has a seed of its own there, so that it does not
    depend on the number of processes.

    Args:
        output: Folder of the results.
        run: Run folder of a video LLM.
        detokenizer: Run folder of the de-tokenizer.
        clips: Shards.
        head: Sampling settings of the head, by name.
        seed: Of all sampling.
    """
    models = LoadedRun(run, detokenizer, head=head)
    models.check_fit()
    template = models.template
    real = load_clips(clips, models.detokenizer.config.size)
    captions = [text["caption"] for text in real.texts]
    tokens_NQC = generate_clip_features(models.video_llm, captions, template=template, seed=seed)
    made, readings = _decode(models, tokens_NQC, seed)
    sampling = _sampling(models, seed) | {"temperature": 1.0, "template": template}
    components = ("video_llm", "tokenizer", "detokenizer")
    protocol, model = _facts(clips, models.decoded_clip, run, components, detokenizer, sampling=sampling)
    protocol |= {"prompts": "the caption of each held-out clip"}
    # Sampling settings of the head belong to the model, not to the protocol: compared heads have different ones.
    model |= {"head": sampling_of(models.video_llm.head)}
    scores = generation_scores(real.media, made, readings, real.texts, protocol)
    _save(output, scores, model, _judged("generation", real, readings), made=made)


def probe(output: Path, *, clips: str, features: str, train: str) -> None:
    """Read the attributes from cached tokens with a linear probe.

    Args:
        output: Folder of the results.
        clips: Shards of the clips whose tokens are read.
        features: Their cached tokens.
        train: Cached tokens that the probe is fitted on.
    """
    fitted, test = load_clips(train), load_clips(features)
    protocol, _ = _facts(clips)
    protocol |= {"probe": "ridge on all tokens of a clip", "training_clips": len(fitted.keys)}
    scores = []
    for name in tqdm(ATTRIBUTES, desc="attributes"):
        labels = [[text["attributes"][name] for text in each.texts] for each in (fitted, test)]
        value = probe_accuracy(fitted.media.flatten(1), labels[0], test.media.flatten(1), labels[1])
        scores.append(Score(f"probe/{name}", value, len(test.keys), protocol))
    _save(output, scores, {"features": _shard_hashes(features), "train": _shard_hashes(train)})


MEASUREMENTS: dict[str, Callable[..., None]] = {
    "toy-batch-reconstruction": reconstruction,
    "toy-real-clips": world,
    "toy-batch-generation": generation,
    "toy-probe": probe,
}
"""By the name that a recipe gives as `benchmark`."""


def _decode(models: LoadedRun, tokens_NQC: Tensor, seed: int) -> tuple[Tensor, list[Reading]]:
    """Decode tokens to clips, uint8 (N, F, 3, H, W), and read the clips with the oracle, with a progress bar."""
    generator = torch.Generator().manual_seed(seed)
    rules = ToyWorld(size=models.detokenizer.config.size, num_frames=models.detokenizer.config.num_frames)
    videos, readings = [], []
    with tqdm(total=len(tokens_NQC), desc="clips", unit="clip", mininterval=1.0) as bar:
        for video_BFCHW in models.decode(tokens_NQC, generator):
            videos.append(video_BFCHW)
            for video in video_BFCHW:
                readings.append(rules.read(video.numpy()))
                bar.update()
    return torch.cat(videos), readings


def _judged(name: str, clips: Clips, readings: Sequence[Reading]) -> list[dict[str, Any]]:
    """Return for each clip its texts, the oracle's reading, and its scores: 1.0 for right, 0.0 for wrong."""
    rows = []
    for key, text, reading in zip(clips.keys, clips.texts, readings, strict=True):
        target = text["attributes"]
        right = {name: reading.valid and getattr(reading, name) == target[name] for name in ATTRIBUTES}
        scores = {f"{name}/all": float(all(right.values()))}
        scores |= {f"{name}/{what}": float(value) for what, value in right.items()}
        row = {"key": key, "caption": text["caption"], "questions": text.get("questions", [])}
        rows.append({**row, "right": all(right.values()), "reading": asdict(reading), "scores": scores})
    return rows


def _save(
    output: Path,
    scores: Sequence[Score],
    model: Mapping[str, Any],
    rows: Sequence[Mapping[str, Any]] = (),
    **arrays: Any,
) -> None:
    output.mkdir(parents=True, exist_ok=True)
    items = {name: [row["scores"][name] for row in rows] for name in (rows[0]["scores"] if rows else ())}
    (output / "texts.json").write_text(json.dumps(list(rows)), encoding="utf-8")
    (output / "items.json").write_text(json.dumps(items), encoding="utf-8")
    if arrays:
        np.savez_compressed(output / "clips.npz", **arrays)
    described = [replace(score, model=dict(model)) for score in scores]
    save_scores(described, output / "scores.json")  # written last: if this file exists, all others do


def _facts(
    clips: str,
    cut: ClipConfig | None = None,
    run: str = "",
    components: Sequence[str] = (),
    detokenizer: str | None = None,
    sampling: Mapping[str, Any] | None = None,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the protocol of a measurement, and the description of the measured model."""
    protocol = {"split": Path(clips).name, "files": _shard_hashes(clips), "versions": library_versions()}
    if cut is not None:
        sizes = {name: getattr(cut, name) for name in ("frames", "fps", "height", "width")}
        protocol["clips"] = {**sizes, "resize": describe_resize(cut)}
    protocol |= sampling or {}
    if not run:
        return protocol, {}
    return protocol | {"weights": weights_kind(run, components, detokenizer)}, describe_model(
        run, components, detokenizer
    )


def _sampling(models: LoadedRun, seed: int) -> dict[str, Any]:
    return {"sampling": asdict(models.detokenizer.config.sampling), "noise_seed": seed}


def _shard_hashes(shards: str) -> dict[str, str]:
    return {Path(shard).name: file_sha256(shard) for shard in expand_shards(shards)}
