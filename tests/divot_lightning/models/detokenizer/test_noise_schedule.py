import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler
from diffusers.schedulers.scheduling_ddim import rescale_zero_terminal_snr

from divot_lightning.errors import UserError
from divot_lightning.models.detokenizer.noise_schedule import (
    NoiseScheduleConfig,
    SamplingConfig,
    alphas_cumprod,
    build_scheduler,
    check_sampling,
    ddim_step,
    guide,
    sample_timesteps,
    training_target,
)


def plain_betas(config):
    root = np.linspace(config.beta_start**0.5, config.beta_end**0.5, config.num_steps)
    return root**2


def snr(alphas):
    return alphas / (1 - alphas)


def test_the_last_step_has_no_signal_at_all():
    for shift in (1.0, 4.0):
        config = NoiseScheduleConfig(snr_shift=shift)
        assert alphas_cumprod(config)[-1] == 0
        assert build_scheduler(config).alphas_cumprod[-1] == 0


def test_the_last_noisy_sample_is_the_noise():
    clean, noise = torch.randn(1, 2, 3, 4, 4), torch.randn(1, 2, 3, 4, 4)
    noisy = build_scheduler(NoiseScheduleConfig()).add_noise(clean, noise, torch.tensor([999]))
    assert torch.equal(noisy, noise)


def test_without_a_shift_the_schedule_is_that_of_diffusers():
    config = NoiseScheduleConfig()
    betas = rescale_zero_terminal_snr(torch.tensor(plain_betas(config)))
    torch.testing.assert_close(alphas_cumprod(config), (1 - betas).cumprod(0), rtol=1e-9, atol=1e-12)
    ours, theirs = (
        build_scheduler(config),
        DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", rescale_betas_zero_snr=True),
    )
    torch.testing.assert_close(ours.alphas_cumprod, theirs.alphas_cumprod, rtol=1e-3, atol=1e-6)


def test_without_the_rescaling_it_is_stable_diffusions_schedule():
    config = NoiseScheduleConfig(zero_terminal_snr=False, num_steps=50)
    torch.testing.assert_close(alphas_cumprod(config).numpy(), np.cumprod(1 - plain_betas(config)), rtol=1e-12, atol=0)
    assert alphas_cumprod(config)[-1] > 0


def test_the_rescaling_keeps_the_first_step():
    with_it, without = (alphas_cumprod(NoiseScheduleConfig(zero_terminal_snr=on))[0] for on in (True, False))
    torch.testing.assert_close(with_it, without)


@pytest.mark.parametrize("shift", [0.5, 2.0, 4.0])
def test_a_shift_divides_the_signal_to_noise_ratio_by_its_square(shift):
    plain, shifted = (alphas_cumprod(NoiseScheduleConfig(snr_shift=value)) for value in (1.0, shift))
    torch.testing.assert_close(snr(shifted) * shift**2, snr(plain), rtol=1e-10, atol=0)


def test_the_signal_falls_from_step_to_step():
    for shift in (1.0, 4.0):
        assert (alphas_cumprod(NoiseScheduleConfig(snr_shift=shift)).diff() < 0).all()


def test_the_scheduler_holds_the_alphas_in_its_own_precision():
    config = NoiseScheduleConfig(snr_shift=4.0)
    alphas = alphas_cumprod(config).float()
    torch.testing.assert_close(build_scheduler(config).alphas_cumprod, alphas, rtol=2e-3, atol=1e-6)


