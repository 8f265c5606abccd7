"""Compare useful tokens per second of LLM training steps: packed rows and two ways to pad.

Run: python benchmarks/packing.py [--batch-fraction 1.0] [--hidden 512] [--layers 1] [--memory]

The mixture is that of the released pretraining recipe: per GPU batches of 8 (video captions, weight 1.3), 32 (text to
video, 1.0), 32 (image captions, 0.3) and 32 (text to image, 0.3); a step takes one source. The lengths come from a
model, since the data are not available:

- a clip is 2 seconds and 66 tokens; a video lasts 18 seconds in the mean (WebVid; here log-normal with a sigma of 0.6)
  and gives at most 20 clips; an image is one clip;
- captions have 9 tokens and a Poisson number more: 9 for videos, 5 for images, 40 for prompts of images to generate.

Useful tokens are all except padding. "source's maximum" pads as the released code does, to the maximum of each source
(1400, 180, 300, 180); "longest of batch" pads to the longest sample of the batch; "packed" is `packing: true`. All
three run the same samples in turn, forward and backward, and must give the same losses. On a CPU the time is the
process's CPU time, which other work on the machine does not change.

--memory also runs one step of video captions per way in a process of its own and prints the rise of its peak memory,
without and with gradient checkpointing.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.mixture import LONGEST, SOURCES, Source
from divot_datamodules.toy.text_tokenizer import word_level_tokenizer
from divot_heads.mse import MSEHead
from divot_lightning.models.video_llm.model import VideoLLM, VideoLLMConfig
from divot_lightning.parts.segments import Clips, Segment
from divot_lightning.parts.sequences.rows import SequenceBatch
from divot_lightning.parts.sequences.tokens import IGNORED, TokenKind

PADS = {
    "labels_BL": IGNORED,
    "token_kind_BL": int(TokenKind.PAD),
    "clips_BL": -1,
    "feature_index_BL": -1,
    "samples_BL": -1,
}


WAYS = ("source's maximum", "longest of batch", "packed")


class PaddedVideoLLM(VideoLLM):
    """Pad every row to `pad_to` if that is more than the longest sample."""

    pad_to = 0

    def sequences(self, segments: list[list[Segment]], *, prompt: bool = False) -> SequenceBatch:
        batch = super().sequences(segments, prompt=prompt)
        missing = max(0, self.pad_to - batch.ids_BL.shape[1])
        names = ["ids_BL", "position_ids_BL", *PADS]
        padded: dict[str, Any] = {
            name: functional.pad(getattr(batch, name), (0, missing), value=PADS.get(name, 0)) for name in names
        }
        return replace(batch, **padded)


def build(hidden: int, layers: int, device: str, *, checkpointing: bool) -> PaddedVideoLLM:
    torch.manual_seed(0)
    sizes = {"hidden_size": hidden, "intermediate_size": 4 * hidden, "num_hidden_layers": layers}
    sizes |= {"num_attention_heads": hidden // 64, "num_key_value_heads": hidden // 64}
    with tempfile.TemporaryDirectory() as folder:
        word_level_tokenizer(["word"]).save_pretrained(folder)
        config = VideoLLMConfig(
            language_model_config={"model_type": "llama", **sizes},
            text_tokenizer=folder,
            num_queries=64,
            feature_dim=256,
        )
        config = replace(config, max_length=LONGEST, gradient_checkpointing=checkpointing)
        return PaddedVideoLLM(config, MSEHead).train().to(device)


def prepare(video_llm: PaddedVideoLLM, way: str, source: Source) -> None:
    video_llm.pad_to = source.maximum if way == "source's maximum" else 0
    video_llm.set_layout(max_length=LONGEST, packing=way == "packed")


def sample_batch(
    source: Source, fraction: float, draws: np.random.Generator, device: str
) -> tuple[list[list[Segment]], torch.Tensor]:
    samples = [source.sample(draws) for _ in range(source.batch_of(fraction))]
    num_clips = sum(segment.count for sample in samples for segment in sample if isinstance(segment, Clips))
    return samples, torch.randn(num_clips, 64, 256, device=device)


def step(video_llm: PaddedVideoLLM, samples: list[list[Segment]], features: torch.Tensor) -> tuple[float, float]:
    """Return seconds and loss of forward and backward."""
    video_llm.zero_grad()
    started = now(features)
    output = video_llm(video_llm.sequences(samples), features)
    loss = output.text_loss + output.head_loss
    loss.backward()
    return now(features) - started, loss.item()


def now(features: torch.Tensor) -> float:
    if features.is_cuda:
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.process_time()


def measure_speed(args: argparse.Namespace) -> dict[str, dict[str, list[float]]]:
    """Return useful tokens, all tokens and seconds of each source, by way."""
    video_llm = build(args.hidden, args.layers, args.device, checkpointing=False)
    draws = np.random.default_rng(0)
    sums = {way: {what: [0.0] * len(SOURCES) for what in ("useful", "all", "seconds")} for way in WAYS}
    step(
        video_llm, *sample_batch(SOURCES[1], 0.1, draws, args.device)
    )  # a first step sets things up and is not measured
    for _ in range(args.batches):
        for index, source in enumerate(SOURCES):
            samples, features = sample_batch(source, args.batch_fraction, draws, args.device)
            losses = []
            for way in WAYS:
                prepare(video_llm, way, source)
                token_kind_BL = video_llm.sequences(samples).token_kind_BL
                seconds, loss = step(video_llm, samples, features)
                losses.append(loss)
                sums[way]["useful"][index] += int((token_kind_BL != TokenKind.PAD).sum())
                sums[way]["all"][index] += token_kind_BL.numel()
                sums[way]["seconds"][index] += seconds
            assert max(losses) - min(losses) < 1e-4 * abs(losses[0]), losses
    return sums


def in_mixture(sums: dict[str, list[float]], what: str) -> float:
    return sum(source.weight * value for source, value in zip(SOURCES, sums[what], strict=True))


def report_speed(sums: dict[str, dict[str, list[float]]]) -> None:
    rates = {way: in_mixture(sums[way], "useful") / in_mixture(sums[way], "seconds") for way in WAYS}
    for way in WAYS:
        fraction = in_mixture(sums[way], "useful") / in_mixture(sums[way], "all")
        by_source = ", ".join(
            f"{source.name} {useful / seconds:.0f}"
            for source, useful, seconds in zip(SOURCES, sums[way]["useful"], sums[way]["seconds"], strict=True)
        )
        sys.stdout.write(f"{way:<17} {rates[way]:7.0f} useful tokens/s, {fraction:4.0%} useful; {by_source}\n")
    for way in WAYS[:-1]:
        sys.stdout.write(f"ratio packed / {way:<17} {rates['packed'] / rates[way]:.2f}\n")


def measure_memory(args: argparse.Namespace, way: str, checkpointing: bool) -> float:
    """Return the MiB that one step of video captions adds to the peak memory."""
    video_llm = build(args.hidden, args.layers, args.device, checkpointing=checkpointing)
    step(video_llm, *sample_batch(SOURCES[1], 0.01, np.random.default_rng(1), args.device))
    samples, features = sample_batch(SOURCES[0], args.batch_fraction, np.random.default_rng(0), args.device)
    prepare(video_llm, way, SOURCES[0])
    before = peak_bytes(args.device)
    step(video_llm, samples, features)
    return (peak_bytes(args.device) - before) / 2**20


def peak_bytes(device: str) -> int:
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--hidden", type=int, default=512, help="width of the Llama")
    parser.add_argument("--layers", type=int, default=1)
    parser.add_argument("--batches", type=int, default=1, help="per source")
    parser.add_argument("--batch-fraction", type=float, default=1.0, help="of the recipe's batch per GPU")
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--only", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.only:
        way, checkpointing = json.loads(args.only)
        sys.stdout.write(json.dumps(measure_memory(args, way, checkpointing)))
        return
    report_speed(measure_speed(args))
    for way, checkpointing in ((way, flag) for flag in (False, True) for way in WAYS if args.memory):
        command = [sys.executable, __file__, *sys.argv[1:], "--only", json.dumps([way, checkpointing])]
        mebibytes = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        name = f"{way}, gradient checkpointing" if checkpointing else way
        sys.stdout.write(f"peak memory of a step of video captions, {name}: {mebibytes:.0f} MiB\n")


if __name__ == "__main__":
    main()
