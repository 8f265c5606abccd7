"""Shards of videos to shards of features: a frozen tokenizer runs once instead of in every step of the LLM stages.

Shape letters: N clips, F frames, H height, W width, Q tokens per clip, C feature width.
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path

import torch
from safetensors.torch import save as save_safetensors
from torch import Tensor
from tqdm import tqdm

from divot_datamodules.clip_sampling import ClipSettings
from divot_datamodules.ledger import Budget, Defect, Ledger
from divot_datamodules.samples import Sample, SampleDecoder, SampleError
from divot_datamodules.shard_reading import (
    FEATURE_SUFFIX,
    RawSample,
    check_shards,
    expand_shards,
    expected_samples,
    read_samples,
)
from divot_datamodules.shard_writing import Sample as Members
from divot_datamodules.shard_writing import ShardFolder, read_index
from divot_lightning.components import find_component, load_component, weights_sha256
from divot_lightning.errors import UserError
from divot_lightning.models.pixels import to_unit_range
from divot_lightning.models.tokenizer import VideoTokenizer


@dataclass(frozen=True)
class EncodeReport:
    """What was encoded.

    Attributes:
        samples: Samples in the feature shards.
        shards: Feature shards.
        defects: Samples that were left out.
        already_there: Whether the output folder held exactly this before.
    """

    samples: int
    shards: int
    defects: list[Defect]
    already_there: bool = False


@torch.no_grad()
def encode_clips(tokenizer: VideoTokenizer, video_NFCHW: Tensor) -> Tensor:
    """Computes the tokens of stored clips.

    Args:
        tokenizer: In evaluation mode.
        video_NFCHW: uint8 in [0, 255].

    Returns:
        Tokens (N, Q, C), float32, on the CPU.
    """
    device = next(tokenizer.parameters()).device
    return tokenizer(to_unit_range(video_NFCHW.to(device))).float().cpu()


def _decoded(raws: Iterable[RawSample], decoder: SampleDecoder, ledger: Ledger) -> Iterator[tuple[RawSample, Sample]]:
    for raw in raws:
        ledger.saw_sample()
        try:
            sample = decoder(raw, None)
            if sample.video is None:
                raise UserError(f"{raw.shard} holds features already; encode the shards of videos.")
            yield raw, sample
        except SampleError as error:
            ledger.record(Defect(error.reason, raw.shard, raw.key, error.detail))


def _members(sample: Sample, tokens_NQC: Tensor) -> Members:
    text = {**sample.text, "kind": "image"} if sample.kind == "image" else sample.text
    tokens = tokens_NQC[0] if len(tokens_NQC) == 1 else tokens_NQC
    data = save_safetensors({"tokens": tokens.contiguous()})
    return sample.key, {FEATURE_SUFFIX: data, "json": json.dumps(text).encode()}


def _encoded(
    samples: Iterator[tuple[RawSample, Sample]], tokenizer: VideoTokenizer, batch_size: int, bar: "tqdm[None]"
) -> Iterator[Members]:
    while batch := [sample for _, sample in islice(samples, batch_size)]:
        videos = [sample.video for sample in batch if sample.video is not None]
        tokens_NQC = encode_clips(tokenizer, torch.cat(videos))
        for sample, tokens in zip(batch, tokens_NQC.split([len(video) for video in videos]), strict=True):
            yield _members(sample, tokens)
            bar.update()


def encode_shards(
    tokenizer: str | Path,
    source: str | Path,
    output: str | Path,
    *,
    clip: ClipSettings | None = None,
    batch_size: int = 32,
    budget: Budget | None = None,
    device: str = "cpu",
    progress: bool = False,
) -> EncodeReport:
    """Runs a trained tokenizer over shards and writes feature shards; continues where an interrupted call stopped.

    A video longer than a clip gives the clip in its middle; cut long videos with `divot data pack --clip-seconds`.

    Args:
        tokenizer: Run or component folder.
        source: Shards of videos; see `divot_datamodules.shard_reading.expand_shards`.
        output: Folder of the feature shards; one for each shard that is read.
        clip: How clips are cut.
        batch_size: Samples at a time.
        budget: How much may be lost.
        device: Where the tokenizer runs.
        progress: Whether to show a bar with rate and time left.
    """
    clip = clip or ClipSettings()
    component = find_component(tokenizer, "tokenizer")
    shards = expand_shards(source)
    check_shards(shards)
    # Names alone would not notice that a folder was made anew with other settings.
    indexes = [read_index(folder) for folder in dict.fromkeys(Path(s).parent for s in shards if "://" not in s)]
    identity = {
        "tokenizer_sha256": weights_sha256(component),
        "source": [Path(shard).name for shard in shards],
        "source_settings": [index["settings"] if index else None for index in indexes],
    }
    folder = ShardFolder(output, kind="features", settings={**identity, "clip": asdict(clip)})
    ledger = Ledger("encode", output, budget)
    if folder.complete:
        return EncodeReport(folder.facts()["num_samples"], len(shards), ledger.defects(), already_there=True)
    module = load_component(component, VideoTokenizer).to(device).eval()
    counts = [expected_samples(shard) for shard in shards]
    total = sum(count for count in counts if count is not None) if None not in counts else None
    with tqdm(total=total, desc="features", unit="sample", disable=not progress) as bar:
        for number, shard in enumerate(shards):
            if folder.has(number):
                bar.update(counts[number] or 0)
                continue
            decoded = _decoded(read_samples(shard, ledger.record), SampleDecoder(clip), ledger)
            folder.write(number, _encoded(decoded, module, batch_size, bar))
    samples = sum(entry.samples for entry in folder.entries())
    ledger.finish_pass(len(ledger.defects()), samples + len(ledger.defects()))
    folder.finish()
    return EncodeReport(samples, len(shards), ledger.defects())


def check_features(shards: Iterable[str], tokenizer: str | Path) -> None:
    """Refuses feature shards that another tokenizer made; shards of videos pass.

    Args:
        shards: Local paths; URLs pass, since their index is not read.
        tokenizer: Run or component folder.
    """
    component: Path | None = None
    for folder in dict.fromkeys(Path(shard).parent for shard in shards if "://" not in shard):
        index = read_index(folder)
        if index is None or index.get("kind") != "features":
            continue
        component = component or find_component(tokenizer, "tokenizer")
        made_by, wanted = index["settings"]["tokenizer_sha256"], weights_sha256(component)
        if made_by != wanted:
            raise UserError(
                f"the features in {folder} come from another tokenizer (sha256 {made_by[:16]}...)\n"
                f"than {component} ({wanted[:16]}...).\nRun `divot data encode --tokenizer {tokenizer}` again."
            )
