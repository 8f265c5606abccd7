"""The flow head keeps the contract of a generation head, and its tokens agree."""

import pytest
import torch
from divot_head_flow import FlowHead

from divot_lightning.errors import UserError
from divot_lightning.parts.head_sampling import set_sampling
from divot_lightning.parts.heads import GenerationHead
from divot_lightning.testing import HeadConformance


class TestFlowHead(HeadConformance):
    """The contract of a generation head."""

    def make_head(self, hidden_dim: int, feature_dim: int) -> GenerationHead:
        """Build a small head."""
        return FlowHead(hidden_dim, feature_dim, width=32, depth=2, num_attention_heads=2)


@pytest.mark.parametrize("times", ["logit_normal", "uniform"])
def test_tokens_of_one_clip_agree_on_what_they_share_with_every_solver(times: str) -> None:
    """In the data all tokens of a clip are +1 or all are -1; the hidden states do not say which."""
    torch.manual_seed(0)
    head = FlowHead(4, 2, width=32, depth=2, num_attention_heads=2, times=times)
    optimizer = torch.optim.Adam(head.parameters(), lr=3e-3, fused=True)
    for _ in range(200):
        sign_B11 = torch.randint(2, (32, 1, 1)) * 2.0 - 1.0
        loss = head(torch.zeros(32, 4, 4), sign_B11.expand(32, 4, 2))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    for solver in ("euler", "midpoint"):
        set_sampling(head, {"solver": solver})
        features_BQC = head.sample(torch.zeros(64, 4, 4), generator=torch.Generator().manual_seed(0))
        positive_B = (features_BQC > 0).float().mean(dim=(1, 2))
        assert ((positive_B < 0.1) | (positive_B > 0.9)).float().mean() > 0.9
        assert 0.2 < positive_B.mean() < 0.8


@pytest.mark.parametrize(
    ("setting", "value"),
    [("times", "cosine"), ("solver", "rk4"), ("width", 130), ("draws_per_clip", 0), ("sampling_steps", 1)],
)
def test_setting_out_of_range_is_refused_with_its_value(setting: str, value: object) -> None:
    """The message contains the value."""
    with pytest.raises(UserError, match=f"{setting}={value!r}"):
        FlowHead(8, 4, **{setting: value})
