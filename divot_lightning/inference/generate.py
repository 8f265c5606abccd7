"""Generate clips from text: the video LLM predicts features, the de-tokenizer decodes them into pixels.

Shape letters: M prompts, F frames, H height, W width, Q tokens per clip, C feature width.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from divot_datamodules.decoding.video_writing import CODECS, write_video
from divot_datamodules.tasks.built_in import GenerateTask
from divot_lightning.checkpoint.components import find_component, load_component
from divot_lightning.errors import UserError
from divot_lightning.inference.reconstruct import Reconstructor
from divot_lightning.inference.run_config import load_tokenizer, run_fps, run_template
from divot_lightning.inference.unknown_words import warn_of_unknown_words
from divot_lightning.models.detokenizer.video_detokenizer import VideoDetokenizer
from divot_lightning.models.video_llm.model import VideoLLM
from divot_lightning.parts.head_sampling import set_sampling
from divot_lightning.parts.segments import Segment, Text
from divot_lightning.parts.tasks import Template


def generation_prompt(text: str, template: Template) -> list[Segment]:
    """Return the segments that ask for a clip, as a training sample with this caption has them.

    Args:
        text: Caption of the clip.
        template: The form of the prompts that the model was trained on.

    Returns:
        The segments, the clip to generate last.
    """
    return GenerateTask(template).segments({"caption": text}, np.random.default_rng(0))


def generate_clip_features(
    video_llm: VideoLLM,
    texts: Sequence[str],
    *,
    template: Template = "pretraining",
    temperature: float = 1.0,
    seed: int = 0,
    batch_size: int = 64,
) -> Tensor:
    """Predict the features of one clip per text; log a warning about words that the text tokenizer does not know.

    Args:
        video_llm: In evaluation mode.
        texts: Captions of the clips; a text may occur several times.
        template: The form of the prompts that the model was trained on.
        temperature: Spread of the features that the head samples.
        seed: Of the head's sampling.
        batch_size: Texts at a time.

    Returns:
        features_MQC, unnormalised, float32, on the CPU.
    """
    warn_of_unknown_words(video_llm.text_tokenizer, [[Text(text, learn=False)] for text in dict.fromkeys(texts)])
    generator = torch.Generator(video_llm.feature_mean_C.device).manual_seed(seed)
    parts = []
    for start in range(0, len(texts), batch_size):
        prompts = [generation_prompt(text, template) for text in texts[start : start + batch_size]]
        parts.append(video_llm.generate_features(prompts, temperature=temperature, generator=generator).float().cpu())
    return torch.cat(parts)


@dataclass
class ClipGenerator:
    """A video LLM and a de-tokenizer that fit together, ready to generate.

    Attributes:
        video_llm: In evaluation mode.
        reconstructor: Tokenizer and de-tokenizer, which decodes the features.
        template: The form of the prompts that the model was trained on.
    """

    video_llm: VideoLLM
    reconstructor: Reconstructor
    template: Template = "pretraining"

    @classmethod
    def from_run(
        cls,
        run: str | Path,
        detokenizer: str | Path | None = None,
        *,
        template: Template | None = None,
        device: str = "cpu",
        head: Mapping[str, Any] | None = None,
    ) -> "ClipGenerator":
        """Load all parts.

        Args:
            run: Run folder that trained a video LLM.
            detokenizer: Run folder that trained a de-tokenizer; None takes the one that belongs to ``run``.
            template: None takes the run's.
            device: Where the models run.
            head: Sampling settings of the head that replace the run's, by name; see
                `divot_lightning.parts.head_sampling`.

        Returns:
            The generator.

        Raises:
            UserError: Something is missing or does not fit, or the head has no such setting.
        """
        video_llm = load_component(find_component(run, "video_llm"), VideoLLM).eval().use_stored_precision()
        set_sampling(video_llm.head, head or {})
        decoder = load_component(_detokenizer_folder(run, detokenizer), VideoDetokenizer).eval()
        predicted = (video_llm.config.num_queries, video_llm.config.feature_dim)
        accepted = (decoder.config.num_tokens, decoder.config.token_dim)
        if predicted != accepted:
            raise UserError(
                f"The video LLM in {run} predicts {predicted[0]} features of width {predicted[1]}, but the "
                f"de-tokenizer takes {accepted[0]} of width {accepted[1]}.\nGive a de-tokenizer of the same tokenizer."
            )
        reconstructor = Reconstructor(load_tokenizer(run).to(device), decoder.to(device), fps=run_fps(run))
        return cls(video_llm.to(device), reconstructor, template or run_template(run))

    def generate_clips(self, texts: Sequence[str], *, temperature: float = 1.0, seed: int = 0) -> Iterator[Tensor]:
        """Generate one clip per text.

        Args:
            texts: Captions of the clips.
            temperature: Spread of the features that the head samples.
            seed: Of the head's sampling and of the de-tokenizer's noise.

        Yields:
            uint8 (F, 3, H, W) on the CPU, in the order of the texts.
        """
        features_MQC = generate_clip_features(
            self.video_llm, texts, template=self.template, temperature=temperature, seed=seed
        )
        for batch in self.reconstructor.decode(features_MQC, torch.Generator().manual_seed(seed)):
            yield from batch


def _detokenizer_folder(run: str | Path, detokenizer: str | Path | None) -> Path:
    if detokenizer is not None:
        return find_component(detokenizer, "detokenizer")
    try:
        return find_component(run, "detokenizer")
    except UserError as error:
        raise UserError(f"{str(error).splitlines()[0]}\nGive a run that trained one: --detokenizer RUN") from error


def output_paths(output: str | Path, count: int) -> list[Path]:
    """Return the files of several clips.

    Args:
        output: The file; its suffix names the container.
        count: Number of clips.

    Returns:
        The file itself for one clip, else numbered ones.

    >>> [str(path) for path in output_paths("a/x.mp4", 2)]
    ['a/x-0.mp4', 'a/x-1.mp4']
    """
    output = Path(output)
    if output.suffix.lower().lstrip(".") not in CODECS:
        raise UserError(f"--output {output} names no kind of video; end it with one of: .{', .'.join(CODECS)}")
    if count == 1:
        return [output]
    return [output.with_name(f"{output.stem}-{index}{output.suffix}") for index in range(count)]


def generate_files(
    generator: ClipGenerator,
    prompts: Sequence[str],
    output: str | Path,
    *,
    num: int = 1,
    temperature: float = 1.0,
    seed: int = 0,
) -> Iterator[Path]:
    """Write ``num`` clips for each prompt.

    Args:
        generator: The models.
        prompts: Captions of the clips.
        output: See ``output_paths``.
        num: Clips per prompt.
        temperature: Spread of the features that the head samples.
        seed: Of all randomness.

    Yields:
        Each path, as soon as the file is written; all clips of a prompt come before those of the next prompt.
    """
    texts = [prompt for prompt in prompts for _ in range(num)]
    clips = generator.generate_clips(texts, temperature=temperature, seed=seed)
    for path, video in zip(output_paths(output, len(texts)), clips, strict=True):
        yield write_video(path, video.numpy(), generator.reconstructor.fps)
