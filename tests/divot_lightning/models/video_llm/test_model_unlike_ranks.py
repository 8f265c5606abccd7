"""Ranks with different samples, under ZeRO-3 too, where all ranks must join each call of a module."""

import copy

import torch
from torch import nn

from divot_heads.gmm import GMMHead
from divot_lightning.models.video_llm.model import VideoLLM, VideoLLMConfig
from divot_lightning.parts.segments import Clips, Text
from divot_lightning.testing import run_distributed
from tests.divot_lightning.models.video_llm.tiny_video_llm import C, Q, losses

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 32}

LONG_ANSWER = [Clips(1, "read"), Text("a red circle moves left", learn=True)]
SHORT_ANSWER = [Clips(1, "read"), Text("left", learn=True)]
WORDS = [Text("a red square moves left", learn=True)]
ONE_CLIP = [Text("a blue square", learn=False), Clips(1, "generate", learn=True)]
TWO_CLIPS = [Text("a blue square", learn=False), Clips(2, "generate")]
ANSWERED = torch.randn(2, Q, C, generator=torch.Generator().manual_seed(0)) * 2 + 1
NOTHING = ([], None)

STEPS = [
    [([LONG_ANSWER], ANSWERED[:1]), ([WORDS], None)],
    [([WORDS, TWO_CLIPS], ANSWERED), NOTHING],
    [([SHORT_ANSWER], ANSWERED[1:]), ([ONE_CLIP, LONG_ANSWER], ANSWERED)],
]
"""Samples and features of each of two ranks, by training step."""


class Training(nn.Module):
    """A module that calls the model and returns the loss, as a stage does."""

    def __init__(self, video_llm):
        super().__init__()
        self.video_llm = video_llm

    def forward(self, samples, clips):
        output = losses(self.video_llm, samples, clips)
        return output.text_loss + output.head_loss


def train_in_shards(rank, video_llm, steps):
    """Train under ZeRO-3 and return the whole weights."""
    import deepspeed

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # compiles for a minute and serves inference only
    engine, *_ = deepspeed.initialize(
        model=Training(video_llm),
        optimizer=torch.optim.SGD(video_llm.parameters(), lr=0.1),
        config={
            "train_micro_batch_size_per_gpu": 1,
            "gradient_clipping": 0.0,
            "zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": 0},
            "zero_allow_untested_optimizer": True,
        },
    )
    for batches in steps:
        engine.backward(engine(*batches[rank]))
        engine.step()
    with deepspeed.zero.GatheredParameters(list(video_llm.parameters())):
        return {name: value.detach().clone() for name, value in video_llm.named_parameters()}


def test_training_in_shards_equals_training_in_one_process(text_tokenizer):
    config = {"language_model_config": {"model_type": "llama", **SIZES}, "text_tokenizer": text_tokenizer}
    config |= {"num_queries": Q, "feature_dim": C, "packing": True}
    torch.manual_seed(0)
    before = VideoLLM(VideoLLMConfig(**config), GMMHead).eval()
    before.set_feature_statistics(ANSWERED.mean((0, 1)), ANSWERED.std((0, 1)))
    sharded = run_distributed(train_in_shards, 2, before, STEPS)
    video_llm = copy.deepcopy(before)
    optimizer = torch.optim.SGD(video_llm.parameters(), lr=0.1)
    for batches in STEPS:
        torch.stack([Training(video_llm)(*batch) for batch in batches]).mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    moved = dict(video_llm.named_parameters())
    for weights in sharded:
        for name, value in before.named_parameters():
            scale = 1e-4 * (moved[name] - value).abs().max().item()
            torch.testing.assert_close(weights[name], moved[name].data, rtol=0, atol=scale + 1e-7, msg=name.__add__)
