"""Compare the GMM loss with torch.distributions' mixture: time and peak memory, forward and backward.

Run: python benchmarks/gmm_loss.py --device cpu --tokens 2048 --components 16 --width 256

Each implementation runs in a process of its own, so that their memory is separate. The table ends with the ratios,
which can be compared between machines. Peak memory is that of the step beyond its inputs: on a CPU the rise of the
process's peak resident size, on a GPU the rise of the allocator's peak.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal

from divot_heads.gmm_likelihood import gmm_nll, split_gmm_params


def torch_distributions_nll(params_NP: Tensor, target_NC: Tensor, num_components: int) -> Tensor:
    means_NKC, variances_NKC, logits_NK = split_gmm_params(params_NP, num_components)
    mixture = MixtureSameFamily(Categorical(logits=logits_NK), Independent(Normal(means_NKC, variances_NKC.sqrt()), 1))
    return -mixture.log_prob(target_NC).mean() / target_NC.shape[-1]


LOSSES: dict[str, Callable[[Tensor, Tensor, int], Tensor]] = {
    "torch.distributions": torch_distributions_nll,
    "divot_heads.gmm": gmm_nll,
}


def measure(name: str, device: str, tokens: int, components: int, width: int, repeats: int) -> dict[str, float]:
    torch.manual_seed(0)
    params_NP = torch.randn(tokens, 2 * components * width + components, device=device, requires_grad=True)
    target_NC = torch.randn(tokens, width, device=device)
    small = torch.randn(2, params_NP.shape[1], device=device, requires_grad=True)
    LOSSES[name](small, target_NC[:2], components).backward()  # so that loading code is not counted as memory
    before = peak_bytes(device)
    seconds = []
    for _ in range(repeats):
        params_NP.grad = None
        synchronize(device)
        start = time.perf_counter()
        loss = LOSSES[name](params_NP, target_NC, components)
        loss.backward()
        synchronize(device)
        seconds.append(time.perf_counter() - start)
    return {"seconds": sorted(seconds)[len(seconds) // 2], "bytes": peak_bytes(device) - before, "loss": loss.item()}


def peak_bytes(device: str) -> int:
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--components", type=int, default=16)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--only", choices=list(LOSSES), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.only:
        shape = (options.tokens, options.components, options.width)
        sys.stdout.write(json.dumps(measure(options.only, options.device, *shape, options.repeats)))
        return
    results = {}
    for name in LOSSES:
        command = [sys.executable, __file__, *sys.argv[1:], "--only", name]
        results[name] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        row = results[name]
        sys.stdout.write(
            f"{name:<20} {1e3 * row['seconds']:9.1f} ms {row['bytes'] / 2**20:9.0f} MiB  loss {row['loss']:.6f}\n"
        )
    theirs, ours = results["torch.distributions"], results["divot_heads.gmm"]
    ratios = {key: ours[key] / theirs[key] for key in ("seconds", "bytes")}
    sys.stdout.write(f"ratio ours / theirs: time {ratios['seconds']:.3f}, peak memory {ratios['bytes']:.3f}\n")


if __name__ == "__main__":
    main()
