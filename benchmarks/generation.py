"""Measure generation and answering with a trained run: where the time goes, and what each way to save time gains.

Run: python benchmarks/generation.py RUN --clips SHARDS [--detokenizer RUN] [--device cuda] [--output FILE]

RUN has a video LLM and a tokenizer, SHARDS are held-out clips of the toy world, such as those of the quickstart. All
times are processor time of one thread on a CPU, and wall time on a GPU. What is compared runs in turn, and the least of
`--repeats` times counts, because other work on the machine can only add to it. Each part prints a table:

- parts: of generating clips from text: text (tokenising and layout), query pass (language model), head, denoising, and
  decoding of latents;
- guidance: a decoding with guidance in one batch, as here, and with two calls per step, over one without guidance;
- solvers: for each solver and number of steps the fraction of reconstructions in which the toy's oracle reads the same
  attributes as in the original, PSNR to the original, and PSNR to the clip that the same noise gives in 200 steps;
- cache: tokens of an answer with cached keys and values, and with the whole sequence run again for each token;
- batches: clips per second by batch size; precision: float32 over bfloat16;
- questions: four questions about one video over one, and encoding 32 clips over 8.
"""

import argparse
import json
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from divot_datamodules.toy.oracle import read_clip
from divot_datamodules.toy.world import ATTRIBUTES, ToyWorld
from divot_lightning import Decoding, DivotPipeline
from divot_lightning.inference.ask import media_prompt
from divot_lightning.inference.reconstruct import read_clips
from divot_lightning.models.detokenizer.sampling import guide
from divot_lightning.models.video_llm.model import VideoLLM

PROMPTS = ["a red circle moves slowly to the left", "a blue square moves quickly up"]
QUESTIONS = ["what colour is the shape ?", "what shape is it ?", "where does it move ?", "how does it move ?"]
SOLVERS = {True: ("ddim", "dpm_solver", "unipc"), False: ("euler", "dpm_solver", "unipc")}
STEPS = (1, 2, 3, 5, 10, 20, 50)


class Clock:
    """Time calls on a device."""

    def __init__(self, device: str, repeats: int) -> None:
        self.cuda, self.repeats = device.startswith("cuda"), repeats

    def now(self) -> float:
        """Return seconds: of the device once it has finished its work, or of this process's processor."""
        if self.cuda:
            torch.cuda.synchronize()
            return time.perf_counter()
        return time.process_time()

    def least(self, calls: Mapping[Any, Callable[[], Any]]) -> dict[Any, float]:
        """Return the least time of each call; all run in turn, first once to warm up."""
        times: dict[Any, list[float]] = {name: [] for name in calls}
        for repeat in range(self.repeats + 1):
            for name, call in calls.items():
                start = self.now()
                call()
                if repeat:
                    times[name].append(self.now() - start)
        return {name: min(values) for name, values in times.items()}


