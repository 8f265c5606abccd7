from itertools import pairwise

import pytest
import torch

from divot_heads.diffusion import DiffusionHead, cosine_scheduler, sampling_times
from divot_lightning.errors import UserError


def test_schedule_is_the_cosine_one():
    torch.testing.assert_close(cosine_scheduler("v").alphas_cumprod.double(), cosine_alphas(), atol=1e-5, rtol=0)


def cosine_alphas():
    """The cumulative alphas of arXiv:2102.09672, section 3.2, equation 17, with betas of at most 0.999; float64."""
    angle = lambda t: torch.cos((t / 1000 + 0.008) / 1.008 * torch.pi / 2) ** 2  # noqa: E731
    steps = torch.arange(1000, dtype=torch.float64)
    return (1 - (1 - angle(steps + 1) / angle(steps)).clamp(max=0.999)).cumprod(dim=0)


class Recorder(torch.nn.Module):
    """Keeps its inputs and predicts a known function of them."""

    def forward(self, noisy_NC, timestep_N, condition_ND):
        self.noisy, self.timestep, self.condition = noisy_NC, timestep_N, condition_ND
        return 0.3 * noisy_NC + 0.1 * condition_ND[:, :1]


@pytest.mark.parametrize("prediction", ["epsilon", "v"])
def test_the_loss_is_the_error_of_noise_or_velocity_at_equally_likely_steps(prediction):
    """v = sqrt(a) e - sqrt(1 - a) x (arXiv:2202.00512, appendix D)."""
    head = DiffusionHead(8, 3, prediction=prediction, width=8, depth=1, draws_per_token=3)
    head.denoiser = seen = Recorder()
    torch.manual_seed(0)
    hidden, target = torch.randn(400, 5, 8), torch.randn(400, 5, 3)
    loss = head.loss(hidden, target)
    clean = target.reshape(-1, 3).repeat(3, 1).double()
    signal, spread = ((part := cosine_alphas()[seen.timestep][:, None]).sqrt(), (1 - part).sqrt())
    noise = (seen.noisy.double() - signal * clean) / spread
    wanted = noise if prediction == "epsilon" else signal * noise - spread * clean
    predicted = 0.3 * seen.noisy + 0.1 * seen.condition[:, :1]
    assert loss.item() == pytest.approx((predicted - wanted).square().mean().item(), rel=1e-4)
    assert torch.equal(seen.condition, hidden.reshape(-1, 8).repeat(3, 1))
    assert (noise.mean().item(), noise.std().item()) == pytest.approx((0, 1), abs=0.03)
    fractions = torch.quantile(seen.timestep.double() / 999, torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64))
    torch.testing.assert_close(fractions, torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64), atol=0.03, rtol=0)


