"""Check the contract of latents, by a test class to subclass."""

import json
from abc import ABC, abstractmethod
from typing import ClassVar

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from divot_lightning.errors import UserError
from divot_lightning.parts.latents import Latents
from divot_lightning.parts.registries.kinds import LATENTS
from divot_lightning.parts.registries.registry import class_path


class LatentsConformance(ABC):
    """Test latents against the contract. Pytest collects the subclass if its name starts with `Test`.

        class TestMyLatents(LatentsConformance):
            def make_latents(self):
                return MyLatents(scale=0.5)

    Make the latents small, since every test builds its own.

    Attributes:
        num_frames: Frames of the clips that are encoded.
        cells: Latent rows of these clips, and one less than their columns.
    """

    num_frames: ClassVar[tuple[int, ...]] = (1, 6, 16)
    cells: ClassVar[int] = 2

    @abstractmethod
    def make_latents(self) -> Latents:
        """Build the latents under test, on the CPU, in float32."""

    def test_shapes_are_those_that_the_latents_announce(self) -> None:
        """Encoding gives `latent_frames` frames of `channels`; decoding gives the clip's own shape back."""
        latents = self._latents()
        for frames in self.num_frames:
            video = self._video(latents, frames)
            encoded = latents.encode(video)
            cells = (self.cells, self.cells + 1)
            assert encoded.shape == (2, latents.latent_frames(frames), latents.channels, *cells)
            assert latents.decode(encoded, frames).shape == video.shape

    def test_values_are_finite_and_carry_no_gradient(self) -> None:
        """Latents are targets: nothing is trained through them."""
        latents = self._latents()
        encoded = latents.encode(self._video(latents, self.num_frames[-1]))
        assert encoded.isfinite().all()
        assert not encoded.requires_grad
        assert latents.decode(encoded, self.num_frames[-1]).isfinite().all()

    def test_nothing_is_trained(self) -> None:
        """Parameters are frozen, and modules stay in evaluation mode."""
        latents = self._latents()
        torch.nn.Sequential(latents).train()
        assert not any(value.requires_grad for value in latents.parameters())
        assert not any(module.training for module in latents.modules() if next(module.parameters(), None) is not None)

    def test_the_generator_decides_the_latents(self) -> None:
        """The same seed gives the same latents."""
        latents = self._latents()
        video = self._video(latents, self.num_frames[-1])
        first, second = (latents.encode(video, torch.Generator().manual_seed(4)) for _ in range(2))
        assert torch.equal(first, second)

    def test_with_its_own_generator_a_clip_does_not_depend_on_its_batch(self) -> None:
        """A clip encoded alone has the latents that it has in a batch."""
        latents = self._latents()
        video = self._video(latents, self.num_frames[-1])
        generators = [torch.Generator().manual_seed(seed) for seed in (4, 5)]
        together = latents.encode(video, generators)
        alone = latents.encode(video[1:], [torch.Generator().manual_seed(5)])
        assert_close(together[1:], alone, atol=1e-4, rtol=1e-4)

    def test_latents_can_be_sampled_from_a_cached_posterior(self) -> None:
        """With the same seed they are those of `encode`; what is cached is not random, and a clip's own."""
        latents = self._latents()
        video = self._video(latents, self.num_frames[-1])
        cached, again = latents.posterior(video), latents.posterior(video)
        assert cached.dtype == torch.float32
        assert len(cached) == len(video)
        assert torch.equal(cached, again)
        expected = latents.encode(video, torch.Generator().manual_seed(4))
        assert torch.equal(latents.sample(cached, torch.Generator().manual_seed(4)), expected)

    def test_frames_that_do_not_divide_into_cells_are_refused(self) -> None:
        """The message names the sizes."""
        latents = self._latents()
        side = latents.block_size
        if side == 1:
            return
        with pytest.raises(UserError, match=f"{2 * side + 1}x{2 * side}"):
            latents.encode(torch.zeros(1, self.num_frames[-1], 3, 2 * side + 1, 2 * side))

    def test_the_recorded_settings_build_the_same_latents(self) -> None:
        """Settings and weights are all that a component folder keeps."""
        latents = self._latents()
        recorded = json.loads(json.dumps(latents.init_args))
        assert recorded == latents.init_args
        again = LATENTS.build(class_path(type(latents)), latents.init_args)
        again.load_state_dict(latents.state_dict())
        video = self._video(latents, self.num_frames[-1])
        first, second = (each.encode(video, torch.Generator().manual_seed(4)) for each in (latents, again))
        assert torch.equal(first, second)

    def _latents(self) -> Latents:
        torch.manual_seed(0)
        return self.make_latents()

    def _video(self, latents: Latents, frames: int) -> Tensor:
        side = latents.block_size
        size = (2, frames, 3, self.cells * side, (self.cells + 1) * side)
        return torch.rand(size, generator=torch.Generator().manual_seed(1)) * 2 - 1