def test_the_velocity_target_follows_its_formula():
    config = NoiseScheduleConfig(num_steps=10)
    scheduler, times = build_scheduler(config), torch.arange(10)
    clean, noise = torch.randn(10, 2, 3), torch.randn(10, 2, 3)
    target = training_target(scheduler, clean, noise, times)
    for time, alpha in enumerate(alphas_cumprod(config).tolist()):
        expected = alpha**0.5 * noise[time] - (1 - alpha) ** 0.5 * clean[time]
        torch.testing.assert_close(target[time], expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(target[-1], -clean[-1])


@pytest.mark.parametrize(("prediction", "which"), [("epsilon", 1), ("sample", 0)])
def test_other_predictions_have_noise_or_sample_as_target(prediction, which):
    pair = torch.randn(2, 4), torch.randn(2, 4)
    scheduler = build_scheduler(NoiseScheduleConfig(prediction=prediction))
    assert training_target(scheduler, *pair, torch.tensor([3, 500])) is pair[which]


def test_times_are_uniform_over_all_steps():
    times = sample_timesteps(40_000, 8, 0.0, device=torch.device("cpu"), generator=torch.Generator().manual_seed(0))
    counts = torch.bincount(times, minlength=8)
    assert len(counts) == 8
    # Five standard deviations of a binomial count.
    assert (counts - 5000).abs().max() < 5 * (5000 * 7 / 8) ** 0.5


@pytest.mark.parametrize("prob", [0.3, 1.0])
def test_the_terminal_probability_moves_time_steps_to_the_last_one(prob):
    times = sample_timesteps(40_000, 8, prob, device=torch.device("cpu"), generator=torch.Generator().manual_seed(0))
    expected = prob + (1 - prob) / 8
    assert (times == 7).double().mean().item() == pytest.approx(expected, abs=0.012)
    if prob < 1:
        assert torch.bincount(times, minlength=8).min() > 0


def test_the_generator_decides_the_times():
    def draw():
        return sample_timesteps(9, 50, 0.5, device=torch.device("cpu"), generator=torch.Generator().manual_seed(3))

    assert torch.equal(draw(), draw())


def slow_guide(conditional, unconditional, scale, rescale):
    result = np.empty_like(conditional)
    for sample in range(len(conditional)):
        guided = unconditional[sample] * (1 - scale) + scale * conditional[sample]
        factor = np.std(conditional[sample], ddof=1) / np.std(guided, ddof=1)
        result[sample] = rescale * guided * factor + (1 - rescale) * guided
    return result


@pytest.mark.parametrize(("scale", "rescale"), [(1.0, 0.0), (7.5, 0.0), (7.5, 0.7), (3.0, 1.0), (0.0, 0.5)])
def test_guidance_equals_a_slow_reference(scale, rescale):
    pair = [torch.randn(3, 4, 2, 5, dtype=torch.float64) * factor for factor in (1.0, 0.3)]
    expected = slow_guide(*(part.numpy() for part in pair), scale, rescale)
    torch.testing.assert_close(guide(*pair, scale, rescale).numpy(), expected)


def test_full_rescaling_gives_back_the_contrast_of_each_sample():
    conditional, unconditional = torch.randn(4, 50) * torch.tensor([[1.0], [2.0], [3.0], [4.0]]), torch.randn(4, 50)
    guided = guide(conditional, unconditional, 7.5, 1.0)
    torch.testing.assert_close(guided.std(1), conditional.std(1))


@pytest.mark.parametrize("value", [0.0, 2.0])
def test_predictions_without_contrast_stay_finite(value):
    flat = torch.full((2, 6), value)
    assert guide(flat, flat, 7.5, 0.7).isfinite().all()
    assert torch.equal(guide(flat, flat, 7.5, 0.0), flat)


def test_leading_steps_are_the_released_samplers():
    scheduler = build_scheduler(NoiseScheduleConfig(), "leading")
    scheduler.set_timesteps(50)
    assert scheduler.timesteps.tolist() == [20 * step + 1 for step in reversed(range(50))]


def test_trailing_steps_start_without_signal():
    scheduler = build_scheduler(NoiseScheduleConfig(), "trailing")
    scheduler.set_timesteps(10)
    assert scheduler.timesteps.tolist() == [100 * step - 1 for step in range(10, 0, -1)]


def denoise(scheduler, clean, noise):
    """Follow the true prediction from the first visited step to the end."""
    times = scheduler.timesteps.tolist()
    state = scheduler.add_noise(clean, noise, torch.tensor(times[:1]))
    for step, following in zip(times, [*times[1:], None], strict=True):
        truth = training_target(scheduler, clean, noise, torch.tensor([step]).expand(len(clean)))
        state = ddim_step(scheduler, truth, state, step=step, following=following)
    return state


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("steps", [2, 7, 10, 60])
def test_denoising_with_the_true_prediction_gives_the_clean_sample(spacing, steps):
    scheduler = build_scheduler(NoiseScheduleConfig(snr_shift=2.0), spacing)
    scheduler.set_timesteps(steps)
    clean, noise = torch.randn(2, 50) * 3, torch.randn(2, 50)
    torch.testing.assert_close(denoise(scheduler, clean, noise), clean, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("prediction", ["v_prediction", "epsilon", "sample"])
@pytest.mark.parametrize("eta", [0.0, 0.6, 1.0])
def test_a_step_is_diffusers_own_where_that_visits_the_same_steps(prediction, eta):
    scheduler = build_scheduler(NoiseScheduleConfig(prediction=prediction), "leading")
    scheduler.set_timesteps(50)
    state, given, noise = torch.randn(3, 2, 4, 5)
    times = scheduler.timesteps.tolist()
    for at in (0, 25, 48, 49):
        following = times[at + 1] if at < 49 else None
        ours = ddim_step(scheduler, given, state, step=times[at], following=following, eta=eta, noise=noise)
        theirs = scheduler.step(given, times[at], state, eta=eta, variance_noise=noise).prev_sample
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("spacing", ["trailing", "linspace"])
def test_sampling_from_pure_noise_by_noise_prediction_is_refused(spacing):
    with pytest.raises(UserError, match=rf"{spacing}.*zero-SNR"):
        check_sampling(NoiseScheduleConfig(prediction="epsilon"), SamplingConfig(spacing=spacing))
    check_sampling(NoiseScheduleConfig(prediction="epsilon"), SamplingConfig(spacing="leading"))
    check_sampling(NoiseScheduleConfig(prediction="epsilon", zero_terminal_snr=False), SamplingConfig(spacing=spacing))
