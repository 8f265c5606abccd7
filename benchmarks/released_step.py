"""Compare a training step of the language model with the way of the paper's released code: time and memory.

Run: python benchmarks/released_step.py [--head gmm16] [--rounds 3] [--memory] [--tiny]; further options are sizes

The released way, written anew: rows are padded to the maximum of their source (1400, 180, 300, 180 tokens), attention
gets a mask of all pairs in float32, logits are computed at all positions, the head's loss is torch's mixture, and the
head also runs on one clip in batches that generate none. Both ways have the same weights and optimizer, take the same
samples in turn with one thread, and must get the same loss.

Time is processor time, the median of `--rounds`. Memory is what a step adds to the peak of a process of its own that
has weights, gradients and moments already. JSON on stdout holds the ratios, the released way's figure divided by
ours, of each source and of the mixture.
"""

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal
from torch.nn import functional

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.mixture import SOURCES, Source
from benchmarks.plain_loops import PaddedBatch, PlainVideoLLM
from benchmarks.training_step import HEADS, Samples, Way, build_ways, draw
from divot_lightning.training.reporting.process_memory import peak_bytes

SMALL = {"hidden": 256, "layers": 2, "vocabulary": 8000, "queries": 64, "features": 64, "batch_fraction": 0.25}
TINY = {"hidden": 64, "layers": 1, "vocabulary": 50, "queries": 4, "features": 8, "batch_fraction": 0.1}
FIXED = {"device": "cpu", "pool": 1, "plain_adamw": "default"}
WAYS = ("ours", "released")


class ReleasedVideoLLM(PlainVideoLLM):
    """Computes at every position of rows that are padded to a fixed length."""

    def _hidden(self, embeds_BLD: Tensor, batch: PaddedBatch) -> Tensor:
        length = embeds_BLD.shape[1]
        causal = torch.ones(length, length, dtype=torch.bool).tril()
        seen = causal | (batch.query_BL[:, :, None] & batch.query_BL[:, None, :])
        mask = torch.zeros(seen.shape).masked_fill(~seen, torch.finfo(torch.float32).min)[:, None]
        return self.llm.base_model(inputs_embeds=embeds_BLD, attention_mask=mask, use_cache=False).last_hidden_state

    def _text_loss(self, hidden_BLD: Tensor, labels_BL: Tensor) -> Tensor:
        logits = self.llm.get_output_embeddings()(hidden_BLD).float()
        return functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels_BL[:, 1:].flatten())

    def _unused_head(self, hidden_BLD: Tensor) -> Tensor:
        return self.head(hidden_BLD[0, : len(self.queries)]).sum()

    def _head_loss(self, hidden_ND: Tensor, target_NC: Tensor) -> Tensor:
        outputs = self.head(hidden_ND)
        if self.components is None:
            return functional.mse_loss(outputs, target_NC)
        parts, width = self.components, target_NC.shape[1]
        means, raw, logits = outputs.split([parts * width, parts * width, parts], dim=1)
        spread = functional.softplus(raw).clamp(min=1e-5).sqrt().unflatten(1, (parts, width))
        each = Independent(Normal(means.unflatten(1, (parts, width)), spread), 1)
        return -MixtureSameFamily(Categorical(logits=logits), each).log_prob(target_NC).mean() / width


def released(ways: dict[str, Way], maximum: int) -> Way:
    """Return the released way, with the weights and the optimizer's settings of the plain loop."""
    plain = ways["plain"]
    ours: Any = ways["ours"].model
    model = ReleasedVideoLLM(ours)
    settings = {name: plain.optimizer.defaults[name] for name in ("lr", "betas", "eps", "weight_decay")}
    optimizer = torch.optim.AdamW(model.parameters(), **settings)

    def padded(samples: Samples) -> PaddedBatch:
        batch = plain.lay_out(samples)
        missing = (0, maximum - batch.ids_BL.shape[1])
        values = zip(vars(batch).values(), (0, -100, False, False), strict=True)
        return PaddedBatch(*(functional.pad(value, missing, value=fill) for value, fill in values))

    return Way(model, optimizer, padded)


def measure(source: Source, given: argparse.Namespace) -> dict[str, float]:
    """Return the median seconds of a step of each way."""
    ways, draws = build_ways(given, given.head), np.random.default_rng(0)
    both = {"ours": ways["ours"], "released": released(ways, source.maximum)}
    seconds: dict[str, list[float]] = {name: [] for name in both}
    for number in range(given.rounds + 1):
        samples = draw(source, draws, given)
        steps = {name: both[name].step(samples) for name in list(both)[:: 1 if number % 2 else -1]}
        if number:  # the first step allocates memory
            for name, (spent, _) in steps.items():
                seconds[name].append(spent)
        else:
            torch.testing.assert_close(*(steps[name][1] for name in both), rtol=1e-4, atol=1e-4)
    return {name: statistics.median(values) for name, values in seconds.items()}


def added_memory(name: str, source: Source, given: argparse.Namespace) -> int:
    """Return by how much a step on a whole batch raises the peak of this process."""
    ways, draws = build_ways(given, given.head), np.random.default_rng(0)
    way = released(ways, source.maximum) if name == "released" else ways["ours"]
    ways.clear()
    samples = draw(source, draws, given)
    for parameter in way.model.parameters():
        parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
    way.optimizer.step()  # makes the moments
    before = peak_bytes()
    way.step(samples)
    return peak_bytes() - before


def memory_in_a_process(name: str, source: Source) -> int:
    words = [sys.executable, __file__, *sys.argv[1:], "--only", name, source.name]
    return int(subprocess.run(words, check=True, capture_output=True, text=True).stdout)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--head", default="gmm16", choices=list(HEADS))
    parser.add_argument("--rounds", type=int, default=3)
    for name, value in SMALL.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(value), default=value)
    parser.add_argument("--memory", action="store_true", help="also measure memory")
    parser.add_argument("--tiny", action="store_true", help="smallest sizes, to test this script")
    parser.add_argument("--only", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    vars(given).update({**FIXED, **(TINY if given.tiny else {})})
    torch.set_num_threads(1)
    named = {source.name: source for source in SOURCES}
    if given.only:
        sys.stdout.write(str(added_memory(given.only[0], named[given.only[1]], given)))
        return
    result: dict[str, Any] = {}
    seconds = {name: measure(source, given) for name, source in named.items()}
    for name, source in named.items():
        result[name] = {"time": seconds[name]["released"] / seconds[name]["ours"]}
        if given.memory:
            memory = {way: memory_in_a_process(way, source) for way in WAYS}
            result[name]["memory"] = memory["released"] / max(1, memory["ours"])
            result[name]["MiB"] = {way: round(memory[way] / 2**20, 1) for way in WAYS}
    sums = {way: sum(source.weight * seconds[name][way] for name, source in named.items()) for way in WAYS}
    result["mixture"] = {"time": sums["released"] / sums["ours"]}
    json.dump({**{name: getattr(given, name) for name in SMALL}, **result}, sys.stdout, indent=2)
    print()


if __name__ == "__main__":
    main()
