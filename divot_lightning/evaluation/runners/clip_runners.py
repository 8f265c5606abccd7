"""Make the clips of a benchmark, generated from prompts or reconstructed, and measure each beside the real clip.

Shape letters: N clips, F frames, H height, W width.
"""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from divot_datamodules.decoding.video import DecodeError
from divot_lightning.evaluation.chosen_items import Numbered
from divot_lightning.evaluation.item_media import read_middle_clip
from divot_lightning.evaluation.kept_clips import find_clip, keep_clip, keep_comparison
from divot_lightning.evaluation.runners.described_clips import describe_middle_clips
from divot_lightning.evaluation.runners.question_runner import item_seed
from divot_lightning.evaluation.runners.runner import Job, MeasuringRunner
from divot_lightning.inference.clip_requests import ClipRequest
from divot_lightning.inference.loaded_run import LoadedRun
from divot_lightning.io.jsonl import Row
from divot_lightning.parts.benchmarks import BenchmarkItem, Prediction
from divot_lightning.parts.sampling import sampling_of

MAX_COMPARISONS = 16
"""Most videos of original and reconstruction side by side."""


class ClipRunner(MeasuringRunner):
    """Make and measure clips with a run's models.

    Args:
        job: What is predicted.
        models: Encode and decode clips.
    """

    def __init__(self, job: Job, models: LoadedRun) -> None:
        super().__init__(job)
        self.models, self.one_seed = models, job.config.generation.one_seed
        # It belongs to the model, as the sampling settings of a head do: ablations compare objectives.
        self.sampling_config = {"objective": asdict(models.detokenizer.config)["objective"]}

    @abstractmethod
    def make(self, items: Sequence[BenchmarkItem], originals_NFCHW: Tensor, seed: int) -> Tensor:
        """Make the clips of items, uint8 (N, F, 3, H, W), all from one stream of random numbers."""

    def describe(self) -> dict[str, Any]:
        """Return everything that decides the clips besides the models, as JSON values."""
        sampling = asdict(self.models.detokenizer.config.sampling)
        return {"sampling": sampling, **describe_middle_clips(self.models.decoded_clip)}

    def run(self, items: Sequence[Numbered], rows: Mapping[str, Row]) -> list[Row]:
        """Make one clip for each item, unless it is stored, and measure it.

        Args:
            items: Numbers within the benchmark, and items.
            rows: Earlier rows, by item; their measurements are not repeated.

        Returns:
            One row per item, with an `error` and no measurements if the real video cannot be decoded.
        """
        originals: dict[int, Tensor] = {}
        errors: dict[int, str] = {}
        for number, item in items:
            try:
                originals[number] = read_middle_clip(item, self.models.decoded_clip)
            except DecodeError as error:
                errors[number] = str(error)
        clips = self._clips([pair for pair in items if pair[0] in originals], originals)
        found = []
        for number, item in items:
            row: Row = {"id": item.id, "media": item.media_name}
            row |= {"prompt": item.facts["prompt"]} if "prompt" in item.facts else {}
            if number in errors:
                found.append({**row, "error": errors[number]})
                continue
            prediction = Prediction(clip=clips[number], original=originals[number])
            found.append(self.measured(row, prediction, item, rows.get(item.id, {})))
        return found

    def _clips(self, items: Sequence[Numbered], originals: Mapping[int, Tensor]) -> dict[int, Tensor]:
        """Return the clips by number: stored ones, or made again; equal seeds make both equal."""
        stored = {number: find_clip(self.folder, number) for number, _ in items}
        clips = {number: torch.from_numpy(clip.copy()) for number, clip in stored.items() if clip is not None}
        # With one seed a clip depends on those made with it, so that either all are made or none.
        for batch in [items] if self.one_seed else [[pair] for pair in items]:
            if all(number in clips for number, _ in batch):
                continue
            numbers = [number for number, _ in batch]
            seed = self.config.seed if self.one_seed else item_seed(self.config.seed, numbers[0])
            real_NFCHW = torch.stack([originals[number] for number in numbers])
            made_NFCHW = self.make([item for _, item in batch], real_NFCHW, seed)
            for number, clip_FCHW in zip(numbers, made_NFCHW, strict=True):
                clips[number] = clip_FCHW
                self._keep(number, clip_FCHW, originals[number])
        return clips

    def _keep(self, number: int, clip_FCHW: Tensor, original_FCHW: Tensor) -> None:
        if self.config.generation.store_clips or number < self.config.generation.kept_clips:
            keep_clip(self.folder, number, clip=clip_FCHW.numpy())


