"""Compare generation heads on tokens that share one unknown number, without tokenizer, language model and pictures.

Run: `python benchmarks/shared_unknown.py [--steps 400] [--seeds 0 1 2] [--only gmm mse] [--output results.json]`

A clip has a class out of four, a number u in [-1, 1], and 8 tokens of width 8: token q is sin(w_q u + b_q,class) plus
noise of 0.05, where w and b are fixed and random. A caption names the class in half of the clips and never u. The
hidden states of the head are a learned table of caption and token, so a head that learns the distribution of a clip is
perfect, and one that learns only the distribution of each token is not. Everything is measured exactly: class and u
of a token are those of the nearest point of all curves.

- valid: fraction of clips whose tokens all show one class and nearly one u (within 0.25 of their median)
- named: fraction of clips of captions with a class that are valid and show it
- tv: total variation distance between the classes of valid clips of open captions and the uniform distribution
- spread: standard deviation of u over valid clips, relative to the data; 0 for one answer per caption
- apart: root of the variance of u within a clip, relative to tokens that choose u independently: 0 together, 1 apart
- off: root mean square distance of a token to its nearest curve, relative to the noise; 1 is that of the data
"""

import argparse
import json
import math
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from divot_heads.autoregressive_flow import AutoregressiveFlowHead
from divot_heads.diffusion import DiffusionHead
from divot_heads.energy import EnergyHead
from divot_heads.flow_clip import FlowClipHead
from divot_heads.flow_token import FlowTokenHead
from divot_heads.gmm import GMMHead
from divot_heads.meanflow import MeanFlowHead
from divot_heads.mse import MSEHead
from divot_lightning.parts.heads import GenerationHead

CLASSES, TOKENS, WIDTH, HIDDEN, NOISE = 4, 8, 8, 32, 0.05
BATCH, SAMPLED = 64, 512
SMALL = {"width": 64, "depth": 2}
HEADS: dict[str, Callable[[], GenerationHead]] = {
    "mse": lambda: MSEHead(HIDDEN, WIDTH),
    "diffusion_eps": lambda: DiffusionHead(HIDDEN, WIDTH, prediction="epsilon", **SMALL),
    "diffusion_v": lambda: DiffusionHead(HIDDEN, WIDTH, prediction="v", **SMALL),
    "flow_token": lambda: FlowTokenHead(HIDDEN, WIDTH, **SMALL),
    "energy": lambda: EnergyHead(HIDDEN, WIDTH, **SMALL),
    "meanflow": lambda: MeanFlowHead(HIDDEN, WIDTH, **SMALL),
    "gmm, K 1": lambda: GMMHead(HIDDEN, WIDTH, num_components=1),
    "gmm, K 4": lambda: GMMHead(HIDDEN, WIDTH, num_components=4),
    "gmm": lambda: GMMHead(HIDDEN, WIDTH),
    "gmm, variance 1": lambda: GMMHead(HIDDEN, WIDTH, variance_scale=1.0),
    "gmm_low_rank": lambda: GMMHead(HIDDEN, WIDTH, covariance_rank=2),
    "gmm_shared": lambda: GMMHead(HIDDEN, WIDTH, shared_component=True),
    "gmm_shared, K 64": lambda: GMMHead(HIDDEN, WIDTH, num_components=64, shared_component=True),
    "flow_clip": lambda: FlowClipHead(HIDDEN, WIDTH, num_attention_heads=4, **SMALL),
    "autoregressive_flow": lambda: AutoregressiveFlowHead(HIDDEN, WIDTH, width=64, num_attention_heads=4),
}


