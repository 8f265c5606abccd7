"""Compare training steps with loops that one would write without this library.

Run: python benchmarks/training_step.py [--parts llm stages] [--heads gmm16 gmm2 mse] [--device cuda] [--tiny]

llm: forward, backward, clipping and AdamW of a `VideoLLM` with packed rows, as the stages train it, beside a loop
around the model of `transformers` (`plain_loops.py`). The sources and their lengths are those of `packing.py`. Both
ways take the same samples in pools of `--pool` batches. Ours takes them as drawn and packs rows; the loop sorts the
pool by length and pads each batch to its longest sample. Before that, both ways take one step with the same weights on
the same batch, and must get the same loss and the same weights.

"floor" is the time of what no loop can leave out: the products of all linear layers with useful tokens alone, causal
attention sample by sample, and the optimizer. The time of the loop divided by it is the best ratio that is possible.

stages: steps of tokenizer pretraining and of de-tokenizer refinement of the toy, as `divot fit` runs them, beside a
plain loop with the same modules, data, random numbers and optimizer; both must get the same losses.

All ways run in turn with one thread. Times are processor time on a CPU and wall time on a GPU. Ratios are medians over
`--rounds` with their range; above 1 ours is faster, except in the second part, where below 1 ours is faster.
"""

import argparse
import copy
import statistics
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import AdamW, Optimizer

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.mixture import LONGEST, SOURCES, Source
from benchmarks.packing import now
from benchmarks.plain_loops import PaddedBatch, PlainVideoLLM
from benchmarks.stage_steps import measure_stages
from divot_datamodules.toy.text_tokenizer import word_level_tokenizer
from divot_heads.gmm import GMMHead
from divot_heads.mse import MSEHead
from divot_lightning.models.video_llm.model import VideoLLM, VideoLLMConfig
from divot_lightning.parts.segments import Clips, Segment
from divot_lightning.parts.sequences.collator import lay_out
from divot_lightning.parts.sequences.rows import SequenceBatch
from divot_lightning.parts.sequences.tokens import TokenKind
from divot_lightning.training.optimization import trained_parameters
from divot_optimizers.adamw import AdamWOptimizer

HEADS: dict[str, Any] = {
    "gmm16": GMMHead,
    "gmm2": partial(GMMHead, num_components=2),
    "mse": MSEHead,
}
Samples = list[tuple[list[Segment], Tensor]]


