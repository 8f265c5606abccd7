import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from divot_lightning.models.video_llm.model import VideoLLM
from divot_lightning.models.video_llm.sampling import sample_tokens
from tests.divot_lightning.models.video_llm.tiny_video_llm import GENERATE, GENERATION_MODES, C, Q


def test_temperature_zero_takes_the_most_likely_token():
    logits_BV = torch.randn(5, 7, generator=torch.Generator().manual_seed(0))
    assert torch.equal(sample_tokens(logits_BV, temperature=0, top_p=1.0), logits_BV.argmax(dim=-1))


@given(st.integers(0, 50), st.floats(0.05, 1.0), st.floats(0.2, 3.0))
def test_only_tokens_within_top_p_are_drawn(seed, top_p, temperature):
    generator = torch.Generator().manual_seed(seed)
    logits_V = torch.randn(6, generator=generator) * 2
    probabilities = (logits_V / temperature).softmax(dim=-1).tolist()
    allowed, reached = set(), 0.0
    for token in sorted(range(6), key=lambda index: -probabilities[index]):
        if reached >= top_p - 1e-6 and allowed:
            break
        allowed.add(token)
        reached += probabilities[token]
    drawn = sample_tokens(logits_V.expand(64, -1), temperature, top_p - 1e-6, generator)
    assert set(drawn.tolist()) <= allowed


def test_samples_follow_the_softmax_at_the_temperature():
    logits_V = torch.tensor([0.0, 1.0, 2.0, -torch.inf])
    drawn = sample_tokens(logits_V.expand(20000, -1), 2.0, 1.0, torch.Generator().manual_seed(0))
    frequency = torch.bincount(drawn, minlength=4) / len(drawn)
    torch.testing.assert_close(frequency, (logits_V / 2).softmax(dim=-1), atol=0.02, rtol=0)
    assert frequency[3] == 0


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_forbidden_tokens_are_never_chosen(temperature):
    logits_BV = torch.tensor([[9.0, 0.0]]).masked_fill(torch.tensor([True, False]), -torch.inf)
    assert sample_tokens(logits_BV, temperature, 1.0).tolist() == [1]


@pytest.mark.parametrize("generation_mode", GENERATION_MODES)
def test_features_are_generated_on_the_sphere_and_read_back_from_there(make, generation_mode, monkeypatch):
    video_llm, plain = (make(generation_mode=generation_mode, features_on_sphere=on) for on in (True, False))
    for model in (video_llm, plain):
        model.set_feature_statistics(torch.arange(5.0), torch.arange(1.0, 6.0))
    read, project = [], VideoLLM.project

    def watched(self, features_SC, dtype):
        read.append(features_SC)
        return project(self, features_SC, dtype)

    monkeypatch.setattr(VideoLLM, "project", watched)
    features_MQC = video_llm.generate_features([GENERATE])
    torch.testing.assert_close(features_MQC.norm(dim=-1), torch.full((1, Q), C**0.5))
    if generation_mode == "autoregressive":
        raw_NC = torch.cat(read[-Q + 1 :]) * video_llm.feature_std_C + video_llm.feature_mean_C
        torch.testing.assert_close(raw_NC, features_MQC[0, :-1])
    first = plain.generate_features([GENERATE])[:, 0]
    torch.testing.assert_close(torch.cosine_similarity(first, features_MQC[:, 0]), torch.ones(1))
