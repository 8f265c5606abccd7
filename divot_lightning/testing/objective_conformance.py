"""Check the contract of an objective, by a test class to subclass."""

import json
from abc import ABC, abstractmethod

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from divot_lightning.parts.objectives import Objective
from divot_lightning.parts.registries.kinds import OBJECTIVES
from divot_lightning.parts.registries.registry import class_path

CPU = torch.device("cpu")


class ObjectiveConformance(ABC):
    """Test an objective against the contract. Pytest collects the subclass if its name starts with `Test`.

        class TestMyObjective(ObjectiveConformance):
            def make_objective(self):
                return MyObjective(shift=3.0)

    Every test builds its own.
    """

    @abstractmethod
    def make_objective(self) -> Objective:
        """Build the objective under test."""

    def test_times_are_within_their_range_and_the_generator_decides_them(self) -> None:
        """Times are in [0, 1000], spread out, and the same for the same seed."""
        objective = self.make_objective()
        times, again = (self._times(objective, 0.0, torch.Generator().manual_seed(3)) for _ in range(2))
        assert times.shape == (4000,)
        assert 0 <= times.min() <= times.max() <= 1000
        assert times.float().std() > 50
        assert torch.equal(times, again)

    def test_with_its_own_generator_a_clips_time_does_not_depend_on_its_batch(self) -> None:
        """A list holds one generator per clip."""
        objective = self.make_objective()
        both = objective.sample_times(2, 0.5, device=CPU, generator=[torch.Generator().manual_seed(s) for s in (4, 5)])
        alone = objective.sample_times(1, 0.5, device=CPU, generator=[torch.Generator().manual_seed(5)])
        assert torch.equal(both[1:], alone)

    @pytest.mark.parametrize("prob", [0.3, 1.0])
    def test_the_terminal_probability_moves_times_to_the_noisiest_one(self, prob: float) -> None:
        """The noisiest time is sampled with that probability, and seldom otherwise."""
        objective = self.make_objective()
        terminal = self._times(objective, 1.0, None)[0]
        times = self._times(objective, prob, torch.Generator().manual_seed(3))
        assert times.max() == terminal
        # Five standard deviations of a binomial fraction of 4000.
        assert abs((times == terminal).float().mean().item() - prob) < 5 * (0.25 / 4000) ** 0.5 + 0.01

    def test_noise_grows_with_time(self) -> None:
        """Latents are nearly clean at the earliest time, and less like the clip at later ones."""
        objective = self.make_objective()
        clean, noise = self._pair()
        times = torch.tensor([1, 200, 500, 900])
        noisy = objective.add_noise(clean[:4], noise[:4], times)
        distance = (noisy - clean[:4]).square().mean(dim=(1, 2))
        assert distance[0] < 0.1
        assert (distance.diff() > 0).all()

    def test_shapes_and_dtypes_are_those_of_the_latents(self) -> None:
        """Noisy latents and target are float32 and of the clean latents' shape; weights are one per clip."""
        objective = self.make_objective()
        clean, noise = self._pair()
        times = objective.sample_times(len(clean), 0.2, device=CPU, generator=torch.Generator().manual_seed(0))
        for result in (objective.add_noise(clean, noise, times), objective.target(clean, noise, times)):
            assert result.shape == clean.shape
            assert result.dtype == torch.float32
            assert result.isfinite().all()
        weight = objective.weight(times)
        assert weight is None or (weight.shape == times.shape and bool((weight >= 0).all()))

    @pytest.mark.parametrize("steps", [1, 3, 10])
    def test_an_exact_denoiser_leads_to_the_clip(self, steps: int) -> None:
        """The sampler undoes the noise, whatever the number of steps, and its times fall."""
        objective, (clean, noise) = self.make_objective(), self._pair()
        sampler = objective.sampler(steps)
        times = list(sampler.times)
        assert len(times) == steps
        assert times == sorted(times, reverse=True)
        first = torch.full((len(clean),), times[0])
        # What a sampler starts from is pure noise at its first time, or so near to it that it may be taken for it.
        state = objective.add_noise(clean, noise, first)
        generator = torch.Generator().manual_seed(2)
        for index, time in enumerate(times):
            at = torch.full((len(clean),), time)
            left = self._noise_in(objective, state, clean, at)
            state = sampler.step(index, objective.target(clean, left, at), state, lambda: _normal(clean, generator))
        assert_close(state, clean, atol=2e-2, rtol=2e-2)

    def test_the_recorded_settings_build_the_same_objective(self) -> None:
        """Settings are all that a component folder keeps."""
        objective, (clean, noise) = self.make_objective(), self._pair()
        assert json.loads(json.dumps(objective.init_args)) == objective.init_args
        again = OBJECTIVES.build(class_path(type(objective)), objective.init_args)
        times = torch.full((len(clean),), 300)
        assert torch.equal(again.add_noise(clean, noise, times), objective.add_noise(clean, noise, times))
        assert list(again.sampler(4).times) == list(objective.sampler(4).times)

    @staticmethod
    def _times(objective: Objective, prob: float, generator: torch.Generator | None) -> Tensor:
        return objective.sample_times(4000, prob, device=CPU, generator=generator)

    @staticmethod
    def _pair() -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(1)
        return torch.randn(5, 6, 7, generator=generator), torch.randn(5, 6, 7, generator=generator)

    @staticmethod
    def _noise_in(objective: Objective, state: Tensor, clean: Tensor, at: Tensor) -> Tensor:
        """Return the noise that `add_noise` must have added to the clean latents; it is linear in the noise."""
        without = objective.add_noise(clean, torch.zeros_like(clean), at)
        scale = objective.add_noise(torch.zeros_like(clean), torch.ones_like(clean), at)
        return (state - without) / scale


def _normal(like: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randn(like.shape, generator=generator)
