"""Config of the video LLM."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from divot_lightning.models.video_llm.language_model import Attention, LoRAConfig
from divot_lightning.models.video_llm.sequences import GenerationMode
from divot_lightning.models.weight_dtypes import FrozenDtype


@dataclass
class VideoLLMConfig:
    """Config of the video LLM, without its generation head.

    Attributes:
        language_model: Folder of a pretrained transformers causal language model; None builds an untrained one from
            language_model_config.
        language_model_config: Keys of a transformers configuration (model_type, hidden_size, ...) for a model with
            random weights.
        text_tokenizer: Folder of the text tokenizer; None takes the one in the language_model folder.
        num_queries: Tokens per clip; must equal the tokenizer's.
        feature_dim: Width of the tokenizer's features.
        generation_mode: How clips are generated: by queries that attend to all queries of the clip
            ("query_bidirectional") or to the earlier ones ("query_causal"), or one feature after another
            ("autoregressive"). In the last mode the head is trained and sampled one token at a time, even if it could
            sample the tokens of a clip jointly.
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
        attention: Attention implementation of transformers.
        gradient_checkpointing: Recompute activations in the backward pass: less memory, about a third more time.
    """

    language_model: str | None = None
    language_model_config: dict[str, Any] | None = None
    text_tokenizer: str | None = None
    num_queries: int = 64
    feature_dim: int = 256
    generation_mode: GenerationMode = "query_bidirectional"
    lora: LoRAConfig | None = None
    frozen_dtype: FrozenDtype = "float32"
    freeze_language_model: bool = False
    max_length: int | None = 1400
    packing: bool = False
    attention: Attention = "sdpa"
    gradient_checkpointing: bool = False


@dataclass
class BuiltVideoLLMConfig(VideoLLMConfig):
    """Config of a stored video LLM, with class and settings of its head, so that the head can be built again.

    Attributes:
        head_class: Dotted path of the generation head's class.
        head_init_args: Settings of the generation head.
    """

    head_class: str = ""
    head_init_args: dict[str, Any] = field(default_factory=dict)
