"""`DivotPipeline`: reconstruct, ask, generate and tell stories with a trained run, in one object.

Shape letters: N clips, F frames, H height, W width, Q tokens per clip, C feature width.
"""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict
from pathlib import Path
from typing import Any, Unpack, overload

import torch
from torch import Tensor

from divot_datamodules.decoding.clip_sampling import MAX_CLIPS
from divot_lightning.errors import UserError, require_at_least
from divot_lightning.inference.answer_scores import AnswerScore, score_answers
from divot_lightning.inference.ask import answer_each, media_prompt, warn_of_missing_captions
from divot_lightning.inference.clip_requests import ClipRequest
from divot_lightning.inference.command_options import check_ask_options
from divot_lightning.inference.generate import check_request, write_story
from divot_lightning.inference.loaded_run import LoadedRun, load_run
from divot_lightning.inference.media_input import MediaInput, as_tensor, read_middle_clip, read_video
from divot_lightning.inference.pipeline_options import AskOptions, Decoding, GenerateOptions, StoryOptions, Texts
from divot_lightning.inference.results import Answer, ClipFeatures, GeneratedClips, Reconstruction, Story, StoryPart
from divot_lightning.models.detokenizer.sampling import SamplingConfig
from divot_lightning.models.randomness import seeded_generator
from divot_lightning.models.video_llm.story import StorySampling
from divot_lightning.parts.sampling import changed_head
from divot_lightning.parts.segments import Kind


