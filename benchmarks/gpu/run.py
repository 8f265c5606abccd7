"""Measure the suite on one GPU within ten minutes: exactness first, then speed, memory and what preflight predicts.

Run: python benchmarks/gpu/run.py [--minutes 9] [--output benchmarks/results/gpu] [--only STEP ...]

It makes its own inputs and needs a checkout with the package installed, nothing else; weights are random. Each step is
a process of its own with a deadline, and its result is written as soon as it is there: a step that fails or takes too
long costs its own result alone. Steps train by `divot fit`, and the figures are those that every run logs
(`speed/...` in metrics.csv): medians over the steps after the first ones, which allocate memory, choose kernels and
count operations. Beside each peak of memory stands what `divot preflight` predicts for the same recipe.

`--device cpu --size tiny` is for the test of this script.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.gpu.measuring import (
    COUNTING,
    DIVOT,
    Result,
    logged,
    machine,
    memory_beside_preflight,
    preflight_and_fit,
    steady,
    train,
)
from benchmarks.gpu.workloads import SIZES, llm_recipe, tokenizer_recipe

RESULTS = Path(__file__).parents[1] / "results" / "gpu"
ROWS = 8
"""Logged steps of a training, besides those in which operations are counted."""

SHORTEST = 5.0
"""Seconds that are worth starting a step."""

GRACE = 5.0
"""Seconds after which a step is stopped that has not ended by its deadline."""

BAR = {"tokens_per_second": 14_110, "share_of_peak": 423 / 989}
"""Training of adapters for a language model with 7 to 8 billion weights on one H100, rows of 4096 tokens, as NVIDIA's
Automodel documents it."""


@dataclass(frozen=True)
class Setup:
    """Where a step works, on what, and until when (`time.monotonic`)."""

    folder: Path
    device: str
    size: str
    deadline: float

    @property
    def torch_device(self) -> str:
        """The device as torch calls it; Lightning's accelerator is `gpu`."""
        return "cuda" if self.device == "gpu" else "cpu"

    @property
    def inputs(self) -> Path:
        """Videos, pictures and the text tokenizer."""
        return self.folder / "inputs"

    @property
    def tokenizer(self) -> Path:
        """The run of the untrained tokenizer."""
        return self.folder / "tokenizer"


def inputs(setup: Setup) -> Result:
    """Make the inputs, and export an untrained tokenizer of the paper's size for the language model's stages."""
    from benchmarks.gpu.inputs import make_inputs

    sizes = SIZES[setup.size]
    make_inputs(setup.inputs, sizes["pixels"], sizes["samples"], sizes["words"])
    recipe = _tokenizer(setup, "tokenizer")
    path = setup.folder / "tokenizer.yaml"
    path.write_text(yaml.safe_dump(recipe))
    _divot(setup, "fit", "--config", str(path), "--trainer.max_steps", "0")
    return {}


def exactness(setup: Setup) -> Result:
    """Compare precisions and layouts of rows."""
    from benchmarks.gpu.exactness import check_heads, check_rows

    device, head_batch = setup.torch_device, SIZES[setup.size]["head_batch"]
    return {"heads, bfloat16 beside float32": check_heads(device, **head_batch), **check_rows(device)}


def block_masks(setup: Setup) -> Result:
    """Compare FlexAttention's block masks, which a GPU gets for packed rows, with 4D masks."""
    from benchmarks.gpu.exactness import check_block_mask

    return check_block_mask(setup.torch_device)


def compiled(setup: Setup) -> Result:
    """Compare compiled code with eager code."""
    from benchmarks.gpu.exactness import check_compiled

    return check_compiled(setup.torch_device)


def llm_packed(setup: Setup) -> Result:
    """Train the language model on captions of videos, in packed rows, of 4096 tokens at full size."""
    return _train(setup, _llm(setup, "llm_packed", packed_to=SIZES[setup.size]["row"])) | {"bar": BAR}


def llm_packed_dense(setup: Setup) -> Result:
    """Train the same with dense masks in place of block masks."""
    return _train(setup, _llm(setup, "llm_packed_dense", packed_to=SIZES[setup.size]["row"], attention="sdpa"))


def llm_mixture(setup: Setup) -> Result:
    """Train the language model on the paper's mixture of four sources."""
    return _train(setup, _llm(setup, "llm_mixture"))


