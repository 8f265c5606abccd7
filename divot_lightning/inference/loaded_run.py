"""The models of a run, each loaded when it is first needed, and what they do with tensors.

Commands, evaluations and `DivotPipeline` all use them through this class.

Shape letters: B batch, N clips, M texts, F frames, H height, W width, Q tokens per clip, C feature width.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from divot_datamodules.decoding.clip_sampling import ClipConfig
from divot_lightning.checkpoint.components import load_component
from divot_lightning.checkpoint.run_components import find_component
from divot_lightning.errors import UserError, first_line
from divot_lightning.inference.clip_requests import ClipRequest
from divot_lightning.inference.generate import generate_clip_features
from divot_lightning.inference.run_config import (
    load_tokenizer,
    run_clip_config,
    run_fps,
    run_resize,
    run_tasks,
    run_template,
)
from divot_lightning.io.hub import pretrained_folder
from divot_lightning.models.clip_encoding import encode_clips
from divot_lightning.models.detokenizer.sampling import SamplingConfig
from divot_lightning.models.detokenizer.video_detokenizer import VideoDetokenizer
from divot_lightning.models.pixels import to_uint8
from divot_lightning.models.randomness import seeded_generator
from divot_lightning.models.tokenizer.bottleneck import keep_leading
from divot_lightning.models.tokenizer.video_tokenizer import VideoTokenizer
from divot_lightning.models.video_llm.model import VideoLLM
from divot_lightning.parts.part import spec_of
from divot_lightning.parts.sampling import sampling_of, set_sampling
from divot_lightning.parts.tasks import Template

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def load_run(
    name: str | Path, detokenizer: str | Path | None = None, *, revision: str | None = None, **options: Any
) -> "LoadedRun":
    """Open a run folder, or a repository of the Hugging Face hub that holds one.

    Args:
        name: Run folder, folder of components, or id of a hub repository.
        detokenizer: As ``name``, of another de-tokenizer.
        revision: Commit, tag or branch of the hub repositories. Without it the network is not used: only what was
            downloaded before is found.
        options: See `LoadedRun`.
    """
    folders = [None if one is None else pretrained_folder(str(one), revision, "the run") for one in (name, detokenizer)]
    return LoadedRun(folders[0] or name, folders[1], **options)


def usable_device(device: str | torch.device) -> torch.device:
    """Return a device of this machine.

    Raises:
        UserError: This machine, or this build of torch, has no such device.
    """
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # the latter from a torch without CUDA
        raise UserError(f"device {str(device)!r} cannot be used: {first_line(error)}\ncpu always can") from error
    return torch.device(device)


class LoadedRun:
    """The models of a run, each loaded when it is first needed.

    Args:
        run: Run folder, or a folder of components.
        detokenizer: Run folder that trained the de-tokenizer, such as an adapted one; None takes the one of ``run``.
        template: The form of the prompts that the model was trained on; None takes the run's.
        head: Sampling settings of the head that replace the run's, by name; see
            `divot_lightning.parts.sampling`.
        device: Where the models run.
        dtype: Of tokenizer, de-tokenizer and language model: float32, bfloat16 or float16. None takes float32, and for
            the language model the dtype of its pretrained weights.
        batch_size: Clips that are decoded at a time.

    Raises:
        UserError: There is no such folder, or the dtype is unknown. What is wrong with a model is found when it is
            loaded.
    """

    def __init__(
        self,
        run: str | Path,
        detokenizer: str | Path | None = None,
        *,
        template: Template | None = None,
        head: Mapping[str, Any] | None = None,
        device: str | torch.device = "cpu",
        dtype: str | torch.dtype | None = None,
        batch_size: int = 32,
    ) -> None:
        self.run, self.detokenizer_run = Path(run), detokenizer
        for folder in (run, *(() if detokenizer is None else (detokenizer,))):
            if not Path(folder).is_dir():
                raise UserError(f"there is no run folder {folder}\nrun the stage that makes it, or correct the path")
        if dtype not in (None, *DTYPES, *DTYPES.values()):
            raise UserError(f"dtype is {dtype!r}; choose one of {', '.join(DTYPES)}, or None for the stored one")
        self.dtype = DTYPES.get(dtype) if isinstance(dtype, str) else dtype
        self.template: Template = template or run_template(run)
        self.tasks, self.fps = run_tasks(run), run_fps(run)
        self.head, self.device, self.batch_size = dict(head or {}), usable_device(device), batch_size

    @cached_property
    def tokenizer(self) -> VideoTokenizer:
        """The tokenizer, in evaluation mode."""
        return load_tokenizer(self.run).to(self.device, self.dtype)

    @cached_property
    def null_tokens(self) -> Tensor:
        """Tokens of an all-zero clip of the de-tokenizer's size, (Q, C), for guidance."""
        return self.tokenizer.null_tokens(self.detokenizer.config.size, self.detokenizer.config.size)

    @cached_property
    def detokenizer(self) -> VideoDetokenizer:
        """The de-tokenizer, in evaluation mode."""
        folder = _detokenizer_folder(self.run, self.detokenizer_run)
        return load_component(folder, VideoDetokenizer).eval().to(self.device, self.dtype)

    @cached_property
    def video_llm(self) -> VideoLLM:
        """The video LLM, in evaluation mode, with the sampling settings that were given for its head."""
        video_llm = load_component(find_component(self.run, "video_llm"), VideoLLM).eval().use_stored_precision()
        set_sampling(video_llm.head, self.head)
        if self.dtype is not None:
            video_llm.language_model.to(self.dtype)
        return video_llm.to(self.device)

    @cached_property
    def clip(self) -> ClipConfig:
        """How clips are cut for the tokenizer; only the frames that it reads are decoded."""
        config = self.tokenizer.config
        return replace(run_clip_config(self.run, config), sparse_frames=config.num_frames)

    @property
    def decoded_clip(self) -> ClipConfig:
        """How the de-tokenizer's clips are cut: all frames, in its size."""
        config = self.detokenizer.config
        resize = run_resize(self.run)
        return ClipConfig(config.size, config.size, config.num_frames, self.fps, short_videos="squeeze", resize=resize)

    def encode(self, video_NFCHW: Tensor, num_tokens: int | None = None) -> Tensor:
        """Return the features of clips.

        Args:
            video_NFCHW: uint8 (N, F, 3, H, W).
            num_tokens: Leading tokens of each clip to keep, the others become zero; for a tokenizer that was trained
                with nested dropout. None keeps all.

        Returns:
            (N, Q, C) float32 on the CPU.

        Raises:
            UserError: A clip has not so many tokens.
        """
        features_NQC = encode_clips(self.tokenizer, video_NFCHW).cpu()
        return features_NQC if num_tokens is None else keep_leading(features_NQC, num_tokens)

    @torch.no_grad()
    def decode(
        self, features_NQC: Tensor, generator: torch.Generator | None = None, sampling: SamplingConfig | None = None
    ) -> Iterator[Tensor]:
        """Decode features into clips, batch by batch.

        Args:
            features_NQC: Features, float.
            generator: Source of randomness, on the CPU.
            sampling: Steps and guidance; those of the de-tokenizer by default.

        Yields:
            uint8 (B, F, 3, H, W) on the CPU.
        """
        weight = next(self.detokenizer.parameters())
        guided = (sampling or self.detokenizer.config.sampling).guidance != 1.0
        null_QC = self.null_tokens.to(weight) if guided else None
        for features_BQC in features_NQC.split(self.batch_size):
            video_BFCHW = self.detokenizer.decode(
                features_BQC.to(weight), null_tokens_QC=null_QC, sampling=sampling, generator=generator
            )
            yield to_uint8(video_BFCHW.float()).cpu()

    def generate(
        self,
        texts: Sequence[str],
        *,
        request: ClipRequest | None = None,
        temperature: float = 1.0,
        seed: int = 0,
        sampling: SamplingConfig | None = None,
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Generate one clip per text, all from one stream of random numbers.

        Args:
            texts: Captions of the clips.
            request: How they are asked for; None takes a phrase of the run's own task, and opens the clips.
            temperature: Spread of the features that the head samples.
            seed: Of the head's sampling and of the de-tokenizer's noise.
            sampling: Steps and guidance; those of the de-tokenizer by default.

        Yields:
            A clip, uint8 (F, 3, H, W), and its features (Q, C), on the CPU, in the order of the texts.
        """
        self.check_fit()
        features_MQC = generate_clip_features(
            self.video_llm,
            texts,
            template=self.template,
            request=replace(request or ClipRequest(), task_settings=self.tasks.get("generate", {})),
            temperature=temperature,
            seed=seed,
        )
        batches = self.decode(features_MQC, seeded_generator(seed), sampling)
        yield from zip((clip for batch in batches for clip in batch), features_MQC, strict=True)

    def check_fit(self) -> None:
        """Refuse a de-tokenizer that takes other features than the video LLM predicts."""
        predicted = (self.video_llm.config.num_queries, self.video_llm.config.feature_dim)
        accepted = (self.detokenizer.config.num_tokens, self.detokenizer.config.token_dim)
        if predicted != accepted:
            raise UserError(
                f"The video LLM in {self.run} predicts {predicted[0]} features of width {predicted[1]}, but the "
                f"de-tokenizer takes {accepted[0]} of width {accepted[1]}.\nGive a de-tokenizer of the same tokenizer."
            )

    def generator(self, seed: int) -> torch.Generator:
        """Return a source of randomness on the models' device."""
        return seeded_generator(seed, self.device)

    def settings(self, **more: Any) -> dict[str, Any]:
        """Return what decided a result besides the weights, as JSON values."""
        dtype = None if self.dtype is None else str(self.dtype).removeprefix("torch.")
        own = {"run": str(self.run), "template": self.template, "device": str(self.device), "dtype": dtype}
        return {**own, "fps": self.fps, **more}

    def decoding_settings(self, sampling: SamplingConfig) -> dict[str, Any]:
        """Return how clips are decoded, as JSON values."""
        used = self.detokenizer_run
        objective = asdict(spec_of(self.detokenizer.objective))
        decoding = {"detokenizer": None if used is None else str(used), "objective": objective}
        return {**decoding, "sampling": asdict(sampling)}

    def reconstruction_settings(self, sampling: SamplingConfig, seed: int, num_tokens: int | None) -> dict[str, Any]:
        """Return how clips are reconstructed, as JSON values."""
        kept = {} if num_tokens is None else {"num_tokens": num_tokens}
        return self.settings(**self.decoding_settings(sampling), seed=seed, **kept)

    def generation_settings(self, sampling: SamplingConfig, **more: Any) -> dict[str, Any]:
        """Return how clips are generated, as JSON values."""
        head = sampling_of(self.video_llm.head)
        return self.settings(head=head, **self.decoding_settings(sampling), **more)


def _detokenizer_folder(run: str | Path, detokenizer: str | Path | None) -> Path:
    if detokenizer is not None:
        return find_component(detokenizer, "detokenizer")
    try:
        return find_component(run, "detokenizer")
    except UserError as error:
        raise UserError(f"{first_line(error, None)}\nGive a run that trained one: --detokenizer RUN") from error