class DivotPipeline:
    """Use a trained run. The same seed gives the same result on the same machine.

    Clips are cut at the size and the frame rate of the run.

    Args:
        models: The models of the run; each is loaded when it is first needed.
    """

    def __init__(self, models: LoadedRun) -> None:
        self.models = models

    @classmethod
    def from_pretrained(
        cls, name: str | Path, detokenizer: str | Path | None = None, *, revision: str | None = None, **options: Any
    ) -> "DivotPipeline":
        """Open a run folder or a repository of the Hugging Face hub; see `load_run` for the arguments."""
        return cls(load_run(name, detokenizer, revision=revision, **options))

    def encode(
        self, video: MediaInput | ClipFeatures | Sequence[MediaInput], *, max_clips: int = MAX_CLIPS
    ) -> ClipFeatures:
        """Encode a video or picture, or several.

        Args:
            video: See `MediaInput`; features are returned as they are.
            max_clips: Most clips of each video.
        """
        if isinstance(video, ClipFeatures):
            return video
        require_at_least(1, max_clips=max_clips)
        parts, kinds = [], list[Kind]()
        videos: Sequence[Any] = video if isinstance(video, list | tuple) else [video]
        for media in videos:
            pixels, kind = read_video(media, self.models.clip, max_clips)
            parts.append(self.models.encode(as_tensor(pixels)))
            kinds += [kind] * len(pixels)
        if not parts:
            raise UserError("the list of videos is empty; give at least one video or picture")
        return ClipFeatures(torch.cat(parts), tuple(kinds))

    def decode(self, features: ClipFeatures | Tensor, *, seed: int = 0, decoding: Decoding | None = None) -> Tensor:
        """Decode features into clips.

        Args:
            features: Features, or a tensor (N, Q, C).
            seed: Of the de-tokenizer's noise.
            decoding: How the de-tokenizer samples.

        Returns:
            uint8 (N, F, 3, H, W) in [0, 255], RGB, on the CPU.
        """
        features_NQC = features.features_NQC if isinstance(features, ClipFeatures) else features
        generator = seeded_generator(seed)
        with self.sampling(decoding) as sampling:
            return torch.cat(list(self.models.decode(features_NQC, generator, sampling)))

    def reconstruct(
        self, video: MediaInput, *, seed: int = 0, decoding: Decoding | None = None, num_tokens: int | None = None
    ) -> Reconstruction:
        """Encode the clip in the middle of a video, a picture, or all clips of an array, and decode them again.

        Args:
            video: See `MediaInput`.
            seed: Of the de-tokenizer's noise.
            decoding: How the de-tokenizer samples.
            num_tokens: Leading tokens of each clip that are decoded, for a tokenizer with nested dropout; None for all.
        """
        original = as_tensor(read_middle_clip(video, self.models.decoded_clip))
        features_NQC = self.models.encode(original, num_tokens)
        with self.sampling(decoding) as sampling:
            decoded = torch.cat(list(self.models.decode(features_NQC, seeded_generator(seed), sampling)))
            settings = self.models.reconstruction_settings(sampling, seed, num_tokens)
        return Reconstruction(original, decoded, features_NQC, self.models.fps, settings)

    @overload
    def ask(self, video: Any, question: str = "", **options: Unpack[AskOptions]) -> Answer: ...
    @overload
    def ask(self, video: Any, question: Texts, **options: Unpack[AskOptions]) -> list[Answer]: ...
    def ask(
        self,
        video: MediaInput | ClipFeatures | Sequence[MediaInput],
        question: str | Sequence[str] = "",
        *,
        history: Sequence[Answer] = (),
        max_clips: int = MAX_CLIPS,
        max_new_tokens: int = 64,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int = 0,
    ) -> Answer | list[Answer]:
        """Ask about a video, a picture, or several of them.

        Args:
            video: See `MediaInput`; or what `encode` returned, to encode a video once for many questions.
            question: A question, or several that are answered independently; "" asks for a caption, with a warning if
                the model was trained on no task that has captions.
            history: Earlier turns about the same video, in order; for models that were trained on conversations.
            max_clips: Most clips of each video.
            max_new_tokens: Most tokens of an answer.
            temperature: 0 takes the most likely token each time.
            top_p: Tokens are sampled from the most likely ones that together reach this probability.
            seed: Of the sampling; each question is sampled with it. Of no effect at temperature 0.

        Returns:
            An answer, or a list of them.
        """
        check_ask_options(max_clips, max_new_tokens, temperature, top_p)
        questions = [question] if isinstance(question, str) else list(question)
        if "" in questions:
            warn_of_missing_captions(self.models.tasks)
        features = self.encode(video, max_clips=max_clips)
        turns = [(turn.question, turn.text) for turn in history]
        template, tasks = self.models.template, self.models.tasks
        prompts = [media_prompt(one, features.kinds, template, turns, tasks) for one in questions]
        sampled: dict[str, Any] = {"max_new_tokens": max_new_tokens, "temperature": temperature, "top_p": top_p}
        texts = answer_each(self.models, prompts, features.features_NQC, [seed] * len(prompts), **sampled)
        settings = self.models.settings(seed=seed, max_clips=max_clips, **sampled)
        answers = [Answer(one, text, settings) for one, text in zip(questions, texts, strict=True)]
        return answers[0] if isinstance(question, str) else answers

    def score_answers(
        self,
        video: MediaInput | ClipFeatures | Sequence[MediaInput],
        question: str,
        answers: Sequence[str],
        *,
        max_clips: int = MAX_CLIPS,
    ) -> list[AnswerScore]:
        """Score given answers to a question, as the options of a multiple-choice question; the lowest loss wins.

        Args:
            video: As for `ask`.
            question: The question.
            answers: The answers, each at least one word.
            max_clips: Most clips of each video.

        Returns:
            A score per answer, in order.
        """
        features = self.encode(video, max_clips=max_clips)
        prompts = [media_prompt(question, features.kinds, self.models.template, tasks=self.models.tasks)]
        prompts *= len(answers)
        return score_answers(self.models.video_llm, prompts, answers, [features.features_NQC] * len(answers))

    @overload
    def generate(self, prompt: str, **options: Unpack[GenerateOptions]) -> GeneratedClips: ...
    @overload
    def generate(self, prompt: Texts, **options: Unpack[GenerateOptions]) -> list[GeneratedClips]: ...
    def generate(
        self,
        prompt: str | Sequence[str],
        *,
        num: int = 1,
        seed: int = 0,
        request: ClipRequest | None = None,
        temperature: float = 1.0,
        variance_scale: float | None = None,
        head: Mapping[str, Any] | None = None,
        decoding: Decoding | None = None,
    ) -> GeneratedClips | list[GeneratedClips]:
        """Generate clips from text.

        Args:
            prompt: What the clips show, or several such texts. Each gets the clips that it would get alone.
            num: Clips per text.
            seed: Of all sampling.
            request: How the clips are asked for, and whether the model opens them by itself; `ClipRequest.released()`
                does as the released code. None takes a phrase of the run's own task, and opens the clips.
            temperature: Spread of the features that the head samples.
            variance_scale: Short for ``head={"variance_scale": ...}``, which the GMM head has.
            head: Sampling settings of the head for this call, by name: guidance, steps, solver or whatever it has.
            decoding: How the de-tokenizer samples.

        Returns:
            The clips of a text, or a list with those of each.
        """
        prompts = [prompt] if isinstance(prompt, str) else prompt
        check_request(prompts, num, temperature)
        changes = {**(head or {}), **({} if variance_scale is None else {"variance_scale": variance_scale})}
        generated = []
        with changed_head(self.models.video_llm.head, changes), self.sampling(decoding) as sampling:
            for text in prompts:
                generated.append(self._generate_one(text, num, seed, request or ClipRequest(), temperature, sampling))
        return generated[0] if isinstance(prompt, str) else generated

    def _generate_one(
        self, text: str, num: int, seed: int, request: ClipRequest, temperature: float, sampling: SamplingConfig
    ) -> GeneratedClips:
        options: dict[str, Any] = {"seed": seed, "temperature": temperature}
        pairs = self.models.generate([text] * num, request=request, sampling=sampling, **options)
        clips, features = map(torch.stack, zip(*pairs, strict=True))
        settings = self.models.generation_settings(sampling, **options, num=num, **request.describe())
        return GeneratedClips(text, clips, features, self.models.fps, settings)

    @overload
    def story(self, instruction: str, num_clips: int = 3, **options: Unpack[StoryOptions]) -> Story: ...
    @overload
    def story(self, instruction: Texts, num_clips: int = 3, **options: Unpack[StoryOptions]) -> list[Story]: ...
    def story(
        self,
        instruction: str | Sequence[str],
        num_clips: int = 3,
        *,
        seed: int = 0,
        sampling: StorySampling | None = None,
        decoding: Decoding | None = None,
    ) -> Story | list[Story]:
        """Tell a story: sentences and clips in turn, each clip opened by the model and read back before it continues.

        Args:
            instruction: What the story is about, or several. Each gets the story that it would get alone.
            num_clips: Most clips; the paper has three (appendix A.2). The model may end the story before.
            seed: Of all sampling.
            sampling: How words and features are sampled.
            decoding: How the de-tokenizer samples.

        Returns:
            A story, or a list of them.
        """
        instructions = [instruction] if isinstance(instruction, str) else instruction
        check_request(instructions, num_clips)
        chosen = sampling or StorySampling()
        told = [self._tell_one(one, num_clips, seed, chosen, decoding) for one in instructions]
        return told[0] if isinstance(instruction, str) else told

    def _tell_one(
        self, instruction: str, num_clips: int, seed: int, sampling: StorySampling, decoding: Decoding | None
    ) -> Story:
        self.models.check_fit()
        steps = write_story(self.models, instruction, num_clips, sampling, self.models.generator(seed))
        features = [step.features_QC for step in steps if step.features_QC is not None]
        clips = iter(self.decode(torch.stack(features), seed=seed, decoding=decoding) if features else ())
        parts = tuple(
            StoryPart(step.text, step.kind, None if step.features_QC is None else next(clips), step.features_QC)
            for step in steps
        )
        settings = self.story_settings(sampling, decoding, seed=seed, num_clips=num_clips)
        return Story(instruction, parts, self.models.fps, settings)

    def story_settings(self, sampling: StorySampling, decoding: Decoding | None, **more: Any) -> dict[str, Any]:
        """Return what decides a story besides the weights, as JSON values."""
        with self.sampling(decoding) as decoded:
            return self.models.generation_settings(decoded, **more, **asdict(sampling))

    def sampling(self, decoding: Decoding | None) -> AbstractContextManager[SamplingConfig]:
        """Return steps and guidance, and change the settings of the objective's sampler for a while."""
        return (decoding or Decoding()).applied(self.models.detokenizer)