@pytest.mark.parametrize("steps", [1, 7, 100])
@pytest.mark.parametrize("prediction", ["epsilon", "v"])
def test_the_sampler_draws_from_the_posterior_of_ddpm_between_the_visited_steps(prediction, steps):
    """Mean and variance of q(x_s | x_t, x_0) (arXiv:2006.11239, equations 6 and 7), for betas of the visited steps."""
    head = DiffusionHead(8, 3, prediction=prediction, width=8, depth=1, sampling_steps=steps)
    head.denoiser = Recorder()
    torch.manual_seed(0)
    hidden, generator = torch.randn(2, 4, 8), torch.Generator().manual_seed(1)
    state = 0.7 * torch.randn(8, 3, generator=generator).double()
    alphas = cosine_alphas()[sampling_times(prediction, steps)].tolist()
    for now, after in pairwise([*alphas, 1.0]):
        predicted = 0.3 * state + 0.1 * hidden.reshape(-1, 8)[:, :1]
        if prediction == "epsilon":
            clean = (state - (1 - now) ** 0.5 * predicted) / now**0.5
        else:
            clean = now**0.5 * state - (1 - now) ** 0.5 * predicted
        alpha = now / after
        mean = (after**0.5 * (1 - alpha) * clean + alpha**0.5 * (1 - after) * state) / (1 - now)
        noise = torch.randn(8, 3, generator=generator)
        state = mean + 0.7 * ((1 - alpha) * (1 - after) / (1 - now)) ** 0.5 * noise
    found = head.sample(hidden, temperature=0.7, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(found.reshape(-1, 3).double(), state, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("prediction", ["epsilon", "v"])
def test_untrained_loss_is_the_second_moment_of_the_target(prediction):
    """A new denoiser is the zero function; noise and velocity of unit features both have variance 1."""
    torch.manual_seed(0)
    head = DiffusionHead(8, 4, prediction=prediction, width=8, depth=1)
    loss = head.loss(torch.randn(64, 16, 8), torch.randn(64, 16, 4))
    assert loss.item() == pytest.approx(1.0, abs=0.03)


MEAN, STD = 3.0, 1.0


class ExactDenoiser(torch.nn.Module):
    """The best denoiser of features from N(3, 1): it predicts from the posterior mean, in float64."""

    def __init__(self, prediction):
        super().__init__()
        self.prediction = prediction
        self.alphas = cosine_scheduler(prediction).alphas_cumprod.double()

    def forward(self, noisy_NC, timestep_N, condition_ND):
        alpha_N1 = self.alphas[timestep_N][:, None]
        signal, spread = alpha_N1.sqrt(), (1 - alpha_N1).sqrt()
        clean = MEAN + signal * STD**2 * (noisy_NC.double() - signal * MEAN) / (signal**2 * STD**2 + spread**2)
        noise = (noisy_NC.double() - signal * clean) / spread
        return (noise if self.prediction == "epsilon" else signal * noise - spread * clean).float()


@pytest.mark.parametrize("steps", [1, 2, 7, 99, 100, 150, 300, 600, 1000])
@pytest.mark.parametrize("prediction", ["epsilon", "v"])
def test_an_exact_denoiser_gives_the_distribution_of_the_data_for_every_number_of_steps(prediction, steps):
    head = DiffusionHead(4, 4, prediction=prediction, width=8, depth=1, sampling_steps=steps)
    head.denoiser = ExactDenoiser(prediction)
    features = head.sample(torch.zeros(5, 200, 4), generator=torch.Generator().manual_seed(0))
    assert features.mean().item() == pytest.approx(MEAN, abs=0.08)  # 4000 draws: 5 standard errors
    if steps >= 100:
        assert features.std().item() == pytest.approx(STD, abs=0.06)


@pytest.mark.parametrize("prediction", ["epsilon", "v"])
def test_the_sampler_is_that_of_diffusers_where_its_steps_are_even(prediction):
    torch.manual_seed(0)
    head = DiffusionHead(4, 2, prediction=prediction, width=8, depth=1)
    for parameter in head.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    hidden, generator = torch.randn(2, 3, 4), torch.Generator().manual_seed(1)
    scheduler = cosine_scheduler(prediction)
    scheduler.register_to_config(timestep_spacing="leading" if prediction == "epsilon" else "trailing")
    scheduler.set_timesteps(100)
    with torch.no_grad():
        state = torch.randn(6, 2, generator=generator)
        for step in scheduler.timesteps:
            predicted, noise = (
                head.denoiser(state, step.expand(6), hidden.flatten(0, 1)),
                torch.randn(6, 2, generator=generator),
            )
            state = scheduler.step(predicted, step, state, eta=1.0, variance_noise=noise).prev_sample
    found = head.sample(hidden, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(found.flatten(0, 1), state, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("prediction", ["epsilon", "v"])
def test_every_number_of_steps_visits_as_many_falling_times(prediction):
    for count in [*range(1, 1000, 7), *range(985, 1001)]:
        times = sampling_times(prediction, count)
        assert len(times) == count
        assert 999 >= times[0] >= 990
        assert all(later < earlier for earlier, later in pairwise(times))
        assert times[-1] >= 0


@pytest.mark.parametrize("prediction", ["epsilon", "v"])
def test_samples_have_the_two_modes_of_the_data(prediction):
    torch.manual_seed(0)
    head = DiffusionHead(4, 1, prediction=prediction, width=32, depth=2, sampling_steps=25)
    optimizer = torch.optim.Adam(head.parameters(), lr=3e-3, fused=True)
    for _ in range(300):
        target = torch.randint(2, (32, 4, 1)) * 2.0 - 1.0
        loss = head(torch.zeros(32, 4, 4), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    features = head.sample(torch.zeros(64, 4, 4), generator=torch.Generator().manual_seed(0))
    assert ((features.abs() - 1).abs() < 0.4).float().mean() > 0.85
    assert 0.3 < (features > 0).float().mean() < 0.7


def test_more_draws_make_the_loss_less_noisy():
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
    with pytest.raises(UserError, match=f"{setting}(=| is ){value!r}"):
        DiffusionHead(8, 4, **{setting: value})
