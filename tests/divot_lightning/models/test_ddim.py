import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler

from divot_lightning.models.ddim import exact_scheduler, take_step

TIMES = [999, 870, 500, 499, 3]


def slow_step(kind, here, there, prediction, state, eta, noise):
    """DDIM, equation 12 of arXiv:2010.02502, in float64."""
    prediction, state, noise = (value.double().numpy() for value in (prediction, state, noise))
    signal, spread = np.sqrt(here), np.sqrt(1 - here)
    if kind == "v_prediction":
        clean, error = signal * state - spread * prediction, signal * prediction + spread * state
    elif kind == "epsilon":
        clean, error = (state - spread * prediction) / signal, prediction
    else:
        clean, error = prediction, (state - signal * prediction) / spread
    sigma = eta * np.sqrt((1 - there) / (1 - here) * (1 - here / there))
    return np.sqrt(there) * clean + np.sqrt(max(0.0, 1 - there - sigma**2)) * error + sigma * noise


@pytest.mark.parametrize("kind", ["v_prediction", "epsilon", "sample"])
@pytest.mark.parametrize("eta", [0.0, 0.6, 1.0])
@pytest.mark.parametrize("terminal", [0.0, 0.004])
def test_each_step_goes_exactly_to_the_next_one_of_any_list(kind, eta, terminal):
    if kind == "epsilon" and terminal == 0.0:
        return  # a prediction of the noise cannot start at pure noise
    alphas = torch.linspace(0.999, terminal, 1000, dtype=torch.float64)
    scheduler = exact_scheduler(alphas, TIMES, kind)
    state, prediction, noise = torch.randn(3, 2, 4, 5, generator=torch.Generator().manual_seed(0))
    for index, time in enumerate(TIMES):
        there = 1.0 if index == len(TIMES) - 1 else float(alphas[TIMES[index + 1]])
        expected = slow_step(kind, float(alphas[time]), there, prediction, state, eta, noise)
        found = take_step(scheduler, index, prediction, state, eta, noise)
        torch.testing.assert_close(found.double().numpy(), expected, rtol=1e-4, atol=1e-5)


def test_a_step_from_pure_noise_with_all_noise_renewed_is_never_nan():
    alphas = torch.rand(1000, generator=torch.Generator().manual_seed(0), dtype=torch.float64).sort(descending=True)[0]
    alphas[-1] = 0.0
    state = torch.randn(3)
    for following in range(0, 999, 7):
        scheduler = exact_scheduler(alphas, [999, following], "v_prediction")
        assert take_step(scheduler, 0, state, state, 1.0, state).isfinite().all()


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_the_step_is_that_of_diffusers_where_its_own_goes_to_the_next_one(eta):
    theirs = DDIMScheduler(clip_sample=False, set_alpha_to_one=True, steps_offset=1, timestep_spacing="leading")
    theirs.set_timesteps(50)
    times = theirs.timesteps.tolist()
    ours = exact_scheduler(theirs.alphas_cumprod, times, "epsilon")
    state, given, noise = torch.randn(3, 2, 4, 5)
    for index in (0, 25, 48, 49):
        expected = theirs.step(given, times[index], state, eta=eta, variance_noise=noise).prev_sample
        torch.testing.assert_close(take_step(ours, index, given, state, eta, noise), expected, rtol=1e-4, atol=1e-5)
