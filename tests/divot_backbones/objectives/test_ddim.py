import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler
from diffusers.schedulers.scheduling_ddim import rescale_zero_terminal_snr

from divot_backbones.objectives.ddim import X0, Epsilon, VPrediction, alphas_cumprod, schedule_betas
from divot_lightning.errors import UserError
from divot_lightning.testing.objective_conformance import ObjectiveConformance

BETAS = (0.00085, 0.012)
OBJECTIVES = {"v_prediction": VPrediction, "epsilon": Epsilon, "sample": X0}


class TestVPrediction(ObjectiveConformance):
    def make_objective(self):
        return VPrediction(spacing="trailing")


class TestEpsilon(ObjectiveConformance):
    def make_objective(self):
        return Epsilon(eta=0.0)


class TestX0(ObjectiveConformance):
    def make_objective(self):
        return X0(snr_shift=2.0, spacing="linspace", eta=0.5)


def schedule(num_steps=1000, zero_terminal_snr=True, shift=1.0):
    betas = schedule_betas(num_steps, *BETAS, "scaled_linear")
    return alphas_cumprod(betas, zero_terminal_snr=zero_terminal_snr, shift=shift)


def plain_betas(num_steps=1000):
    root = np.linspace(BETAS[0] ** 0.5, BETAS[1] ** 0.5, num_steps)
    return root**2


def snr(alphas):
    return alphas / (1 - alphas)


def test_the_last_step_has_no_signal_at_all():
    for shift in (1.0, 4.0):
        assert schedule(shift=shift)[-1] == 0
        assert VPrediction(snr_shift=shift).scheduler.alphas_cumprod[-1] == 0


def test_the_last_noisy_sample_is_the_noise():
    clean, noise = torch.randn(1, 2, 3, 4, 4), torch.randn(1, 2, 3, 4, 4)
    assert torch.equal(VPrediction().add_noise(clean, noise, torch.tensor([999])), noise)


def test_without_a_shift_the_schedule_is_that_of_diffusers():
    betas = rescale_zero_terminal_snr(torch.tensor(plain_betas()))
    torch.testing.assert_close(schedule(), (1 - betas).cumprod(0), rtol=1e-9, atol=1e-12)
    theirs = DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", rescale_betas_zero_snr=True
    )
    ours = VPrediction().scheduler
    torch.testing.assert_close(ours.alphas_cumprod, theirs.alphas_cumprod, rtol=1e-3, atol=1e-6)


def test_without_the_rescaling_it_is_stable_diffusions_schedule():
    alphas = schedule(50, zero_terminal_snr=False)
    torch.testing.assert_close(alphas.numpy(), np.cumprod(1 - plain_betas(50)), rtol=1e-12, atol=0)
    assert alphas[-1] > 0


def test_the_schedule_of_lattes_pretraining_is_a_setting():
    ours = Epsilon(beta_schedule="linear", beta_start=1e-4, beta_end=0.02)
    alphas, value = [], 1.0
    for step in range(1000):
        value *= 1.0 - (1e-4 + (0.02 - 1e-4) * step / 999)
        alphas.append(value)
    torch.testing.assert_close(ours.scheduler.alphas_cumprod, torch.tensor(alphas), rtol=1e-4, atol=1e-7)
    with pytest.raises(UserError, match="choose one of: scaled_linear, linear"):
        VPrediction(beta_schedule="cosine")


def test_the_rescaling_keeps_the_first_step():
    torch.testing.assert_close(schedule()[0], schedule(zero_terminal_snr=False)[0])


@pytest.mark.parametrize("shift", [0.5, 2.0, 4.0])
def test_a_shift_divides_the_signal_to_noise_ratio_by_its_square(shift):
    torch.testing.assert_close(snr(schedule(shift=shift)) * shift**2, snr(schedule()), rtol=1e-10, atol=0)


def test_the_signal_falls_from_step_to_step():
    for shift in (1.0, 4.0):
        assert (schedule(shift=shift).diff() < 0).all()


def test_the_scheduler_holds_the_alphas_in_its_own_precision():
    alphas = schedule(shift=4.0).float()
    torch.testing.assert_close(VPrediction(snr_shift=4.0).scheduler.alphas_cumprod, alphas, rtol=2e-3, atol=1e-6)


