"""Samples, features and config of a video LLM that is small enough to be run many times."""

import torch

from divot_lightning.models.video_llm.lora import LoRAConfig
from divot_lightning.parts.segments import Clips, Text

GENERATION_MODES = ("query_bidirectional", "query_causal", "autoregressive")
Q, C = 3, 5
TINY = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 32}
TINY |= {"num_key_value_heads": 2}
LORA = LoRAConfig(rank=2, alpha=4, dropout=0.0)

READ = [Clips(1, "read"), Text("a red circle moves left", learn=True)]
GENERATE = [Text("a blue square", learn=False), Clips(1, "generate", learn=True)]
STORY = [Text("a red circle", True), Clips(1, "generate"), Text("a blue square moves right", True)]
STORY = [*STORY, Clips(2, "generate")]
WORDS = [Text("a red square moves left", learn=True)]


def features(num_clips, seed=0):
    return torch.randn(num_clips, Q, C, generator=torch.Generator().manual_seed(seed)) * 2 + 1


def num_clips(*samples):
    return sum(segment.count for sample in samples for segment in sample if isinstance(segment, Clips))


def losses(video_llm, samples, features=None):
    """Return the losses of samples, laid out as the data workers do it."""
    return video_llm(video_llm.sequences(samples), features)
