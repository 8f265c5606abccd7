"""Check the contract of a denoiser, by a test class to subclass."""

import copy
import json
from abc import ABC, abstractmethod
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.testing import assert_close

from divot_lightning.parts.denoisers import Denoiser
from divot_lightning.parts.registries.kinds import DENOISERS
from divot_lightning.parts.registries.registry import class_path


class DenoiserConformance(ABC):
    """Test a denoiser against the contract. Pytest collects the subclass if its name starts with `Test`.

        class TestMyDenoiser(DenoiserConformance):
            def make_denoiser(self, **sizes):
                return MyDenoiser(**sizes, width=16)

    Make the denoiser small, since every test builds its own.

    Attributes:
        sizes: The sizes that the tests supply, by the names in `Denoiser.supplied_args`.
    """

    sizes: ClassVar[dict[str, Any]] = {
        "channels": 4,
        "frames": 4,
        "grid": (4, 4),
        "condition_tokens": 3,
        "condition_dim": 6,
    }

    @abstractmethod
    def make_denoiser(self, **sizes: Any) -> Denoiser:
        """Build the denoiser under test, on the CPU, in float32."""

    def test_the_prediction_has_the_latents_shape(self) -> None:
        """Also for integer times and a batch of one."""
        denoiser, (latents, times, condition) = self._denoiser(), self._inputs()
        for count in (1, 3):
            prediction = denoiser(latents[:count], times[:count], condition[:count])
            assert prediction.shape == latents[:count].shape
            assert prediction.isfinite().all()
        assert denoiser(latents, times.long(), condition).shape == latents.shape

    def test_clips_of_a_batch_do_not_see_each_other(self) -> None:
        """A clip's prediction is the same alone and in a batch."""
        denoiser, inputs = self._moved(), self._inputs()
        alone = denoiser(*(each[1:2] for each in inputs))
        assert_close(denoiser(*inputs)[1:2], alone, atol=1e-4, rtol=1e-3)

    def test_each_input_changes_the_prediction(self) -> None:
        """Latents, time and condition all matter."""
        denoiser, (latents, times, condition) = self._moved(), self._inputs()
        before = denoiser(latents, times, condition)
        for changed in ((latents + 1, times, condition), (latents, times / 3, condition), (latents, times, -condition)):
            assert (denoiser(*changed) - before).abs().max() > 1e-5

    def test_gradients_reach_the_tokens_and_all_that_is_trained(self) -> None:
        """The tokenizer learns through the condition only, so its gradient must not be cut."""
        denoiser, (latents, times, condition) = self._moved(), self._inputs()
        condition.requires_grad_()
        target = torch.randn(latents.shape, generator=torch.Generator().manual_seed(6))
        (denoiser(latents, times, condition) - target).square().mean().backward()
        assert condition.grad is not None
        assert condition.grad.abs().amax(dim=(1, 2)).gt(0).all()
        missing = [name for name, p in denoiser.named_parameters() if p.requires_grad and p.grad is None]
        assert not missing, f"no gradient for: {', '.join(missing)}"

    def test_the_recorded_settings_build_the_same_denoiser(self) -> None:
        """Settings and weights are all that a component folder keeps."""
        denoiser, inputs = self._moved(), self._inputs()
        assert json.loads(json.dumps(denoiser.init_args)) == denoiser.init_args
        again = DENOISERS.build(class_path(type(denoiser)), denoiser.init_args, **self.sizes)
        again.load_state_dict(denoiser.state_dict())
        assert torch.equal(again.eval()(*inputs), denoiser(*inputs))
        names = [[name for name, p in each.named_parameters() if p.requires_grad] for each in (denoiser, again)]
        assert names[0] == names[1]

    def test_a_copy_predicts_the_same(self) -> None:
        """Moving averages and checks copy denoisers."""
        denoiser, inputs = self._moved(), self._inputs()
        assert torch.equal(copy.deepcopy(denoiser)(*inputs), denoiser(*inputs))

    def _denoiser(self) -> Denoiser:
        torch.manual_seed(0)
        return self.make_denoiser(**self.sizes).eval()

    def _moved(self) -> Denoiser:
        """Return a denoiser as after some training: no weight is zero any more."""
        denoiser = self._denoiser()
        for parameter in denoiser.parameters():
            parameter.data += 0.1 * torch.randn_like(parameter)
        return denoiser

    def _inputs(self) -> tuple[Tensor, Tensor, Tensor]:
        generator, sizes = torch.Generator().manual_seed(1), self.sizes
        latents = torch.randn(3, sizes["frames"], sizes["channels"], *sizes["grid"], generator=generator)
        condition = torch.randn(3, sizes["condition_tokens"], sizes["condition_dim"], generator=generator)
        return latents, torch.tensor([999.0, 500.0, 20.0]), condition
