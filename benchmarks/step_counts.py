"""Count the arithmetic of LLM training steps: which ratio to a plain loop is possible; `training_step.py` times them.

Run: python benchmarks/step_counts.py [--batch-fraction 1.0] [--pool 4] [--pools 50]

Each line compares the plain loop of `training_step.py`, which sorts pools of `--pool` batches by length and pads each
batch to its longest sample, with other ways. The ratio is that of the operations (multiplications and additions) of all
matrix products, forward and backward:

- dense: packed rows and a dense mask, with which all scores of a row are computed: `llm.attention: sdpa`;
- cpu: the same for generation, and samples one by one for captions: `llm.attention: auto` on a CPU;
- blocks: packed rows and only scores that the mask allows: what FlexAttention comes near to on CUDA;
- floor: neither padding nor forbidden scores, which no loop can beat.

"tokens" and "scores" are what a way computes for each token and each allowed score that is needed. Lengths are those of
the mixture in `packing.py`. Not counted: the optimizer and all else that takes memory and not arithmetic.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.mixture import LONGEST, SOURCES, Source
from divot_lightning.parts.segments import Clips, Segment, Text
from divot_lightning.parts.sequences.row_packing import pack_rows

QUERIES, FEATURES, VOCABULARY = 64, 256, 32_000
WAYS = ("plain", "dense", "cpu", "blocks", "floor")


@dataclass(frozen=True)
class Model:
    """Sizes of a language model and its head.

    Attributes:
        width: D.
        layers: Of the language model.
        per_layer: Elements of the matrices of a layer.
        passes: Products of a matrix with the tokens: forward, and backward to the inputs and, if trained, the weights.
        components: K of the head; 0 for regression.
    """

    width: int
    layers: int
    per_layer: int
    passes: int
    components: int

    def operations(self, tokens: float, scores: float, predicted: float, targets: float) -> float:
        """Return those of a step.

        Args:
            tokens: That pass through the layers.
            scores: Pairs of positions in the attention: two products forward and five backward.
            predicted: Tokens that pass through the head.
            targets: Of the next-word loss.
        """
        outputs = 2 * self.components * FEATURES + self.components if self.components else FEATURES
        head = self.width * outputs + outputs**2
        layers = self.layers * (2 * self.passes * self.per_layer * tokens + 2 * 7 * self.width * scores)
        return layers + 6 * head * predicted + 6 * self.width * VOCABULARY * targets


def sizes(width: int, mlp: int, layers: int, passes: int, components: int, key_width: int | None = None) -> Model:
    attention = 2 * width * (width + (key_width or width))
    return Model(width, layers, attention + 3 * width * mlp, passes, components)


MODELS = {
    "512 x 4, K 16": sizes(512, 2048, 4, 3, 16),
    "512 x 4, K 2": sizes(512, 2048, 4, 3, 2),
    "512 x 4, MSE": sizes(512, 2048, 4, 3, 0),
    "Mistral-7B with adapters, K 16": sizes(4096, 14336, 32, 2, 16, key_width=1024),
}


def length(segments: Sequence[Segment]) -> int:
    """Return the tokens of a sample: begin, end, and the marks of its clips and of each clip are tokens, too."""
    words = sum(len(segment.text.split()) for segment in segments if isinstance(segment, Text))
    return words + 4 + sum(segment.count * (QUERIES + 2) for segment in segments if isinstance(segment, Clips))


def allowed(tokens: int, source: Source) -> float:
    """Return the scores that the mask allows: half of all, and those of queries to later queries of their clip."""
    return (tokens**2 + (QUERIES**2 if source.generate else 0)) / 2


def count_batch(lengths: list[int], source: Source, width: int) -> dict[str, np.ndarray]:
    """Return tokens and scores of a batch by way; "plain" is that of these samples, sorted or not."""
    rows = pack_rows(lengths, LONGEST, width)
    longest = max(sum(lengths[number] for number in row) for row in rows)
    scores = sum(allowed(tokens, source) for tokens in lengths)
    # With the causal flag alone the kernels compute half of the scores.
    kernel = 1.0 if source.generate else 0.5
    padded = len(lengths) * max(lengths) ** 2 * kernel
    dense = len(rows) * longest**2 if len(rows) < len(lengths) else padded
    return {
        "plain": np.array([len(lengths) * max(lengths), padded]),
        "dense": np.array([len(rows) * longest, dense]),
        "cpu": np.array([len(rows) * longest, dense if source.generate or len(rows) == len(lengths) else scores]),
        "blocks": np.array([len(rows) * longest, scores]),
        "floor": np.array([sum(lengths), scores]),
    }


def count_source(source: Source, width: int, args: argparse.Namespace) -> dict[str, np.ndarray]:
    """Return the mean of tokens and scores of a step by way."""
    draws, size = np.random.default_rng(0), source.batch_of(args.batch_fraction)
    sums = {way: np.zeros(2) for way in WAYS}
    for _ in range(args.pools):
        lengths = [length(source.sample(draws)) for _ in range(args.pool * size)]
        for start in range(0, len(lengths), size):
            counts = count_batch(lengths[start : start + size], source, width)
            plain = count_batch(sorted(lengths)[start : start + size], source, width)
            for way, values in {**counts, "plain": plain["plain"]}.items():
                sums[way] += values
    return {way: values / (args.pools * args.pool) for way, values in sums.items()}


def compare(model: Model, args: argparse.Namespace) -> None:
    mixture = dict.fromkeys(WAYS, 0.0)
    for source in SOURCES:
        counts, samples = count_source(source, model.width, args), source.batch_of(args.batch_fraction)
        # The end is always a target, and the words of a caption are, too. Without a clip to generate, the head gets one
        # token.
        words = 1 if source.generate else 10 + source.more_words
        predicted = samples * QUERIES if source.generate else 1
        operations = {way: model.operations(*counts[way], predicted, samples * words) for way in WAYS}
        for way in WAYS:
            mixture[way] += source.weight * operations[way]
        needed = {way: counts[way] / counts["floor"] for way in ("plain", "dense")}
        detail = "; ".join(f"{way} tokens {tokens:.2f} scores {scores:.2f}" for way, (tokens, scores) in needed.items())
        write(source.name, operations, detail)
    write("mixture", mixture, "")


def write(name: str, operations: dict[str, float], detail: str) -> None:
    ratios = ", ".join(f"{way} {operations['plain'] / operations[way]:.3f}" for way in WAYS[1:])
    sys.stdout.write(f"  {name:<15} plain / {ratios}; {detail}".rstrip("; ") + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch-fraction", type=float, default=1.0, help="of the recipe's batch per GPU")
    parser.add_argument("--pool", type=int, default=4, help="batches that the plain loop sorts by length")
    parser.add_argument("--pools", type=int, default=50, help="that are drawn")
    args = parser.parse_args()
    for name, model in MODELS.items():
        sys.stdout.write(f"{name}\n")
        compare(model, args)


if __name__ == "__main__":
    main()
