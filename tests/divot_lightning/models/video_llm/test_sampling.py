import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from divot_lightning.models.video_llm.sampling import sample_tokens


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
