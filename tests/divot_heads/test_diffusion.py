import pytest
import torch

from divot_heads.diffusion import DiffusionHead, cosine_scheduler
from divot_lightning.errors import UserError


def test_schedule_is_the_cosine_one():
    cumulative = cosine_scheduler("v").alphas_cumprod.double()
    steps = torch.arange(1, 1001, dtype=torch.float64) / 1000
    angle = lambda t: torch.cos((t + 0.008) / 1.008 * torch.pi / 2) ** 2  # noqa: E731
    expected = angle(steps) / angle(torch.zeros(1, dtype=torch.float64))
    torch.testing.assert_close(cumulative[:-1], expected[:-1], atol=1e-5, rtol=0)


@pytest.mark.parametrize("prediction", ["epsilon", "v"])
def test_untrained_loss_is_the_second_moment_of_what_is_predicted(prediction):
    """The denoiser starts as the zero function; noise and velocity of unit features both have variance 1."""
    torch.manual_seed(0)
    head = DiffusionHead(8, 4, prediction=prediction, width=8, depth=1)
    loss = head.loss(torch.randn(64, 16, 8), torch.randn(64, 16, 4))
    assert loss.item() == pytest.approx(1.0, abs=0.03)


@pytest.mark.parametrize("prediction", ["epsilon", "v"])
def test_samples_have_the_two_modes_of_the_data(prediction):
    torch.manual_seed(0)
    head = DiffusionHead(4, 1, prediction=prediction, width=32, depth=2, sampling_steps=25)
    optimizer = torch.optim.Adam(head.parameters(), lr=3e-3)
    for _ in range(300):
        target = torch.randint(2, (32, 4, 1)) * 2.0 - 1.0
        loss = head(torch.zeros(32, 4, 4), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    features = head.sample(torch.zeros(64, 4, 4), generator=torch.Generator().manual_seed(0))
    assert ((features.abs() - 1).abs() < 0.4).float().mean() > 0.85
    assert 0.3 < (features > 0).float().mean() < 0.7


def test_more_draws_make_the_loss_calmer():
    def spread(draws: int) -> float:
        torch.manual_seed(0)
        head = DiffusionHead(8, 4, width=8, depth=1, draws_per_token=draws)
        return torch.stack([head.loss(torch.zeros(2, 2, 8), torch.zeros(2, 2, 4)) for _ in range(50)]).std().item()

    assert spread(16) < 0.5 * spread(1)


@pytest.mark.parametrize(
    ("setting", "value"),
    [("prediction", "x0"), ("draws_per_token", 0), ("sampling_steps", 0), ("sampling_steps", 1001)],
)
def test_setting_out_of_range_is_refused_with_its_value(setting, value):
    with pytest.raises(UserError, match=f"{setting}={value!r}"):
        DiffusionHead(8, 4, **{setting: value})
