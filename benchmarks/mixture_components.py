"""Count the components that a trained mixture head uses for given captions.

Run: `python benchmarks/mixture_components.py RUN [RUN ...] [--captions TEXT ...]`

For each run with the head `gmm` and each caption:

- used: exp of the entropy of the weights, mean over the tokens; 1 if one component has all the weight, K if all have
  the same. With a shared component the weights are those of the clip.
- between, within: variance of the components' means, weighted, and mean of their variances, per normalised channel
"""

import argparse
from collections.abc import Sequence

import torch
from torch import Tensor

from divot_heads.gmm import GMMHead
from divot_heads.gmm_variants import Mixture
from divot_lightning import load_run
from divot_lightning.errors import UserError

CAPTIONS = ("a shape moves", "a red cross moves", "a red cross moves slowly to the upper left")
"""Captions of the toy world that name nothing, two attributes and all four."""


def mixtures_of(run: str, captions: Sequence[str]) -> list[Mixture]:
    """Return the mixture of a run's head for each caption.

    Raises:
        UserError: The run's head is no mixture.
    """
    loaded = load_run(run)
    head = loaded.video_llm.head
    if not isinstance(head, GMMHead):
        raise UserError(f"the head of {run} is {type(head).__name__}; only runs with the head gmm have components")
    mixtures = []

    def recorded(hidden_BQD: Tensor, generators: Sequence[object], *, temperature: float) -> Tensor:
        mixtures.append(head._mixture(hidden_BQD))
        return hidden_BQD.new_zeros(len(generators), *hidden_BQD.shape[:2], head.feature_dim)

    head.sample_each = recorded  # type: ignore[method-assign,assignment]
    for caption in captions:
        list(loaded.generate([caption]))
    return mixtures


def usage(mixture: Mixture) -> tuple[float, float, float]:
    """Return used components, and the variances between and within them; see the text of this file."""
    logits_BQK = mixture.logits_BQK.mean(dim=1, keepdim=True) if mixture.shared else mixture.logits_BQK
    weights_BQK = logits_BQK.softmax(dim=-1)
    used = torch.distributions.Categorical(probs=weights_BQK).entropy().exp().mean()
    weights_BQK1 = weights_BQK.unsqueeze(-1)
    mean_BQ1C = (weights_BQK1 * mixture.means_BQKC).sum(dim=2, keepdim=True)
    between = (weights_BQK1 * (mixture.means_BQKC - mean_BQ1C).square()).sum(dim=2).mean()
    within = (weights_BQK1 * mixture.variances_BQKC).sum(dim=2).mean()
    return used.item(), between.item(), within.item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", metavar="RUN")
    parser.add_argument("--captions", nargs="+", default=CAPTIONS, metavar="TEXT")
    options = parser.parse_args()
    print("| run | caption | used | between | within |\n|---|---|---|---|---|")
    for run in options.runs:
        for caption, mixture in zip(options.captions, mixtures_of(run, options.captions), strict=True):
            used, between, within = usage(mixture)
            print(f"| {run} | {caption} | {used:.2f} | {between:.3f} | {within:.3f} |", flush=True)


if __name__ == "__main__":
    with torch.no_grad():
        main()