class GenerationRunner(ClipRunner):
    """Generate clips from the prompts of a benchmark."""

    components: tuple[str, ...] = ("video_llm", "tokenizer", "detokenizer")

    def __init__(self, job: Job) -> None:
        chosen, temperature = job.config.generation, job.config.temperature
        self.temperature = 1.0 if temperature is None else temperature
        self.request = ClipRequest(chosen.request, chosen.opening)
        options: dict[str, Any] = {"template": job.config.template, "device": job.device, "head": chosen.head}
        models = LoadedRun(job.run, chosen.detokenizer, **options)
        models.check_fit()
        super().__init__(job, models)
        self.sampling_config |= {"head": sampling_of(models.video_llm.head)}

    def describe(self) -> dict[str, Any]:
        """Return everything that decides the clips besides the models, as JSON values."""
        return {
            "prompt": "one caption per video",
            "template": self.models.template,
            **self.request.describe(),
            "decoding": {"temperature": self.temperature, "seed": self.config.seed},
            **super().describe(),
        }

    def make(self, items: Sequence[BenchmarkItem], originals_NFCHW: Tensor, seed: int) -> Tensor:
        """Generate clips from the items' prompts."""
        prompts = [str(self.benchmark.prompt(item)) for item in items]
        options: dict[str, Any] = {"request": self.request, "temperature": self.temperature, "seed": seed}
        return torch.stack([clip_FCHW for clip_FCHW, _ in self.models.generate(prompts, **options)])


class ReconstructionRunner(ClipRunner):
    """Encode the clips of a benchmark and decode them again."""

    components: tuple[str, ...] = ("tokenizer", "detokenizer")

    def __init__(self, job: Job) -> None:
        super().__init__(job, LoadedRun(job.run, device=job.device))
        self.num_tokens = self.config.generation.num_tokens

    def describe(self) -> dict[str, Any]:
        """Return everything that decides the clips besides the models, as JSON values."""
        kept = {} if self.num_tokens is None else {"num_tokens": self.num_tokens}
        return {"decoding": {"seed": self.config.seed, **kept}, **super().describe()}

    def make(self, items: Sequence[BenchmarkItem], originals_NFCHW: Tensor, seed: int) -> Tensor:
        """Reconstruct the clips, with noise of the seed."""
        tokens_NQC = self.models.encode(originals_NFCHW, self.num_tokens)
        return torch.cat(list(self.models.decode(tokens_NQC, torch.Generator().manual_seed(seed))))

    def _keep(self, number: int, clip_FCHW: Tensor, original_FCHW: Tensor) -> None:
        if number >= self.config.generation.kept_clips:
            super()._keep(number, clip_FCHW, original_FCHW)
            return
        clip, original = clip_FCHW.numpy(), original_FCHW.numpy()
        keep_clip(self.folder, number, clip=clip, original=original)
        if number < MAX_COMPARISONS:
            keep_comparison(self.folder, number, original, clip, self.models.fps)


class ReferenceRunner(ClipRunner):
    """Let a benchmark make the clips itself, of the size that a run's de-tokenizer makes; no model is used."""

    def __init__(self, job: Job) -> None:
        super().__init__(job, LoadedRun(job.run))
        self.one_seed, self.sampling_config = True, {}

    def describe(self) -> dict[str, Any]:
        """Return everything that decides the clips, as JSON values."""
        found = super().describe()
        return {"decoding": {"seed": self.config.seed}, **{name: found[name] for name in ("clips", "real_clips")}}

    def make(self, items: Sequence[BenchmarkItem], originals_NFCHW: Tensor, seed: int) -> Tensor:
        """Return the benchmark's own clips."""
        return self.benchmark.reference_clips(items, originals_NFCHW, seed)