@contextmanager
def timed_methods(clock: Clock, methods: Mapping[str, tuple[Any, str]]) -> Iterator[dict[str, float]]:
    """Add up the time of methods, by name, while the block runs."""
    spent = dict.fromkeys(methods, 0.0)

    def wrap(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            start = clock.now()
            try:
                return real(*args, **options)
            finally:
                spent[name] += clock.now() - start

        return call

    for name, (owner, method) in methods.items():
        setattr(owner, method, wrap(name, getattr(owner, method)))
    yield spent
    for owner, method in methods.values():
        delattr(owner, method)


def parts(pipeline: DivotPipeline, clock: Clock, num: int) -> dict[str, float]:
    """Return the fraction of each part in generating `num` clips, and the seconds per clip."""
    models = pipeline.models
    methods = {
        "text": (models.video_llm, "sequences"),
        "query pass": (models.video_llm, "hidden_states"),
        "head": (models.video_llm.head, "sample"),
        "denoising": (models.detokenizer.denoiser, "forward"),
        "decoding": (models.detokenizer.latents, "decode"),
    }
    best: dict[str, float] = {}
    for _ in range(clock.repeats + 1):
        with timed_methods(clock, methods) as spent:
            start = clock.now()
            pipeline.generate(PROMPTS[0], num=num)
            whole = clock.now() - start
        if not best or whole < best["seconds"]:
            best = {"seconds": whole, **spent}
    whole = best.pop("seconds")
    rest = whole - sum(best.values())
    return {"seconds per clip": whole / num} | {name: value / whole for name, value in (best | {"rest": rest}).items()}


def guidance(pipeline: DivotPipeline, clock: Clock, num: int) -> dict[str, float]:
    """Return times of decoding with guidance over decoding without, and check that both ways give the same clips."""
    detokenizer = pipeline.models.detokenizer
    weight = next(detokenizer.parameters())
    tokens = torch.randn(num, detokenizer.config.num_tokens, detokenizer.config.token_dim).to(weight)
    null = pipeline.models.null_tokens.to(weight)
    with pipeline.sampling(Decoding(guidance=3.0)) as guided, pipeline.sampling(Decoding(guidance=1.0)) as plain:
        pass

    def decode(sampling: Any) -> Tensor:
        generator = torch.Generator().manual_seed(0)
        return detokenizer.decode(tokens, null_tokens_QC=null, sampling=sampling, generator=generator)

    def in_two_calls() -> Tensor:
        """The same with a call of the denoiser for each prediction."""
        one_batch = detokenizer._guided

        def guided_twice(tokens_BQC: Tensor, null_QC: Tensor, sampling: Any) -> Callable[[Tensor, float], Tensor]:
            condition = detokenizer.condition(tokens_BQC)
            nothing = detokenizer.condition(null_QC[None]).expand_as(condition)
            predict = detokenizer._predict
            scale, rescale = sampling.guidance, sampling.guidance_rescale
            return lambda state, t: guide(predict(state, t, condition), predict(state, t, nothing), scale, rescale)

        detokenizer._guided = guided_twice  # type: ignore[method-assign]
        try:
            return decode(guided)
        finally:
            detokenizer._guided = one_batch  # type: ignore[method-assign]

    torch.testing.assert_close(in_two_calls(), decode(guided), rtol=1e-3, atol=1e-3)
    calls = {"none": lambda: decode(plain), "one batch": lambda: decode(guided), "two calls": in_two_calls}
    times = clock.least(calls)
    return {name: times[name] / times["none"] for name in ("one batch", "two calls")}


def solvers(pipeline: DivotPipeline, shards: str, num: int) -> list[dict[str, Any]]:
    """Return the quality of reconstructions by solver and number of steps."""
    clip = pipeline.models.decoded_clip
    found = [video for _, (_, video) in zip(range(num), read_clips([shards], clip), strict=False)]
    originals, world = torch.from_numpy(np.stack(found)), ToyWorld(size=clip.height, num_frames=clip.frames)
    features, rows = pipeline.models.encode(originals), []
    discrete = hasattr(pipeline.models.detokenizer.objective, "eta")
    truth = [read_clip(world, video) for video in found]
    limit = pipeline.decode(features, decoding=Decoding(steps=200, sampler=_settings("unipc", discrete)))
    for solver in SOLVERS[discrete]:
        settings = _settings(solver, discrete)
        for steps in STEPS:
            decoded = pipeline.decode(features, decoding=Decoding(steps=steps, sampler=settings))
            readings = [read_clip(world, video.numpy()) for video in decoded]
            same = [
                all(getattr(one, name) == getattr(other, name) for name in ATTRIBUTES) and one.valid
                for one, other in zip(readings, truth, strict=True)
            ]
            quality = {
                "all attributes": sum(same) / num,
                "psnr": _psnr(decoded, originals),
                "to 200": _psnr(decoded, limit),
            }
            rows.append({"solver": solver, "steps": steps, **quality})
    return rows


def _settings(solver: str, discrete: bool) -> dict[str, Any]:
    return {"solver": solver, **({"eta": 0.0, "spacing": "trailing"} if discrete else {})}


def _psnr(decoded: Tensor, other: Tensor) -> float:
    squares = (decoded.float() - other.float()).square().flatten(1).mean(dim=1)
    return (10 * torch.log10(255**2 / squares.clamp(min=0.01))).mean().item()


def cache(video_llm: VideoLLM, pipeline: DivotPipeline, clock: Clock, num_tokens: int) -> dict[str, float]:
    """Return the time of an answer without cached keys and values over that with them."""
    clip = pipeline.models.clip
    features = pipeline.encode(torch.zeros(16 * 8, clip.height, clip.width, 3, dtype=torch.uint8))
    prompt = media_prompt(QUESTIONS[0], features.kinds, pipeline.models.template)
    special = video_llm.special
    video_llm.special = replace(special, end=-1)  # so that no answer ends before

    def with_cache() -> None:
        video_llm.generate_text([prompt], features.features_NQC, max_new_tokens=num_tokens)

    @torch.no_grad()
    def without() -> None:
        batch = video_llm.sequences([prompt], prompt=True)
        embeds = video_llm.embed(batch, video_llm.normalise(features.features_NQC, len(features)))
        embedding = video_llm.causal_lm.get_input_embeddings()
        for _ in range(num_tokens):
            hidden = video_llm.causal_lm.base_model(inputs_embeds=embeds, use_cache=False).last_hidden_state
            token = video_llm.logits(hidden[:, -1]).argmax(dim=1)
            embeds = torch.cat([embeds, embedding(token)[:, None]], dim=1)

    try:
        times = clock.least({"cache": with_cache, "none": without})
    finally:
        video_llm.special = special
    return {"seconds": times["cache"], "without cache / with": times["none"] / times["cache"]}


def batches(pipeline: DivotPipeline, clock: Clock, sizes: tuple[int, ...]) -> dict[str, float]:
    """Return clips per second by the number of clips that are generated together."""
    calls = {size: lambda size=size: pipeline.generate(PROMPTS[0], num=size) for size in sizes}
    return {str(size): size / seconds for size, seconds in clock.least(calls).items()}


def precision(pipelines: Mapping[str, DivotPipeline], clock: Clock, num: int) -> dict[str, float]:
    """Return the time in float32 over that in bfloat16."""
    calls = {name: lambda one=one: one.generate(PROMPTS[0], num=num) for name, one in pipelines.items()}
    times = clock.least(calls)
    return {"float32 / bfloat16": times["float32"] / times["bfloat16"]}


def questions(pipeline: DivotPipeline, clock: Clock) -> dict[str, float]:
    """Return the time of more questions and of more clips over one."""
    size = pipeline.models.clip
    video = {count: torch.zeros(16 * count, size.height, size.width, 3, dtype=torch.uint8) for count in (4, 8, 32)}
    times = clock.least(
        {
            "one question": lambda: pipeline.ask(video[4], QUESTIONS[0], max_new_tokens=4),
            "four questions": lambda: pipeline.ask(video[4], QUESTIONS, max_new_tokens=4),
            "four calls": lambda: [pipeline.ask(video[4], text, max_new_tokens=4) for text in QUESTIONS],
            "8 clips": lambda: pipeline.encode(video[8], max_clips=8),
            "32 clips": lambda: pipeline.encode(video[32], max_clips=32),
        }
    )
    return {
        "four questions / one": times["four questions"] / times["one question"],
        "four calls / one": times["four calls"] / times["one question"],
        "32 clips / 8": times["32 clips"] / times["8 clips"],
    }


def circumstances(device: str) -> dict[str, Any]:
    """Return hardware, versions and commit."""
    cpu = next((line.split(": ")[1] for line in _lines("/proc/cpuinfo") if line.startswith("model name")), "")
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()
    return {
        "date": time.strftime("%Y-%m-%d"),
        "device": torch.cuda.get_device_name() if device.startswith("cuda") else cpu or platform.processor(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "commit": commit,
    }


def _lines(path: str) -> list[str]:
    return Path(path).read_text(encoding="utf-8").splitlines() if Path(path).is_file() else []


def main() -> None:
    """Measure, print, and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run")
    parser.add_argument("--clips", required=True)
    parser.add_argument("--detokenizer")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"], help="of all but `precision`")
    parser.add_argument("--num", type=int, default=8, help="clips that are generated together")
    parser.add_argument("--quality", type=int, default=64, help="clips that are reconstructed for the quality")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--only", nargs="*", help="names of parts")
    parser.add_argument("--output", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    clock = Clock(given.device, given.repeats)
    both = not given.only or "precision" in given.only
    pipelines = {
        name: DivotPipeline.from_pretrained(given.run, given.detokenizer, device=given.device, dtype=name)
        for name in (("float32", "bfloat16") if both else (given.dtype,))
    }
    pipeline = pipelines[given.dtype]
    measured: dict[str, Callable[[], Any]] = {
        "parts": lambda: parts(pipeline, clock, given.num),
        "guidance": lambda: guidance(pipeline, clock, given.num),
        "solvers": lambda: solvers(pipeline, given.clips, given.quality),
        "cache": lambda: cache(pipeline.models.video_llm, pipeline, clock, 32),
        "batches": lambda: batches(pipeline, clock, (1, 2, 4, 8, 16)),
        "precision": lambda: precision(pipelines, clock, given.num),
        "questions": lambda: questions(pipeline, clock),
    }
    figures = {"circumstances": circumstances(given.device)}
    for name in given.only or measured:
        figures[name] = measured[name]()
        sys.stdout.write(f"{name}: {json.dumps(figures[name], indent=1)}\n")
        sys.stdout.flush()
    if given.output:
        given.output.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