def tokenizer_unet(setup: Setup) -> Result:
    """Train the tokenizer with DynamiCrafter's U-Net, with activation checkpointing."""
    return _train(setup, _tokenizer(setup, "tokenizer_unet"))


def tokenizer_unet_kept(setup: Setup) -> Result:
    """Train the same without activation checkpointing."""
    return _train(setup, _tokenizer(setup, "tokenizer_unet_kept", checkpointing=False))


def tokenizer_wan(setup: Setup) -> Result:
    """Train the tokenizer with Wan 1.3B and adapters."""
    return _train(setup, _tokenizer(setup, "tokenizer_wan", denoiser="wan"))


def head_losses(setup: Setup) -> Result:
    """Time the loss of the GMM head at the paper's size beside torch's mixture."""
    tokens = "2048" if setup.size == "full" else "64"
    script = Path(__file__).parents[1] / "gmm_loss.py"
    words = ["--device", setup.torch_device, "--tokens", tokens, "--components", "16", "--width", "256"]
    return {"table": _output(setup, [sys.executable, str(script), *words])}


def generation(setup: Setup) -> Result:
    """Time answers with and without cached keys and values, several questions, and encoding, by a short model."""
    recipe = _llm(setup, "untrained_llm", short=True)
    path, figures = setup.folder / "untrained_llm.yaml", setup.folder / "generation.json"
    path.write_text(yaml.safe_dump(recipe))
    _divot(setup, "fit", "--config", str(path), "--trainer.max_steps", "0")
    script, clips = Path(__file__).parents[1] / "generation.py", str(setup.inputs / "clips")
    words = [recipe["run"], "--detokenizer", str(setup.tokenizer), "--clips", clips, "--device", setup.torch_device]
    words += ["--dtype", "bfloat16", "--repeats", "2", "--only", "cache", "questions", "--output", str(figures)]
    _output(setup, [sys.executable, str(script), *words])
    found = json.loads(figures.read_text())
    return {name: found[name] for name in ("cache", "questions")}


def reconstruction(setup: Setup) -> Result:
    """Time `divot reconstruct` of four clips with 26 steps and with one: the difference is 25 steps of denoising."""
    seconds = {}
    for steps in (1, 26):
        began = time.monotonic()
        words = ["--output", str(setup.folder / f"clips{steps}"), "--steps", str(steps), "--device", setup.torch_device]
        _divot(setup, "reconstruct", str(setup.tokenizer), str(setup.inputs / "clips"), *words)
        seconds[steps] = time.monotonic() - began
    return {"seconds_of_25_steps": seconds[26] - seconds[1], "seconds_with_one_step": seconds[1]}


def zero2(setup: Setup) -> Result:
    """Train under ZeRO stage 2 with the optimizer in the host's memory, stop, and resume."""
    return _resumed(setup, "zero2", "divot_zero2_offload_torch")  # DeepSpeed's optimizer compiles for minutes


def zero3(setup: Setup) -> Result:
    """Train under ZeRO stage 3 with optimizer and parameters in the host's memory, stop, and resume."""
    return _resumed(setup, "zero3", "divot_zero3_offload_torch")


STEPS: dict[Callable[[Setup], Result], float] = {
    inputs: 60,
    exactness: 30,
    block_masks: 60,
    compiled: 45,
    llm_packed: 100,  # of which random weights take half a minute
    llm_mixture: 100,
    tokenizer_unet: 75,
    tokenizer_unet_kept: 60,
    tokenizer_wan: 75,
    head_losses: 20,
    generation: 75,
    reconstruction: 75,
    zero2: 75,
    zero3: 75,
    llm_packed_dense: 90,
}
"""Steps in their order, with the most seconds that each may take of `MINUTES`; they are tight for all together."""

