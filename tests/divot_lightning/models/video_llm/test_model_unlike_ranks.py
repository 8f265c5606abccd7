"""Ranks with different samples, under ZeRO-3 too, where all ranks must join each call of a module."""

import copy

import pytest
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

LONG_QUESTION, SHORT_QUESTION = ([LONG_ANSWER[:1]], ANSWERED[:1]), ([SHORT_ANSWER[:1]], ANSWERED[1:])
PROMPTS = [[LONG_QUESTION, SHORT_QUESTION], [SHORT_QUESTION, NOTHING]]
ANSWERS = [[["a red circle moves left"], ["left"]], [["left"], []]]
TARGETS = [[[TWO_CLIPS, ONE_CLIP], [ONE_CLIP]], [[ONE_CLIP], []]]


class Training(nn.Module):
    """A module that calls the model and returns the loss, as a stage does."""

    def __init__(self, video_llm):
        super().__init__()
        self.video_llm = video_llm

    def forward(self, samples, clips):
        output = losses(self.video_llm, samples, clips)
        return output.text_loss + output.head_loss


def generated(video_llm, prompts, targets, *, synced):
    """Return generated answers and clips."""
    texts = [video_llm.generate_text(*question, max_new_tokens=8, synced=synced) for question in prompts]
    generator = torch.Generator().manual_seed(0)
    return texts, [video_llm.generate_features(part, generator=generator, synced=synced) for part in targets]


def generated_and_called(video_llm, prompts, targets, *, synced):
    """Return the same, and the modules with parameters that were called, in order."""
    calls = []
    hooks = [
        module.register_forward_pre_hook(lambda *_, name=name: calls.append(name))
        for name, module in video_llm.named_modules()
        if next(module.parameters(recurse=False), None) is not None
    ]
    result = generated(video_llm, prompts, targets, synced=synced)
    for hook in hooks:
        hook.remove()
    return result, calls


def generate_and_train(rank, video_llms, steps, prompts, targets):
    """Generate with whole models; then train one under ZeRO-3 and generate with its shards."""
    import deepspeed

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # compiles for a minute and serves inference only
    whole = [generated_and_called(video_llm, prompts[rank], targets[rank], synced=True) for video_llm in video_llms]
    video_llm = video_llms[0]
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
    sharded = generated(video_llm.eval(), prompts[rank], targets[rank], synced=True)
    with deepspeed.zero.GatheredParameters(list(video_llm.parameters())):
        return whole, sharded, {name: value.detach().clone() for name, value in video_llm.named_parameters()}


def trained(video_llm):
    """Train the model until it knows both answers, of different lengths, so that one rank finishes first."""
    video_llm.set_feature_statistics(ANSWERED.mean((0, 1)), ANSWERED.std((0, 1)))
    optimizer = torch.optim.AdamW(video_llm.parameters(), lr=5e-3)
    for _ in range(60):
        losses(video_llm, [LONG_ANSWER, SHORT_ANSWER], ANSWERED).text_loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return video_llm


@pytest.fixture(scope="module")
def video_llms(text_tokenizer):
    config = {"language_model_config": {"model_type": "llama", **SIZES}, "text_tokenizer": text_tokenizer}
    config |= {"num_queries": Q, "feature_dim": C, "packing": True}
    torch.manual_seed(0)
    return [
        trained(VideoLLM(VideoLLMConfig(**config, generation_mode=generation_mode), GMMHead).eval())
        for generation_mode in ("query_bidirectional", "autoregressive")
    ]


@pytest.fixture(scope="module")
def results(video_llms):
    return run_distributed(generate_and_train, 2, video_llms, STEPS, PROMPTS, TARGETS)


def test_ranks_in_sync_generate_what_each_generates_alone(video_llms, results):
    for rank, (whole, _, _) in enumerate(results):
        for video_llm, ((texts, clips), _) in zip(video_llms, whole, strict=True):
            own_texts, own_clips = generated(video_llm, PROMPTS[rank], TARGETS[rank], synced=False)
            assert texts == own_texts == ANSWERS[rank]
            torch.testing.assert_close(clips, own_clips)
            assert [len(part) for part in clips] == [[3, 1], [1, 0]][rank]


def test_ranks_in_sync_call_the_same_modules(video_llms, results):
    for index, video_llm in enumerate(video_llms):
        calls = [whole[index][1] for whole, _, _ in results]
        assert calls[0] == calls[1]
        alone = [generated_and_called(video_llm, *pair, synced=False)[1] for pair in zip(PROMPTS, TARGETS, strict=True)]
        assert len(calls[0]) == len(alone[0]) > len(alone[1])


def test_training_in_shards_equals_training_in_one_process(video_llms, results):
    video_llm = copy.deepcopy(video_llms[0])
    optimizer = torch.optim.SGD(video_llm.parameters(), lr=0.1)
    for batches in STEPS:
        torch.stack([Training(video_llm)(*batch) for batch in batches]).mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    moved = dict(video_llm.named_parameters())
    for rank, (_, (texts, clips), weights) in enumerate(results):
        for name, before in video_llms[0].named_parameters():
            scale = 1e-4 * (moved[name] - before).abs().max().item()
            torch.testing.assert_close(weights[name], moved[name].data, rtol=0, atol=scale + 1e-7, msg=name.__add__)
        own_texts, own_clips = generated(video_llm, PROMPTS[rank], TARGETS[rank], synced=False)
        assert texts == own_texts
        torch.testing.assert_close(clips, own_clips, rtol=1e-4, atol=1e-4)