def test_the_velocity_target_follows_its_formula():
    objective, times = VPrediction(num_steps=10), torch.arange(10)
    clean, noise = torch.randn(10, 2, 3), torch.randn(10, 2, 3)
    target = objective.target(clean, noise, times)
    for time, alpha in enumerate(schedule(10).tolist()):
        expected = alpha**0.5 * noise[time] - (1 - alpha) ** 0.5 * clean[time]
        torch.testing.assert_close(target[time], expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(target[-1], -clean[-1])


@pytest.mark.parametrize(("objective", "which"), [(Epsilon, 1), (X0, 0)])
def test_other_predictions_have_noise_or_sample_as_target(objective, which):
    pair = torch.randn(2, 4), torch.randn(2, 4)
    assert objective().target(*pair, torch.tensor([3, 500])) is pair[which]


def sample_times(prob, count=40_000, seed=0):
    objective, generator = VPrediction(num_steps=8), torch.Generator().manual_seed(seed)
    return objective.sample_times(count, prob, device=torch.device("cpu"), generator=generator)


def test_times_are_uniform_over_all_steps():
    counts = torch.bincount(sample_times(0.0), minlength=8)
    assert len(counts) == 8
    # Five standard deviations of a binomial count.
    assert (counts - 5000).abs().max() < 5 * (5000 * 7 / 8) ** 0.5


@pytest.mark.parametrize("prob", [0.3, 1.0])
def test_the_terminal_probability_moves_time_steps_to_the_last_one(prob):
    times = sample_times(prob)
    expected = prob + (1 - prob) / 8
    assert (times == 7).double().mean().item() == pytest.approx(expected, abs=0.012)
    if prob < 1:
        assert torch.bincount(times, minlength=8).min() > 0


def test_leading_steps_are_the_released_samplers():
    assert VPrediction().sampler(50).times == [20 * step + 1 for step in reversed(range(50))]


def test_trailing_steps_start_without_signal():
    assert VPrediction(spacing="trailing").sampler(10).times == [100 * step - 1 for step in range(10, 0, -1)]


@pytest.mark.parametrize("steps", [0, 1001])
def test_a_number_of_steps_that_the_schedule_does_not_have_is_refused(steps):
    with pytest.raises(UserError, match=f"sampling.steps is {steps}; give 1 to 1000"):
        VPrediction().sampler(steps)


@pytest.mark.parametrize("spacing", ["trailing", "linspace"])
def test_sampling_from_pure_noise_by_noise_prediction_is_refused(spacing):
    with pytest.raises(UserError, match=rf"{spacing}.*zero-SNR"):
        Epsilon(spacing=spacing, zero_terminal_snr=True)
    Epsilon(spacing="leading", zero_terminal_snr=True)
    Epsilon(spacing=spacing)


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("steps", [2, 7, 10, 60])
def test_denoising_with_the_true_prediction_gives_the_clean_sample(spacing, steps):
    objective = VPrediction(snr_shift=2.0, spacing=spacing, eta=0.0)
    sampler = objective.sampler(steps)
    clean, noise = torch.randn(2, 50) * 3, torch.randn(2, 50)
    state = objective.add_noise(clean, noise, torch.tensor(sampler.times[:1]))
    for index, time in enumerate(sampler.times):
        state = sampler.step(index, objective.target(clean, noise, torch.tensor([time] * 2)), state, torch.empty)
    torch.testing.assert_close(state, clean, atol=1e-3, rtol=1e-3)


def released_sample(network, state, noises, steps=50, eta=1.0):
    """The released sampler, number by number: float16 alphas, and a last step to the first noise level."""
    alphas, value = [], 1.0
    roots = np.linspace(BETAS[0] ** 0.5, BETAS[1] ** 0.5, 1000)
    for root in roots:
        value *= 1.0 - root**2
        alphas.append(value)
    first, last = alphas[0] ** 0.5, alphas[-1] ** 0.5
    alphas = [float(np.float16(((a**0.5 - last) * first / (first - last)) ** 2)) for a in alphas]
    times = [index * (1000 // steps) + 1 for index in range(steps)]
    for index in reversed(range(steps)):
        now, before = alphas[times[index]], alphas[times[index - 1]] if index else alphas[0]
        velocity = network(state, times[index])
        clean = now**0.5 * state - (1 - now) ** 0.5 * velocity
        noise = now**0.5 * velocity + (1 - now) ** 0.5 * state
        sigma = eta * ((1 - before) / (1 - now) * (1 - now / before)) ** 0.5
        state = before**0.5 * clean + (1 - before - sigma**2) ** 0.5 * noise + sigma * next(noises)
    return state


def sampled(objective, network, state, noises, steps=50):
    sampler = objective.sampler(steps)
    state = torch.tensor(state)
    for index, time in enumerate(sampler.times):
        velocity = torch.tensor(network(state.numpy(), time))
        state = sampler.step(index, velocity, state, lambda: torch.tensor(next(noises)))
    return state.numpy()


@pytest.mark.parametrize("steps", [2, 50])
def test_the_released_sampler_is_a_setting(steps):
    rng = np.random.default_rng(0)
    start, noises = rng.normal(size=(1, 6)), rng.normal(size=(50, 1, 6))

    def network(state, time):
        return np.tanh(0.3 * state + time / 1000)

    expected = released_sample(network, start, iter(noises), steps)
    released = VPrediction(last_step="first_noise_level", half_precision_schedule=True)
    actual = sampled(released, network, start, iter(noises), steps)
    np.testing.assert_allclose(actual, expected, atol=1e-9)
    for other in (VPrediction(half_precision_schedule=True), VPrediction(last_step="first_noise_level")):
        assert np.abs(sampled(other, network, start, iter(noises), steps) - expected).max() > 1e-5