MINUTES = 9.0
"""A GPU that is lent for ten minutes has to start, too."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--minutes", type=float, default=MINUTES, help="for all steps together")
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--only", nargs="*", choices=[step.__name__ for step in STEPS])
    parser.add_argument("--device", choices=["gpu", "cpu"], default="gpu")
    parser.add_argument("--size", choices=list(SIZES), default="full")
    parser.add_argument("--rows", type=int, default=ROWS, help="logged steps of a training")
    parser.add_argument("--step", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--seconds", type=float, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.step:
        run_step(args)
        return
    end = time.monotonic() + 60 * args.minutes
    with tempfile.TemporaryDirectory(prefix="divot_gpu_") as folder:
        for step, limit in STEPS.items():
            chosen = args.only is None or step.__name__ in args.only or step is inputs
            seconds = min(limit * args.minutes / MINUTES, end - time.monotonic())
            if chosen:
                start_step(args, step.__name__, Path(folder), seconds)


def start_step(args: argparse.Namespace, name: str, folder: Path, seconds: float) -> None:
    """Run a step in a process of its own, which is stopped a little after its deadline."""
    if seconds < SHORTEST:
        write_result(args, name, {"failed": "no time was left"})
        return
    words = ["--step", name, "--folder", str(folder), "--seconds", str(seconds), "--output", str(args.output)]
    words += ["--device", args.device, "--size", args.size, "--rows", str(args.rows)]
    process = subprocess.Popen([sys.executable, __file__, *words], start_new_session=True)
    try:
        told = "done" if process.wait(timeout=seconds + GRACE) == 0 else "failed"
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)  # with the commands that it has started, which hold the device's memory
        process.wait()
        told = f"stopped after {seconds:.0f} s"
        write_result(args, name, {"failed": told})
    sys.stdout.write(f"{name}: {told}\n")
    sys.stdout.flush()


def write_result(args: argparse.Namespace, name: str, result: Result) -> None:
    """Write what a step has found, or why it has found nothing, with hardware, versions and commit."""
    step = next(step for step in STEPS if step.__name__ == name)
    described = {"step": name, "what": step.__doc__, "size": args.size, **machine(args.device), **result}
    args.output.mkdir(parents=True, exist_ok=True)
    (args.output / f"{name}.json").write_text(json.dumps(described, indent=2) + "\n")


def run_step(args: argparse.Namespace) -> None:
    """Run one step and write its result, or why there is none."""
    began = time.monotonic()
    setup = Setup(args.folder, args.device, args.size, began + args.seconds)
    global ROWS
    ROWS = args.rows
    step = next(step for step in STEPS if step.__name__ == args.step)
    try:
        result: Result = {"result": step(setup)}
    except Exception as error:
        result = {"failed": f"{type(error).__name__}: {error}"}
    write_result(args, args.step, {**result, "seconds": round(time.monotonic() - began, 1)})
    if "failed" in result:
        sys.exit(result["failed"])


def _train(setup: Setup, recipe: Result) -> Result:
    return train(recipe, setup.folder, ROWS, setup.deadline - 2)


def _resumed(setup: Setup, name: str, strategy: str) -> Result:
    """A short model, so that its checkpoint is small; speed after resuming, and the step that it continued from."""
    recipe = _llm(setup, name, short=True)
    recipe["trainer"] |= {"strategy": strategy, "max_steps": 4}
    path = setup.folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(recipe))
    told = _divot(setup, *preflight_and_fit(path))
    before = len(logged(Path(recipe["run"])))
    _divot(setup, "resume", recipe["run"], "--trainer.max_steps", str(4 + COUNTING[setup.device] + ROWS))
    rows = logged(Path(recipe["run"]))
    figures = {**steady(rows[before:], setup.device), **memory_beside_preflight(rows, told)}
    return {"steps_before": before, "steps_after": len(rows), **figures}


def _tokenizer(setup: Setup, name: str, *, denoiser: str = "dynamicrafter", checkpointing: bool = True) -> Result:
    run = setup.folder / name
    return tokenizer_recipe(setup.size, setup.inputs, run, setup.device, denoiser=denoiser, checkpointing=checkpointing)


def _llm(setup: Setup, name: str, **changes: Any) -> Result:
    run, size = setup.folder / name, setup.size
    return llm_recipe(size, setup.inputs, run, setup.device, tokenizer=setup.tokenizer, **changes)


def _divot(setup: Setup, *words: str) -> str:
    return _output(setup, [*DIVOT, *words])


def _output(setup: Setup, words: list[str]) -> str:
    limit = max(1.0, setup.deadline - time.monotonic())
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=limit)
    if done.returncode:
        raise RuntimeError(f"{' '.join(words)} ended with {done.returncode}:\n{(done.stdout + done.stderr)[-2000:]}")
    return done.stdout


if __name__ == "__main__":
    main()
