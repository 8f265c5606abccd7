"""The base class of objectives: how latents become noisy, what the denoiser predicts, and how clips are sampled.

Shape letters: B batch; clean latents, noise and states have any shape (B, ...).
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import ClassVar

import torch
from torch import Tensor

from divot_lightning.parts.part import Part
from divot_lightning.parts.randomness import Randomness


class Sampler(ABC):
    """The steps from noise to a clip.

    Attributes:
        times: The times at which the denoiser is called, in [0, 1000], falling.
    """

    times: Sequence[float]

    @abstractmethod
    def step(self, index: int, prediction: Tensor, state: Tensor, sample_noise: Callable[[], Tensor]) -> Tensor:
        """Move the state to the next time.

        Args:
            index: Index of the present time.
            prediction: Output of the denoiser for the state, float32, of the state's shape.
            state: Noisy latents, float32; standard normal at the first time.
            sample_noise: Returns standard normal noise of the state's shape; called only by samplers that add noise.

        Returns:
            The state at the next time; clean latents after the last.
        """


class Objective(Part, ABC):
    """Defines a diffusion: noisy latents, target, weight and sampler.

    Times are in [0, 1000] and larger is noisier; the denoiser gets them as they are. All computation is in float32.
    All arguments of a subclass are settings of a recipe; they must be values that JSON can hold.

    Attributes:
        sampling_settings: Declared by the class: arguments that change only how clips are sampled, so that a trained
            de-tokenizer may get other values.
    """

    sampling_settings: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def sample_times(
        self, count: int, terminal_timestep_prob: float, *, device: torch.device, generator: Randomness
    ) -> Tensor:
        """Sample the times of a training batch.

        Args:
            count: Number of times B.
            terminal_timestep_prob: Probability that a time is replaced by the noisiest one, in [0, 1].
            device: Device of the result.
            generator: Random generator on that device, or one per time on the CPU.

        Returns:
            Times (B,), int64 or float32.
        """

    @abstractmethod
    def add_noise(self, clean: Tensor, noise: Tensor, time_B: Tensor) -> Tensor:
        """Return the noisy latents at the given times, of the shape and dtype of the clean ones."""

    @abstractmethod
    def target(self, clean: Tensor, noise: Tensor, time_B: Tensor) -> Tensor:
        """Return what the denoiser should predict for these noisy latents, of their shape."""

    def weight(self, time_B: Tensor) -> Tensor | None:
        """Return the weight (B,) of each clip's squared error, at least 0; None if all weigh the same."""
        return None

    @abstractmethod
    def sampler(self, steps: int) -> Sampler:
        """Return a fresh sampler of a number of steps, at least 1.

        Raises:
            UserError: The objective cannot sample in so many steps.
        """
