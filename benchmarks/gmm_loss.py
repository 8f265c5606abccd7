"""Compare the GMM loss with other ways to compute it: time and peak memory, forward and backward.

Run: python benchmarks/gmm_loss.py [--device cpu] [--tokens 2048] [--components 16] [--width 256]

- torch.distributions: torch's mixture, as in the released code.
- direct: what a careful user would write, the log-likelihood of all components at once and their logsumexp.
- direct in parts: the same for 64 tokens at a time, each part computed again in the backward pass.

The ways run in turn with one thread. Time is processor time on a CPU and wall time on a GPU, the median of `--repeats`
rounds. For its memory, each runs once more in a process of its own. Peak memory is that of the step beyond its inputs:
on a CPU the rise of the process's peak resident size, on a GPU the rise of the allocator's peak. The table ends with
the ratios, which can be compared between machines.
"""

import argparse
import math
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal
from torch.utils.checkpoint import checkpoint

from divot_heads.gmm_likelihood import gmm_nll, split_gmm_params
from divot_lightning.training.reporting import process_memory

OURS = "divot_heads.gmm"
TOKENS_AT_ONCE = 64


def torch_distributions_nll(params_NP: Tensor, target_NC: Tensor, num_components: int) -> Tensor:
    means_NKC, variances_NKC, logits_NK = split_gmm_params(params_NP, num_components)
    mixture = MixtureSameFamily(Categorical(logits=logits_NK), Independent(Normal(means_NKC, variances_NKC.sqrt()), 1))
    return -mixture.log_prob(target_NC).mean() / target_NC.shape[-1]


def direct_nll(params_NP: Tensor, target_NC: Tensor, num_components: int) -> Tensor:
    return direct_sum(params_NP, target_NC, num_components) / target_NC.numel()


def direct_sum(params_NP: Tensor, target_NC: Tensor, num_components: int) -> Tensor:
    means_NKC, variances_NKC, logits_NK = split_gmm_params(params_NP, num_components)
    squares_NK = ((target_NC[:, None] - means_NKC).square() / variances_NKC + variances_NKC.log()).sum(dim=-1)
    constant = target_NC.shape[-1] * math.log(2 * math.pi)
    return -(logits_NK.log_softmax(dim=-1) - 0.5 * (squares_NK + constant)).logsumexp(dim=-1).sum()


def direct_nll_in_parts(params_NP: Tensor, target_NC: Tensor, num_components: int) -> Tensor:
    pairs = zip(params_NP.split(TOKENS_AT_ONCE), target_NC.split(TOKENS_AT_ONCE), strict=True)
    parts = [checkpoint(direct_sum, *pair, num_components, use_reentrant=False) for pair in pairs]
    return torch.stack(parts).sum() / target_NC.numel()


LOSSES: dict[str, Callable[[Tensor, Tensor, int], Tensor]] = {
    "torch.distributions": torch_distributions_nll,
    "direct": direct_nll,
    "direct in parts": direct_nll_in_parts,
    OURS: gmm_nll,
}


class Step:
    """A forward and a backward pass of a loss on random numbers."""

    def __init__(self, options: argparse.Namespace, tokens: int) -> None:
        torch.manual_seed(0)
        size = options.components * (2 * options.width + 1)
        self.params_NP = torch.randn(tokens, size, device=options.device, requires_grad=True)
        self.target_NC = torch.randn(tokens, options.width, device=options.device)
        self.device, self.components = options.device, options.components

    def run(self, name: str) -> float:
        self.params_NP.grad = None
        loss = LOSSES[name](self.params_NP, self.target_NC, self.components)
        loss.backward()
        return loss.item()

    def seconds(self, name: str) -> float:
        start = now(self.device)
        self.run(name)
        return now(self.device) - start


def now(device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.process_time()


def rise_of_memory(name: str, options: argparse.Namespace) -> int:
    step = Step(options, options.tokens)
    Step(options, 2).run(name)  # so that loading code is not counted
    before = peak_bytes(options.device)
    step.run(name)
    return peak_bytes(options.device) - before


def peak_bytes(device: str) -> int:
    return torch.cuda.max_memory_allocated() if device == "cuda" else process_memory.peak_bytes()


def memory_in_a_process(name: str) -> int:
    words = [sys.executable, __file__, *sys.argv[1:], "--only", name]
    return int(subprocess.run(words, check=True, capture_output=True, text=True).stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--components", type=int, default=16)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--only", choices=list(LOSSES), help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.only:
        sys.stdout.write(str(rise_of_memory(options.only, options)))
        return
    step = Step(options, options.tokens)
    losses = {name: step.run(name) for name in LOSSES}
    rounds = [{name: step.seconds(name) for name in LOSSES} for _ in range(options.repeats)]
    seconds = {name: statistics.median(each[name] for each in rounds) for name in LOSSES}
    memory = {name: memory_in_a_process(name) for name in LOSSES}
    for name in LOSSES:
        ratios = f"{seconds[name] / seconds[OURS]:.2f} of our time, {memory[name] / memory[OURS]:.2f} of our memory"
        found = f"{1e3 * seconds[name]:9.1f} ms {memory[name] / 2**20:9.0f} MiB  loss {losses[name]:.6f}"
        sys.stdout.write(f"{name:<20} {found}  {ratios}\n")


if __name__ == "__main__":
    main()
