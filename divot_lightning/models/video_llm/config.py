"""Config of the video LLM."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias

from divot_lightning.errors import UserError, require_at_least
from divot_lightning.models.block_attention import Attention
from divot_lightning.models.video_llm.lora import LoRAConfig
from divot_lightning.models.weight_dtypes import FrozenDtype
from divot_lightning.parts.part import PartSpec
from divot_lightning.parts.sequences.layout import GenerationMode, SequenceLayout

InitialValues: TypeAlias = Literal["spread", "released"]


@dataclass
class VideoLLMConfig:
    """Config of the video LLM, without its generation head.

    Attributes:
        language_model: Folder of a pretrained transformers causal language model, or id of a hub repository; None
            builds an untrained one from language_model_config.
        revision: Commit, tag or branch of the hub repository, which is downloaded unless it is in the local cache; with
            None only the cache is looked at.
        language_model_config: Keys of a transformers configuration (model_type, hidden_size, ...) for a model with
            random weights.
        text_tokenizer: Folder of the text tokenizer; None takes the one in the language_model folder.
        num_queries: Q, tokens per clip. It follows from the tokenizer; a recipe need not state it.
        feature_dim: C, width of the tokenizer's tokens; it follows from the tokenizer too.
        features_on_sphere: Whether all tokens of the tokenizer have the norm sqrt(C), so that generated ones are scaled
            to it, too, also before the model reads them back; it follows from the tokenizer.
        generation_mode: How clips are generated: by queries that attend to all queries of the clip
            ("query_bidirectional") or to the earlier ones ("query_causal"), or one feature after another
            ("autoregressive"). In the last mode the head is trained and sampled one token at a time, even if it could
            sample the tokens of a clip jointly.
        initial_values: Of what a pretrained language model lacks. "spread": queries are sampled around the mean of the
            word embeddings, and rows of new tokens are the mean. "released": queries are that mean too, and rows of new
            tokens in an output layer of its own are three times the mean of its other rows.
        lora: Low-rank adapters, trained in place of all weights of the language model; none by default.
        frozen_dtype: Dtype of the language model's weights that are not trained: "float32", or "stored" for the dtype
            in their folder, which halves the memory of a model in bfloat16 and needs trainer.precision bf16-mixed.
            Trained weights are float32, and so are weights after adapters were merged into them. Under DeepSpeed in
            half precision this has no effect: all weights are in half precision, and trained ones have float32 copies.
        freeze_language_model: Do not train the language model; projector, queries and head are trained.
        max_length: Longest training sequence in tokens; texts of longer samples are shortened. The paper's are 1400 in
            pretraining and 1650 in instruction tuning.
        packing: Let samples of a training batch share rows of at most max_length tokens where that is cheaper than
            padding to the longest sample. They do not attend to each other; losses and gradients stay the same.
        attention: How attention is computed. "sdpa" and "eager" are those of transformers. "flex" is sdpa too, but rows
            that need a mask are computed with FlexAttention on CUDA. "auto" is flex if the language model has it,
            otherwise sdpa or eager.
        gradient_checkpointing: Recompute activations in the backward pass: less memory, about a third more time.
    """

    language_model: str | None = None
    revision: str | None = None
    language_model_config: dict[str, Any] | None = None
    text_tokenizer: str | None = None
    num_queries: int | None = None
    feature_dim: int | None = None
    features_on_sphere: bool = False
    generation_mode: GenerationMode = "query_bidirectional"
    initial_values: InitialValues = "spread"
    lora: LoRAConfig | None = None
    frozen_dtype: FrozenDtype = "float32"
    freeze_language_model: bool = False
    max_length: int | None = 1400
    packing: bool = False
    attention: Attention = "auto"
    gradient_checkpointing: bool = False

    def __post_init__(self) -> None:
        require_at_least(1, "llm.", max_length=self.max_length)

    @property
    def feature_shape(self) -> tuple[int, int]:
        """Return (Q, C).

        Raises:
            UserError: They are not known.
        """
        if self.num_queries is None or self.feature_dim is None:
            raise UserError(
                f"num_queries={self.num_queries} and feature_dim={self.feature_dim} of the video LLM are not known.\n"
                "Take them from the tokenizer (VideoLLMConfig.for_tokenizer), or set both."
            )
        return self.num_queries, self.feature_dim

    def for_tokenizer(self, num_tokens: int, token_dim: int, on_sphere: bool = False) -> VideoLLMConfig:
        """Return this config with the sizes of a tokenizer's tokens.

        Args:
            num_tokens: Tokens that the tokenizer gives per clip.
            token_dim: Their width.
            on_sphere: Whether they all have the norm sqrt(token_dim).

        Raises:
            UserError: The config states other sizes.
        """
        if self.num_queries not in (None, num_tokens) or self.feature_dim not in (None, token_dim):
            raise UserError(
                f"llm.num_queries is {self.num_queries} and llm.feature_dim is {self.feature_dim}, but the tokenizer "
                f"gives {num_tokens} tokens of width {token_dim}.\n"
                "Remove both from the recipe, since they follow from the tokenizer, or choose another tokenizer."
            )
        return replace(self, num_queries=num_tokens, feature_dim=token_dim, features_on_sphere=on_sphere)

    def layout(self, width: int | None) -> SequenceLayout:
        """Return how samples are laid out.

        Args:
            width: D, width of the language model; only needed for packing.
        """
        return SequenceLayout(
            self.feature_shape[0], self.generation_mode, self.max_length, width if self.packing else None
        )


@dataclass
class BuiltVideoLLMConfig(VideoLLMConfig):
    """Config of a stored video LLM, with class and settings of its head, so that the head can be built again.

    Attributes:
        head: Class and settings of the generation head.
    """

    head: PartSpec | None = None