class World:
    """The curves of all tokens, and what lies on them.

    Shape letters: B clips, Q tokens, C width, Y classes, G points of a curve.
    """

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        self.rates_QC = torch.empty(TOKENS, WIDTH).uniform_(1.0, 2.5, generator=generator)
        self.phases_YQC = torch.rand(CLASSES, TOKENS, WIDTH, generator=generator) * 2 * math.pi
        self.numbers_G = torch.linspace(-1, 1, 101)
        self.curves_QYGC = self.tokens(
            torch.arange(CLASSES).repeat_interleave(101), self.numbers_G.repeat(CLASSES)
        ).view(CLASSES, 101, TOKENS, WIDTH).permute(2, 0, 1, 3)  # fmt: skip

    def tokens(self, class_B: Tensor, number_B: Tensor) -> Tensor:
        """Return tokens without noise, (B, Q, C)."""
        return torch.sin(self.rates_QC * number_B[:, None, None] + self.phases_YQC[class_B])

    def sample(self, count: int) -> tuple[Tensor, Tensor]:
        """Sample captions (a class, or `CLASSES` for open ones) and the tokens of their clips."""
        class_B = torch.randint(CLASSES, (count,))
        tokens_BQC = self.tokens(class_B, torch.rand(count) * 2 - 1) + NOISE * torch.randn(count, TOKENS, WIDTH)
        return torch.where(torch.rand(count) < 0.5, class_B, CLASSES), tokens_BQC

    def read(self, tokens_BQC: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return class, number and squared distance of the nearest point for each token, (B, Q) each."""
        flat_QNC = self.curves_QYGC.flatten(1, 2)
        distances_QBN = torch.cdist(tokens_BQC.transpose(0, 1), flat_QNC)
        nearest_QB = distances_QBN.min(dim=-1)
        class_BQ, point_BQ = nearest_QB.indices.T // len(self.numbers_G), nearest_QB.indices.T % len(self.numbers_G)
        return class_BQ, self.numbers_G[point_BQ], nearest_QB.values.T.square()


def measure(world: World, caption_B: Tensor, tokens_BQC: Tensor) -> dict[str, float]:
    """Return all scores of clips."""
    class_BQ, number_BQ, squared_BQ = world.read(tokens_BQC)
    median_B1 = number_BQ.median(dim=1, keepdim=True).values
    one_class_B = (class_BQ == class_BQ[:, :1]).all(dim=1)
    valid_B = one_class_B & ((number_BQ - median_B1).abs() < 0.25).all(dim=1)
    named_B, valid_open_B = caption_B < CLASSES, (caption_B == CLASSES) & valid_B
    # u has the standard deviation 1 / sqrt(3).
    spread = median_B1[valid_B].std(correction=0).item() * 3**0.5 if valid_B.any() else math.nan
    frequencies = torch.bincount(class_BQ[valid_open_B, 0], minlength=CLASSES) / valid_open_B.sum()
    return {
        "valid": valid_B.float().mean().item(),
        "named": (valid_B & (class_BQ[:, 0] == caption_B))[named_B].float().mean().item(),
        "tv": (frequencies - 1 / CLASSES).abs().sum().item() / 2,
        "spread": spread,
        "apart": (number_BQ.var(dim=1).mean() / number_BQ.var()).sqrt().item(),
        "off": (squared_BQ.mean() / WIDTH).sqrt().item() / NOISE,
    }


def run(name: str, seed: int, steps: int, world: World) -> dict[str, float]:
    """Train a head and measure its samples."""
    torch.manual_seed(seed)
    table, head = nn.Embedding((CLASSES + 1) * TOKENS, HIDDEN), HEADS[name]()
    parameters = [*table.parameters(), *head.parameters()]
    optimizer, started = torch.optim.Adam(parameters, lr=4e-3), time.process_time()

    def hidden(caption_B: Tensor) -> Tensor:
        return table(caption_B[:, None] * TOKENS + torch.arange(TOKENS))

    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 4e-3 * (1 - step / steps)
        caption_B, tokens_BQC = world.sample(BATCH)
        optimizer.zero_grad()
        head(hidden(caption_B), tokens_BQC).backward()
        optimizer.step()
    seconds = time.process_time() - started
    head.eval()
    torch.manual_seed(1000 + seed)
    caption_B, _ = world.sample(SAMPLED)
    with torch.no_grad():
        scores = measure(world, caption_B, head.sample(hidden(caption_B)))
    return scores | {"cpu_s": seconds, "parameters": sum(value.numel() for value in head.parameters())}


def main() -> None:
    """Print a row per head and seed, the data first."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--only", nargs="+", choices=HEADS, default=list(HEADS))
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    world = World()
    torch.manual_seed(0)
    rows = [{"head": "data", "seed": 0, **measure(world, *world.sample(SAMPLED))}]
    print(json.dumps(rows[0]))
    for seed in args.seeds:
        for name in args.only:
            rows.append({"head": name, "seed": seed, "steps": args.steps, **run(name, seed, args.steps, world)})
            print(json.dumps({k: round(v, 3) if isinstance(v, float) else v for k, v in rows[-1].items()}), flush=True)
            if args.output:
                args.output.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
