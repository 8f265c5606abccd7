"""The video LLM: an unmodified causal language model that reads and generates video features.

Features of the tokenizer enter through a two-layer projector; features to be generated are predicted from hidden states
by a generation head (Divot section 3.2 and appendix A.2, arXiv:2412.04432).

Letters: B samples or rows, L row length, M clips of the batch, Q tokens per clip, D LLM width, C feature width, S any
number of features, T targets of the next-word loss.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from divot_lightning.errors import UserError
from divot_lightning.models.video_llm.attention_mask import batch_mask
from divot_lightning.models.video_llm.building import LearnableQueries, build_language_model, initial_queries
from divot_lightning.models.video_llm.clip_generation import generate_features
from divot_lightning.models.video_llm.config import BuiltVideoLLMConfig, VideoLLMConfig
from divot_lightning.models.video_llm.language_model_probe import probe_language_model
from divot_lightning.models.video_llm.lora import LoRAConfig, add_lora, merge_lora, unwrap
from divot_lightning.models.video_llm.losses import (
    VideoLLMOutput,
    generation_loss,
    next_word_loss,
    num_logit_tiles,
)
from divot_lightning.models.video_llm.position_limit import check_positions
from divot_lightning.models.video_llm.projectors import mlp_projector
from divot_lightning.models.video_llm.sampling import generate_text
from divot_lightning.models.video_llm.sequence_embedding import embed_sequences
from divot_lightning.models.video_llm.story import generate_story
from divot_lightning.models.weight_dtypes import lower_for_inference, lower_to_stored, raise_to_float32
from divot_lightning.models.weights import component_tensors, is_sharding
from divot_lightning.parts.heads import GenerationHead
from divot_lightning.parts.part import build_part, spec_of
from divot_lightning.parts.registries.kinds import HEADS
from divot_lightning.parts.segments import SPECIAL_TOKEN_NAMES, Segment
from divot_lightning.parts.sequences.collator import lay_out
from divot_lightning.parts.sequences.rows import SequenceBatch
from divot_lightning.parts.sequences.tokens import SpecialTokens

HeadFactory: TypeAlias = Callable[[int, int], GenerationHead]

SMALLEST_STD = 1e-4
"""Lowest standard deviation by which a channel is divided. Tokens are LayerNorm outputs with deviations near 1."""


class VideoLLM(nn.Module):
    """A causal language model with an input projector, learnable queries and a generation head.

    The language model is any unmodified ``AutoModelForCausalLM`` of transformers: it gets embeddings and returns hidden
    states.

    The released code keeps the learnable queries as embedding rows of tokens named ``<frame_00000>...``. Here they are
    a module of their own: the same function, but it can be trained or frozen on its own, with or without LoRA.

    Features are normalised by ``feature_mean_C`` and ``feature_std_C`` (0 and 1 until ``set_feature_statistics``)
    before they are used as input or target, and sampled features are denormalised; a head never gets raw features.

    Args:
        config: Config of the video LLM without its head.
        head: Function of hidden_dim (D) and feature_dim (C) that returns the generation head; None takes the head that
            a stored config names.
        folder: Component folder with the language model's configuration and the text tokenizer. If it is given, no
            pretrained weights are loaded.
    """

    outer_layers = ("head",)
    """Layers that Muon must not train; see `divot_lightning.training.optimization.inner_matrices`."""

    feature_mean_C: Tensor
    feature_std_C: Tensor

    def __init__(self, config: VideoLLMConfig, head: HeadFactory | None = None, *, folder: Path | None = None) -> None:
        super().__init__()
        self._config = config
        self.num_queries, self.feature_dim = config.feature_shape
        self.text_tokenizer, causal_lm = build_language_model(config, folder)
        if config.frozen_dtype == "float32":
            raise_to_float32(causal_lm)  # before adapters are added, so that they are float32 too
        if folder is None:
            probe_language_model(causal_lm, config.generation_mode)
        check_positions(causal_lm, config.max_length)
        self.special = SpecialTokens.from_tokenizer(self.text_tokenizer)
        dim = causal_lm.config.hidden_size
        input_projector = mlp_projector(self.feature_dim, dim, dim)
        self.queries = LearnableQueries(
            initial_queries(causal_lm, self.num_queries, spread=config.initial_values == "spread")
        )
        self.language_model: nn.Module = causal_lm
        self.input_projector = input_projector
        self.head = _build_head(config, head, dim)
        self.register_buffer("feature_mean_C", torch.zeros(self.feature_dim))
        self.register_buffer("feature_std_C", torch.ones(self.feature_dim))
        self._prepare_training(config)

    def _prepare_training(self, config: VideoLLMConfig) -> None:
        """Add adapters to the language model or freeze it, as the config says; what is trained becomes float32."""
        if config.gradient_checkpointing:
            self.causal_lm.gradient_checkpointing_enable({"use_reentrant": False})
        if config.lora is not None:
            self.add_lora(config.lora)
        if config.freeze_language_model:
            self.language_model.requires_grad_(False)
        raise_to_float32(self.language_model)

    @property
    def config(self) -> BuiltVideoLLMConfig:
        """Return the config, with class and settings of the head, as it is stored with the weights."""
        values = {entry.name: getattr(self._config, entry.name) for entry in fields(VideoLLMConfig)}
        return BuiltVideoLLMConfig(**values, head=spec_of(self.head))

    @property
    def causal_lm(self) -> Any:
        """Return the transformers model itself (``PreTrainedModel``), with its adapters."""
        return unwrap(self.language_model)

    def add_lora(self, lora: LoRAConfig) -> None:
        """Freeze the language model and add adapters to it.

        Args:
            lora: Config of the adapters.
        """
        markers = self.text_tokenizer.convert_tokens_to_ids(list(SPECIAL_TOKEN_NAMES))
        self.language_model = add_lora(self.causal_lm, lora, markers)
        raise_to_float32(self.language_model)
        self._config = replace(self._config, lora=lora)

    def merge_lora(self) -> None:
        """Merge adapters into the weights; afterwards all weights are trainable, unless the config freezes them."""
        if self._config.lora is not None:
            self.language_model = merge_lora(self.language_model)
            self._config = replace(self._config, lora=None)
        self.language_model.requires_grad_(not self._config.freeze_language_model)
        raise_to_float32(self.language_model)

    def use_stored_precision(self) -> VideoLLM:
        """Convert the language model back to the half precision of its stored weights, for use without training.

        Returns:
            The same model; a language model that was stored in float32 stays as it is.
        """
        lower_for_inference(self.language_model, self.causal_lm.config.dtype)
        return self

    def set_layout(self, *, max_length: int | None, packing: bool) -> None:
        """Change the rows of training batches; see `VideoLLMConfig`.

        Args:
            max_length: Longest training sequence in tokens; None for no limit.
            packing: Whether samples may share rows.
        """
        check_positions(self.causal_lm, max_length)
        self._config = replace(self._config, max_length=max_length, packing=packing)

    def set_feature_statistics(self, mean_C: Tensor, std_C: Tensor) -> None:
        """Set how features are normalised.

        Args:
            mean_C: Mean of the tokenizer's features per channel, float.
            std_C: Their standard deviation, float; values below ``SMALLEST_STD`` are raised to it.
        """
        self.feature_mean_C.copy_(mean_C)
        self.feature_std_C.copy_(std_C.clamp(min=SMALLEST_STD))

    def save_extra(self, folder: Path) -> None:
        """Write the text tokenizer and the language model's configuration, which weights and config do not contain.

        Args:
            folder: The component folder.
        """
        self.text_tokenizer.save_pretrained(folder / "text_tokenizer")
        self.causal_lm.config.save_pretrained(folder / "language_model")

    @classmethod
    def from_component(cls, config: dict[str, Any], folder: Path) -> VideoLLM:
        """Build the module of a component folder, with random weights.

        Args:
            config: The stored config.
            folder: The component folder.

        Returns:
            The module, whose state has the keys of the stored weights.

        Raises:
            UserError: The stored config does not fit.
        """
        try:
            lora = LoRAConfig(**config["lora"]) if config.get("lora") else None
            stored = BuiltVideoLLMConfig(**{**config, "lora": lora})
        except TypeError as error:
            raise UserError(f"The config in {folder} does not fit a VideoLLM: {error}") from error
        video_llm = cls(stored, folder=folder)
        if stored.frozen_dtype == "stored" and not is_sharding():
            lower_to_stored(video_llm, component_tensors(folder))
        return video_llm

    def forward(self, batch: SequenceBatch, features_MQC: Tensor | None) -> VideoLLMOutput:
        """Compute the losses of a batch.

        Every trainable part is used in every batch, with weight zero if the batch does not need it: under parallel
        training all ranks must have gradients for the same parameters.

        Args:
            batch: The sequences of the samples, on the CPU; see `divot_lightning.parts.sequences.collator`.
            features_MQC: Features of all clips in order of appearance, unnormalised, float; None without clips.

        Returns:
            The losses.
        """
        features_MQC = self.normalise(features_MQC, batch.num_clips)
        hidden_BLD = self.hidden_states(batch, self.embed(batch, features_MQC))
        num_tiles = num_logit_tiles(self.causal_lm.config.get_text_config().vocab_size)
        text_loss, num_targets = next_word_loss(self.logits, batch, hidden_BLD, num_tiles)
        generation_mode = self._config.generation_mode
        head_loss, num_clips = generation_loss(
            self.head, batch, hidden_BLD, features_MQC, generation_mode=generation_mode
        )
        return VideoLLMOutput(text_loss, head_loss, num_targets, num_clips)

    def sequences(self, samples: list[list[Segment]], *, prompt: bool = False) -> SequenceBatch:
        """Lay out samples with this model's text tokenizer and config; see `lay_out` for arguments and result."""
        layout = self._config.layout(self.causal_lm.config.hidden_size)
        return lay_out(samples, self.special, self.text_tokenizer, layout, prompt=prompt)

    def normalise(self, features_MQC: Tensor | None, num_clips: int) -> Tensor:
        """Check and normalise features.

        Args:
            features_MQC: Unnormalised features, float; None if there are no clips.
            num_clips: M, the number of clips in the sequences.

        Returns:
            features_MQC, normalised, float32, on the model's device.

        Raises:
            UserError: The features have another shape.
        """
        expected = (num_clips, self.num_queries, self.feature_dim)
        if features_MQC is None:
            features_MQC = self.feature_mean_C.new_zeros(0, *expected[1:])
        if tuple(features_MQC.shape) != expected:
            raise UserError(
                f"The features have the shape {tuple(features_MQC.shape)}, but the video LLM needs {expected}:\n"
                "clips of the batch, tokens per clip, width. Give the features of the tokenizer that it was trained on."
            )
        features_MQC = features_MQC.to(self.feature_mean_C.device, torch.float32)
        return (features_MQC - self.feature_mean_C) / self.feature_std_C

    def embed(self, batch: SequenceBatch, features_MQC: Tensor) -> Tensor:
        """Embed sequences: words, projected features, learnable queries.

        Args:
            batch: The sequences.
            features_MQC: Normalised features, float.

        Returns:
            embeds_BLD in the dtype of the word embeddings.
        """
        words = self.causal_lm.get_input_embeddings()
        return embed_sequences(batch, features_MQC, words=words, queries=self.queries, project=self.project)

    def project(self, features_SC: Tensor, dtype: torch.dtype) -> Tensor:
        """Project features to input embeddings of the language model.

        Args:
            features_SC: Normalised features, float.
            dtype: Dtype of the word embeddings.

        Returns:
            projected_SD in dtype.
        """
        return self.input_projector(features_SC.to(next(self.input_projector.parameters()).dtype)).to(dtype)

    def hidden_states(self, batch: SequenceBatch, embeds_BLD: Tensor) -> Tensor:
        """Run the language model, without its output layer.

        Args:
            batch: The sequences.
            embeds_BLD: From ``embed``.

        Returns:
            hidden_BLD, the last hidden states, after the model's final normalisation.
        """
        mask = batch_mask(self.causal_lm.config, batch, self._config.generation_mode, embeds_BLD)
        ids_BL = batch.position_ids_BL.to(embeds_BLD.device, non_blocking=True)
        positions = {"position_ids": ids_BL} if batch.packed else {}
        model = self.causal_lm.base_model
        return model(inputs_embeds=embeds_BLD, attention_mask=mask, use_cache=False, **positions).last_hidden_state

    def logits(self, hidden_TD: Tensor) -> Tensor:
        """Apply the output layer.

        Args:
            hidden_TD: Hidden states.

        Returns:
            Logits, (T, V), float32.
        """
        return self.causal_lm.get_output_embeddings()(hidden_TD).float()

    generate_text = generate_text
    generate_features = generate_features
    generate_story = generate_story


def _build_head(config: VideoLLMConfig, head: HeadFactory | None, hidden_dim: int) -> GenerationHead:
    """Build the given head, or the one that a stored config names."""
    given = head or getattr(config, "head", None)
    if given is None:
        raise UserError("VideoLLM needs a head; only a stored video LLM names its own.")
    _, feature_dim = config.feature_shape
    built: GenerationHead = build_part(
        given, HEADS, "the stored video LLM", hidden_dim=hidden_dim, feature_dim=feature_dim
    )
    return built
