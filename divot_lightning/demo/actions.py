"""What the page does with the runs: every job is one call of `DivotPipeline`, or one per run."""

import re
import shutil
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor
from torchmetrics.functional.image import peak_signal_noise_ratio

from divot_datamodules.decoding.video_writing import write_view
from divot_lightning.demo.clips import ClipStore
from divot_lightning.demo.jobs import Job
from divot_lightning.demo.limits import MOST_SEED, Limits, number, text, whole_number
from divot_lightning.demo.progress import watched
from divot_lightning.demo.systems import Ability, System
from divot_lightning.errors import UserError
from divot_lightning.inference.clip_requests import ClipRequest
from divot_lightning.inference.pipeline_options import Decoding, GenerateOptions
from divot_lightning.inference.results import Answer, ClipFeatures
from divot_lightning.inference.unknown_words import unknown_words
from divot_lightning.models.video_llm.story import StorySampling

ENCODED_CLIPS = 8
"""Clips whose features are kept, so that further questions do not encode the clip again."""


class Actions:
    """Does the jobs of the page and writes their files.

    Args:
        systems: The runs.
        clips: The clips that jobs may name.
        folder: Each job has a folder in it, named by its id, which the page serves.
        limits: What requests may ask for.
    """

    kinds: tuple[Ability, ...] = ("reconstruct", "ask", "generate", "story")

    def __init__(self, systems: Sequence[System], clips: ClipStore, folder: Path, limits: Limits) -> None:
        self.systems = {system.name: system for system in systems}
        self.clips, self.folder, self.limits = clips, folder, limits
        self._encoded: OrderedDict[tuple[str, str], ClipFeatures] = OrderedDict()

    def __call__(self, job: Job) -> None:
        """Do a job: fill its `result`.

        Raises:
            UserError: The request is not allowed, or cannot be fulfilled.
            Cancelled: The job was cancelled.
        """
        (self.folder / job.id).mkdir(parents=True)
        do = {"reconstruct": self._reconstruct, "ask": self._ask, "generate": self._generate, "story": self._story}
        do[job.kind](job)

    def forget(self, name: str) -> None:
        """Delete the files of a job."""
        shutil.rmtree(self.folder / name, ignore_errors=True)

    def _reconstruct(self, job: Job) -> None:
        request, clip = job.request, self.clips.find(job.request.get("clip"))
        system, seed, decoding = self._system(request, "reconstruct"), _seed(request), self._decoding(request)
        models = system.pipeline.models
        with watched(job, system.name, models, reads=True, steps=self._steps(system, decoding)):
            shown = system.pipeline.reconstruct(clip.content, seed=seed, decoding=decoding)
        shown = replace(shown, settings=_without_folders(shown.settings, system))
        (path,) = shown.save(self._file(job, system, seed))
        job.result |= {
            "system": system.name,
            "seed": seed,
            "original": self._view(job, "original", shown.original_NFCHW[0], shown.fps),
            "clip": self._clip(job, path, shown.video_NFCHW[0], shown.fps),
            "psnr": round(psnr(shown.original_NFCHW, shown.video_NFCHW), 1),
        }

    def _ask(self, job: Job) -> None:
        request, limits = job.request, self.limits
        # Without a question the model describes the clip.
        clip = self.clips.find(request.get("clip"))
        question = text(request, "question", limits, "question") if request.get("question") else ""
        system, history = self._system(request, "ask"), self._history(request)
        with watched(job, system.name, system.pipeline.models, reads=True, writes=True):
            self._note_unknown_words(job, system, question)
            features = self._encode(system, clip.id, clip.content)
            answer = system.pipeline.ask(
                features, question, history=history, max_new_tokens=limits.answer_tokens, seed=_seed(request)
            )
        job.result |= {"system": system.name, "question": answer.question, "answer": answer.text}

    def _generate(self, job: Job) -> None:
        request, limits = job.request, self.limits
        prompt, seed, decoding = text(request, "prompt", limits, "prompt"), _seed(request), self._decoding(request)
        num = whole_number(request, "num", limits.samples, default=1)
        options: GenerateOptions = {
            "num": num,
            "seed": seed,
            "temperature": number(request, "temperature", 10.0, 1.0),
            "request": ClipRequest.released() if request.get("as_released") is True else None,
            "decoding": decoding,
        }
        chosen = self._several(request)
        job.result |= {"prompt": prompt, "seed": seed, "systems": []}
        for system in chosen:
            steps = self._steps(system, decoding) * -(-num // system.pipeline.models.batch_size)
            clips = self._generated_clips(job, system, prompt, options, steps)
            shown = {"name": system.name, "head": system.head, "clips": clips}
            job.result["systems"] = [*job.result["systems"], shown]

    def _generated_clips(
        self, job: Job, system: System, prompt: str, options: GenerateOptions, steps: int
    ) -> list[dict[str, str]]:
        """Generate and write the clips of one system; return what the page shows of each."""
        with watched(job, system.name, system.pipeline.models, writes=True, steps=steps):
            self._note_unknown_words(job, system, prompt)
            generated = system.pipeline.generate(prompt, **options)
        generated = replace(generated, settings=_without_folders(generated.settings, system))
        paths = generated.save(self._file(job, system, options["seed"]))
        pairs = zip(paths, generated.video_NFCHW, strict=True)
        return [self._clip(job, path, video, generated.fps) for path, video in pairs]

    def _story(self, job: Job) -> None:
        request, limits = job.request, self.limits
        instruction, seed = text(request, "instruction", limits, "instruction"), _seed(request)
        num_clips = whole_number(request, "num_clips", limits.story_clips, default=3)
        system, decoding = self._system(request, "story"), self._decoding(request)
        sampling = StorySampling(max_new_tokens=limits.answer_tokens)
        with watched(job, system.name, system.pipeline.models, writes=True, steps=self._steps(system, decoding)):
            self._note_unknown_words(job, system, instruction)
            story = system.pipeline.story(instruction, num_clips, seed=seed, sampling=sampling, decoding=decoding)
        story = replace(story, settings=_without_folders(story.settings, system))
        paths = iter(story.save(self.folder / job.id))
        parts = [
            {
                "text": part.text,
                "clip": None if part.video_FCHW is None else self._clip(job, next(paths), part.video_FCHW, story.fps),
            }
            for part in story.parts
        ]
        file = f"files/{job.id}/story.json"
        job.result |= {"system": system.name, "seed": seed, "parts": parts, "settings": file}

    def _system(self, request: Mapping[str, Any], ability: Ability) -> System:
        system = self.systems.get(str(request.get("system")))
        if system is None or ability not in system.abilities:
            able = [one.name for one in self.systems.values() if ability in one.abilities]
            raise UserError(f"Choose one of the runs that can do this: {', '.join(able) or 'none can'}.")
        return system

    def _several(self, request: Mapping[str, Any]) -> list[System]:
        names = request.get("systems")
        if not isinstance(names, list) or not 1 <= len(names) <= len(self.systems):
            raise UserError("Choose at least one of the runs.")
        return [self._system({"system": name}, "generate") for name in dict.fromkeys(map(str, names))]

    def _decoding(self, request: Mapping[str, Any]) -> Decoding:
        """Read steps and guidance; without them each de-tokenizer takes its own."""
        steps, guidance = request.get("steps"), request.get("guidance")
        return Decoding(
            None if steps is None else whole_number(request, "steps", self.limits.steps),
            None if guidance is None else number(request, "guidance", 30.0, 1.0),
        )

    def _steps(self, system: System, decoding: Decoding) -> int:
        return decoding.steps or system.pipeline.models.detokenizer.config.sampling.steps

    def _history(self, request: Mapping[str, Any]) -> list[Answer]:
        turns = request.get("history", [])
        if not isinstance(turns, list) or len(turns) > self.limits.turns or not all(isinstance(t, dict) for t in turns):
            raise UserError(f"A conversation has at most {self.limits.turns} turns here. Start a new one.")
        read = [[text(turn, name, self.limits, f"earlier {name}") for name in ("question", "answer")] for turn in turns]
        return [Answer(question, answer) for question, answer in read]

    def _encode(self, system: System, clip: str, content: bytes) -> ClipFeatures:
        key = (system.name, clip)
        if key not in self._encoded:
            self._encoded[key] = system.pipeline.encode(content)
        self._encoded.move_to_end(key)
        while len(self._encoded) > ENCODED_CLIPS:
            self._encoded.popitem(last=False)
        return self._encoded[key]

    def _note_unknown_words(self, job: Job, system: System, given: str) -> None:
        words = unknown_words(system.pipeline.models.video_llm.text_tokenizer, given)
        if words:
            job.note(f"The text tokenizer of {system.name} does not know: {', '.join(words)[:200]}")

    def _file(self, job: Job, system: System, seed: int) -> Path:
        """Return a video file whose name still says something in a folder of downloads."""
        return self.folder / job.id / f"{re.sub(r'[^A-Za-z0-9_-]+', '_', system.name)}_seed{seed}.mp4"

    def _view(self, job: Job, name: str, video_FCHW: Tensor, fps: float) -> str:
        """Write a clip as browsers play it; return its address."""
        write_view(self.folder / job.id / f"{name}_view.mp4", video_FCHW.numpy(), fps)
        return f"files/{job.id}/{name}_view.mp4"

    def _clip(self, job: Job, path: Path, video_FCHW: Tensor, fps: float) -> dict[str, str]:
        """Return the addresses of a saved clip: to look at, as a file, and its settings if they are beside it."""
        shown = {"view": self._view(job, path.stem, video_FCHW, fps), "file": f"files/{job.id}/{path.name}"}
        settings = path.with_suffix(".json")
        return {**shown, "settings": f"files/{job.id}/{settings.name}"} if settings.is_file() else shown


def psnr(original: Tensor, other: Tensor) -> float:
    """Return the peak signal to noise ratio of uint8 clips in decibels, at most 100, which JSON can hold."""
    return min(100.0, float(peak_signal_noise_ratio(other.double(), original.double(), data_range=255.0)))


def _seed(request: Mapping[str, Any]) -> int:
    return whole_number(request, "seed", MOST_SEED, least=0, default=0)


def _without_folders(settings: Mapping[str, Any], system: System) -> dict[str, Any]:
    """Return settings with the names of runs in place of this machine's folders."""
    return {**settings, "run": system.name, "detokenizer": system.detokenizer or None}
