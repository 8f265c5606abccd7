"""Normal data have an exact denoiser and an exact solution of the probability flow: the reference of the solvers."""

import pytest
import torch

from divot_backbones.objectives.ddim import X0, Epsilon, VPrediction
from divot_backbones.objectives.rectified_flow import RectifiedFlow
from divot_lightning.errors import UserError
from divot_lightning.testing.objective_conformance import ObjectiveConformance

MEAN, STD = 0.7, 0.5
MAKE = {
    "velocity": lambda solver: VPrediction(eta=0.0, spacing="trailing", solver=solver),
    "noise": lambda solver: Epsilon(eta=0.0, solver=solver),
    "clean": lambda solver: X0(eta=0.0, spacing="trailing", solver=solver),
    "flow": lambda solver: RectifiedFlow(3.0, solver=solver),
}


class TestVPredictionWithDPMSolver(ObjectiveConformance):
    def make_objective(self):
        return VPrediction(spacing="trailing", solver="dpm_solver")


class TestRectifiedFlowWithUniPC(ObjectiveConformance):
    def make_objective(self):
        return RectifiedFlow(shift=3.0, solver="unipc")


def signal_and_noise(objective, time):
    """Scales of the clean latents and of the noise at a time."""
    if isinstance(objective, RectifiedFlow):
        return 1 - time / 1000, time / 1000
    alpha = objective.scheduler.alphas_cumprod[int(time)].item()
    return alpha**0.5, (1 - alpha) ** 0.5


def predict(objective, kind, state, time):
    """What a perfect denoiser of normal data predicts: expectations given the noisy state."""
    signal, noise = signal_and_noise(objective, time)
    excess = (state.double() - signal * MEAN) / ((signal * STD) ** 2 + noise**2)
    clean, noises = MEAN + signal * STD**2 * excess, noise * excess
    predictions = {"velocity": signal * noises - noise * clean, "flow": noises - clean, "noise": noises, "clean": clean}
    return predictions[kind].float()


def error(kind, solver, steps):
    """Largest distance from the exact solution, which keeps the quantile of each number."""
    objective, state = MAKE[kind](solver), torch.linspace(-2, 2, 41)[:, None]
    sampler = objective.sampler(steps)
    signal, noise = signal_and_noise(objective, sampler.times[0])
    solution = MEAN + STD * (state - signal * MEAN) / ((signal * STD) ** 2 + noise**2) ** 0.5
    for index, time in enumerate(sampler.times):
        state = sampler.step(index, predict(objective, kind, state, time), state, torch.empty)
    return (state - solution).abs().max().item()


@pytest.mark.parametrize("kind", MAKE)
@pytest.mark.parametrize("solver", ["dpm_solver", "unipc"])
def test_in_the_same_steps_the_result_is_nearer_to_the_exact_one_than_that_of_one_step_solvers(kind, solver):
    plain = "euler" if kind == "flow" else "ddim"
    for steps in (10, 20, 50):
        assert error(kind, solver, steps) < error(kind, plain, steps)


@pytest.mark.parametrize("kind", MAKE)
@pytest.mark.parametrize("solver", ["dpm_solver", "unipc"])
def test_more_steps_converge_to_the_exact_solution(kind, solver):
    assert error(kind, solver, 500) < min(0.02, error(kind, solver, 50))


@pytest.mark.parametrize("kind", MAKE)
def test_one_step_is_that_of_the_one_step_solver(kind):
    # A single prediction leaves nothing to extrapolate; up to the little signal that pure noise is given.
    plain = "euler" if kind == "flow" else "ddim"
    for solver in ("dpm_solver", "unipc"):
        assert error(kind, solver, 1) == pytest.approx(error(kind, plain, 1), rel=2e-3)


def test_the_last_step_may_end_at_the_first_noise_level():
    states = {}
    for last_step in ("clean", "first_noise_level"):
        objective = VPrediction(spacing="trailing", last_step=last_step, solver="dpm_solver")
        sampler, state = objective.sampler(4), torch.linspace(-1, 1, 5)[:, None]
        for index, time in enumerate(sampler.times):
            if index == 3:
                before, clean = state, predict(objective, "clean", state, time)
            state = sampler.step(index, predict(objective, "velocity", state, time), state, torch.empty)
        states[last_step] = state
    signal, noise = signal_and_noise(objective, time)
    first_signal, first_noise = signal_and_noise(objective, 0)
    ddim = first_signal * clean + first_noise * (before - signal * clean) / noise
    torch.testing.assert_close(states["first_noise_level"], ddim.float(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(states["clean"], clean.float(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("objective", "own"), [(VPrediction, "ddim"), (RectifiedFlow, "euler")])
def test_an_unknown_solver_is_refused(objective, own):
    with pytest.raises(UserError, match=f"solver is 'heun'; choose one of: {own}, dpm_solver, unipc"):
        objective(solver="heun")