def build(args: argparse.Namespace, head: str) -> VideoLLM:
    torch.manual_seed(0)
    sizes = {"hidden_size": args.hidden, "intermediate_size": 4 * args.hidden, "num_hidden_layers": args.layers}
    sizes |= {"num_attention_heads": args.hidden // 64, "num_key_value_heads": args.hidden // 64}
    with tempfile.TemporaryDirectory() as folder:
        word_level_tokenizer(["word", *map(str, range(args.vocabulary))]).save_pretrained(folder)
        config = VideoLLMConfig(
            language_model_config={"model_type": "llama", **sizes},
            text_tokenizer=folder,
            num_queries=args.queries,
            feature_dim=args.features,
            max_length=LONGEST,
            packing=True,
        )
        return VideoLLM(config, HEADS[head]).train().to(args.device)


class Way:
    """A model with its optimizer."""

    def __init__(self, model: nn.Module, optimizer: Optimizer, lay_out: Callable[[Samples], Any]) -> None:
        self.model, self.optimizer, self.lay_out = model, optimizer, lay_out

    def step(self, samples: Samples) -> tuple[float, float]:
        """Train on a batch; return seconds, without those of the layout, which the data workers do, and the loss."""
        rows, features = self.lay_out(samples), torch.cat([features for _, features in samples])
        started = now(features)
        self.optimizer.zero_grad()
        output = self.model(rows, features)
        loss = output if isinstance(output, Tensor) else output.text_loss + output.head_loss
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        return now(features) - started, loss.item()


def build_ways(args: argparse.Namespace, head: str) -> dict[str, Way]:
    ours = build(args, head)
    plain = PlainVideoLLM(ours)
    settings = AdamWOptimizer(lr=1e-4, weight_decay=0.05, decayed="all")
    same = {"lr": settings.lr, "betas": settings.betas, "eps": settings.eps, "weight_decay": settings.weight_decay}
    fused = None if args.plain_adamw == "default" else True

    def padded(samples: Samples) -> PaddedBatch:
        segments = [words for words, _ in samples]
        rows = lay_out(segments, ours.special, ours.text_tokenizer, ours.config.layout(None))
        return PaddedBatch.of(rows, args.device)

    def packed(samples: Samples) -> SequenceBatch:
        return ours.sequences([segments for segments, _ in samples])

    least = copy.deepcopy(ours)
    return {
        "ours": Way(ours, settings.build(trained_parameters(ours)), packed),
        "plain": Way(plain, AdamW(plain.parameters(), fused=fused, **same), padded),
        "floor": Way(least, AdamW(least.parameters(), fused=True, **same), packed),
    }


def draw(source: Source, draws: np.random.Generator, args: argparse.Namespace) -> Samples:
    """Draw a pool of samples, each with the features of its clips."""
    samples: Samples = []
    for _ in range(args.pool * source.batch_of(args.batch_fraction)):
        segments = source.sample(draws)
        clips = sum(segment.count for segment in segments if isinstance(segment, Clips))
        samples.append((segments, torch.randn(clips, args.queries, args.features, device=args.device)))
    return samples


def batches(samples: Samples, size: int) -> list[Samples]:
    return [samples[start : start + size] for start in range(0, len(samples), size)]


def compare(ways: dict[str, Way], samples: Samples) -> None:
    """Take a step with both ways, which have the same weights, and require the same loss and weights."""
    losses = {name: ways[name].step(samples)[1] for name in ("ours", "plain")}
    torch.testing.assert_close(losses["ours"], losses["plain"], rtol=1e-5, atol=1e-5)
    ours, plain = ways["ours"].model, ways["plain"].model
    assert isinstance(ours, VideoLLM)
    assert isinstance(plain, PlainVideoLLM)
    pairs = [(ours.causal_lm, plain.llm), (ours.input_projector, plain.projector), (ours.head.proj, plain.head)]
    with torch.no_grad():
        for one, other in pairs:
            for value, expected in zip(one.parameters(), other.parameters(), strict=True):
                # AdamW turns the rounding of gradients near zero into steps of up to the learning rate.
                assert (value - expected).abs().mean() < 1e-6
                value.copy_(expected)


def floor(way: Way, samples: Samples) -> float:
    """Return the time of a step's products with useful tokens alone, and of its optimizer; see the module."""
    llm, rows = way.model, way.lay_out(samples)
    assert isinstance(llm, VideoLLM)
    counts = {llm.causal_lm.base_model: rows.num_tokens, llm.causal_lm.get_output_embeddings(): rows.num_text_targets}
    counts[llm.input_projector] = len(rows.where(TokenKind.READ))
    counts[llm.head] = max(1, len(rows.where(TokenKind.QUERY)))
    lengths = torch.bincount(rows.samples_BL[rows.samples_BL >= 0]).tolist()
    work = [
        lambda layer=layer, count=count: functional.linear(_values(llm, count, layer.in_features), layer.weight)
        for module, count in counts.items()
        for layer in module.modules()
        if isinstance(layer, nn.Linear) and count
    ]
    config = llm.causal_lm.config
    work += [lambda length=length: _attend(llm, length) for length in lengths] * config.num_hidden_layers
    started = now(llm.feature_mean_C)
    way.optimizer.zero_grad()
    for part in work:
        output = part()
        output.backward(output.detach())
    way.optimizer.step()
    return now(llm.feature_mean_C) - started


def _values(llm: VideoLLM, *shape: int) -> Tensor:
    return torch.ones(shape, device=llm.feature_mean_C.device, requires_grad=True)


def _attend(llm: VideoLLM, length: int) -> Tensor:
    config = llm.causal_lm.config
    heads = (config.num_attention_heads, length, config.hidden_size // config.num_attention_heads)
    queries, keys, values = (_values(llm, 1, *heads) for _ in range(3))
    return functional.scaled_dot_product_attention(queries, keys, values, is_causal=True)


def measure_source(ways: dict[str, Way], samples: Samples, size: int) -> dict[str, float]:
    """Return the seconds of each way, and of the floor, for the batches of a pool."""
    by_length = sorted(samples, key=lambda sample: len(ways["plain"].lay_out([sample]).ids_BL[0]))
    pools = {"ours": batches(samples, size), "plain": batches(by_length, size)}
    seconds = dict.fromkeys(ways, 0.0)
    for number, pair in enumerate(zip(*pools.values(), strict=True)):
        for name, batch in list(zip(pools, pair, strict=True))[:: 1 if number % 2 else -1]:
            seconds[name] += ways[name].step(batch)[0]
        seconds["floor"] += floor(ways["floor"], pair[0])
    return seconds


def measure_llm(args: argparse.Namespace, head: str) -> None:
    """Print the ratios of each source and of the mixture."""
    ways, draws = build_ways(args, head), np.random.default_rng(0)
    rounds: list[list[dict[str, float]]] = []
    for _ in range(args.rounds + 1):  # the first one allocates memory, and is not counted
        rounds.append([])
        for source in SOURCES:
            samples = draw(source, draws, args)
            if len(rounds) == 1:
                compare(ways, batches(samples, source.batch_of(args.batch_fraction))[0])
            else:
                rounds[-1].append(measure_source(ways, samples, source.batch_of(args.batch_fraction)))
    named = {source.name: [one[index] for one in rounds[1:]] for index, source in enumerate(SOURCES)}
    named["mixture"] = [
        {name: sum(s.weight * part[name] for s, part in zip(SOURCES, one, strict=True)) for name in one[0]}
        for one in rounds[1:]
    ]
    for name, parts in named.items():
        ours, best = ([part["plain"] / part[way] for part in parts] for way in ("ours", "floor"))
        seconds = statistics.median(part["ours"] for part in parts) / args.pool
        write(f"{head:<6} {name:<15} plain / ours {spread(ours)}; plain / floor {spread(best)}; ours {seconds:.2f} s")


def spread(ratios: list[float]) -> str:
    return f"{statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})"


def write(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--parts", nargs="*", default=["llm", "stages"], choices=["llm", "stages"])
    parser.add_argument("--heads", nargs="*", default=list(HEADS), choices=list(HEADS))
    parser.add_argument("--hidden", type=int, default=512, help="width of the Llama")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--vocabulary", type=int, default=32_000)
    parser.add_argument("--queries", type=int, default=64)
    parser.add_argument("--features", type=int, default=256)
    parser.add_argument("--pool", type=int, default=4, help="batches that the plain loop sorts by length")
    parser.add_argument("--batch-fraction", type=float, default=0.5, help="of the recipe's batch per GPU")
    parser.add_argument("--plain-adamw", default="fused", choices=["fused", "default"], help="torch's kernel")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=20, help="of a stage in a round")
    parser.add_argument("--tiny", action="store_true", help="smallest sizes, to test this script")
    args = parser.parse_args()
    if args.tiny:
        tiny = {"hidden": 64, "layers": 1, "vocabulary": 50, "queries": 4, "features": 8, "pool": 2, "rounds": 1}
        vars(args).update(tiny, batch_fraction=0.1, steps=3)
    torch.set_num_threads(1)
    for head in args.heads if "llm" in args.parts else ():
        measure_llm(args, head)
    if "stages" in args.parts:
        for name, ratios in measure_stages(args.rounds, args.steps, args.device).items():
            write(f"{name}: divot fit / plain {spread(ratios)}")


if __name__ == "__main__":
    main()
