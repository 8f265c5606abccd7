"""Check the contract of a generation head, by a test class to subclass.

Shape letters: B batch, Q tokens of one clip, D LLM width, C feature width.
"""

import copy
import importlib.util
import json
from typing import ClassVar

import torch
from torch import Tensor
from torch.testing import assert_close

from divot_lightning.parts.heads import GenerationHead
from divot_lightning.parts.sampling import sampling_of, set_sampling
from divot_lightning.testing.head_loss_conformance import (
    HeadLossConformance,
    hidden_gradient,
    seeded,
    seeded_loss,
)
from divot_lightning.testing.run_distributed import run_distributed
from divot_lightning.testing.sharded_step import plain_update, updates_under_zero

LEARNT_STD = 0.5
"""Standard deviation of the targets in the tests of spread and temperature."""


class HeadConformance(HeadLossConformance):
    """Test a head against the contract. Pytest collects the subclass if its name starts with `Test`.

        class TestMyHead(HeadConformance):
            def make_head(self, hidden_dim, feature_dim):
                return MyHead(hidden_dim, feature_dim, width=32)

    Make the head small, since every test builds its own. With its sampling settings, temperature 1 must sample the
    learnt distribution (guidance 1, variances not scaled). The ZeRO test needs `deepspeed` (in a
    checkout of divot-lightning: `pip install ".[deepspeed]"`) and runs on the CPU.

    Attributes:
        hidden_dim: D of the heads under test.
        feature_dim: C of the heads under test.
        learning_steps: Adam steps that `test_learns_a_constant_target` may take.
        learning_rate: Learning rate of these steps.
        learning_tolerance: Mean distance from the constant that samples may have afterwards.
        spread_tolerance: Largest factor between the standard deviations of samples and of Gaussian targets, either way.
        zero_stages: ZeRO stages that `test_trains_under_zero_in_two_processes` runs.
    """

    learning_steps: ClassVar[int] = 300
    learning_tolerance: ClassVar[float] = 0.3
    spread_tolerance: ClassVar[float] = 1.4
    zero_stages: ClassVar[tuple[int, ...]] = (2, 3)

    def test_clips_of_a_batch_do_not_see_each_other(self) -> None:
        """Other clips of the batch change neither a clip's gradient nor its samples, also for clips of one token."""
        head, whole = self._trained_a_little(), self._batch()
        for hidden_BQD, target_BQC in (whole, [states[:, :1] for states in whole]):
            others = [torch.cat([states[:1], 2.0 * states[1:] + 1.0]) for states in (hidden_BQD, target_BQC)]
            alone_QD, beside_QD = (hidden_gradient(head, *batch)[0] for batch in ((hidden_BQD, target_BQC), others))
            assert_close(beside_QD, alone_QD, msg=lambda text: f"clips of a batch see each other in the loss: {text}")
            samples = [head.sample(hidden, generator=seeded(0))[0] for hidden in (hidden_BQD, others[0])]
            assert_close(*samples, msg=lambda text: f"clips of a batch see each other in samples: {text}")

    def test_one_token_is_a_clip_too(self) -> None:
        """Autoregressive generation gives a head one token at a time, in training and in sampling."""
        head, (hidden_BQD, target_BQC) = self._trained_a_little(), self._batch()
        loss = seeded_loss(head, hidden_BQD[:, :1], target_BQC[:, :1])
        assert loss.isfinite(), f"the loss of clips of one token is {loss.item()}"
        gradient_BQD = hidden_gradient(head, hidden_BQD[:, :1], target_BQC[:, :1])
        assert gradient_BQD.isfinite().all(), "its gradient is not finite"
        features_BQC = head.sample(hidden_BQD[:, :1])
        assert features_BQC.shape == (3, 1, self.feature_dim), f"one token gives {tuple(features_BQC.shape)}"
        assert features_BQC.isfinite().all(), "samples of one token are not finite"

    def test_samples_have_the_shape_of_features(self) -> None:
        """(B, Q, C), float32, finite, without gradient, for bfloat16 hidden states too."""
        head, (hidden_BQD, target_BQC) = self._trained_a_little(), self._batch()
        for hidden in (hidden_BQD, hidden_BQD.bfloat16(), hidden_BQD[:1, :1]):
            features_BQC = head.sample(hidden)
            expected = (*hidden.shape[:2], target_BQC.shape[-1])
            assert features_BQC.shape == expected, f"sampled {tuple(features_BQC.shape)}; must be {expected}"
            assert features_BQC.dtype == torch.float32, f"samples are {features_BQC.dtype}; must be float32"
            assert features_BQC.isfinite().all(), "samples are not finite"
            assert not features_BQC.requires_grad, "samples carry a gradient"

    def test_samples_follow_the_generator(self) -> None:
        """The same seed gives the same features; another seed gives others, unless the head is deterministic."""
        head = self._trained_a_little()
        first = self._sample(head, seed=1)
        torch.rand(3)
        assert torch.equal(first, self._sample(head, seed=1)), "sampling has randomness besides `generator`"
        same = torch.equal(first, self._sample(head, seed=2))
        assert same == head.deterministic, f"deterministic={head.deterministic}, yet equal across seeds is {same}"

    def test_samples_of_several_generators_equal_single_calls(self) -> None:
        """`sample_each` gives the bits of one call of `sample` per generator."""
        head, (hidden_BQD, _) = self._trained_a_little(), self._batch()
        each = head.sample_each(hidden_BQD, [seeded(seed) for seed in (1, 2, 3)], temperature=0.7)
        single = [head.sample(hidden_BQD, temperature=0.7, generator=seeded(seed)) for seed in (1, 2, 3)]
        assert torch.equal(each, torch.stack(single)), "sample_each differs from single calls of sample"

    def test_temperature_is_accepted(self) -> None:
        """From 0 to above 1, with finite features."""
        head = self._trained_a_little()
        for temperature in (0.0, 0.5, 1.5):
            features_BQC = head.sample(self._batch()[0], temperature=temperature)
            assert features_BQC.isfinite().all(), f"samples are not finite at temperature {temperature}"

    def test_temperature_narrows_the_spread(self) -> None:
        """Unless deterministic, half the temperature gives clearly less spread, and 0 not more than half."""
        if self._head().deterministic:
            return
        whole, half, none = (self._learnt_samples(temperature).std(dim=0).mean() for temperature in (1.0, 0.5, 0.0))
        assert half < 0.85 * whole, f"temperature 0.5 has spread {half:.3f}, temperature 1 has {whole:.3f}"
        assert none <= 1.05 * half, f"temperature 0 has spread {none:.3f}, temperature 0.5 has {half:.3f}"

    def test_samples_have_the_spread_that_was_learnt(self) -> None:
        """Samples have the mean of Gaussian targets and, unless deterministic, their standard deviation."""
        features_NC = self._learnt_samples(1.0)
        distance = (features_NC.mean(dim=0) - self._learnt_mean()).abs().mean().item()
        assert distance < self.learning_tolerance, f"samples are {distance:.3f} away from the mean of the targets"
        if self._head().deterministic:
            return
        factor = features_NC.std(dim=0).mean().item() / LEARNT_STD
        allowed = (1 / self.spread_tolerance, self.spread_tolerance)
        assert allowed[0] < factor < allowed[1], f"samples spread {factor:.2f} times as widely as the targets"

    def test_sampling_settings_can_be_set_in_a_trained_head(self) -> None:
        """Each is an init argument and an attribute of the same name; setting the current values changes nothing."""
        head = self._trained_a_little()
        for name in head.sampling_settings:
            assert name in head.init_args, f"the sampling setting {name!r} is no setting of the head"
            assert hasattr(head, name), f"the sampling setting {name!r} is kept in no attribute of its name"
        loss, features_BQC = seeded_loss(head, *self._batch()), self._sample(head, seed=0)
        settings = dict(head.init_args)
        set_sampling(head, sampling_of(head))
        assert head.init_args == settings
        assert_close(seeded_loss(head, *self._batch()), loss)
        assert_close(self._sample(head, seed=0), features_BQC)

    def test_settings_rebuild_the_head(self) -> None:
        """`init_args` survives JSON and gives a head of the same shape."""
        head = self._head()
        settings = json.loads(json.dumps(head.init_args))
        assert not {"hidden_dim", "feature_dim"} & set(settings), "widths belong to the model, not to init_args"
        twin = type(head)(self.hidden_dim, self.feature_dim, **settings)
        assert twin.init_args == head.init_args
        shapes, twin_shapes = ({k: v.shape for k, v in h.state_dict().items()} for h in (head, twin))
        assert twin_shapes == shapes, "the rebuilt head has other parameters"

    def test_state_dict_holds_the_whole_head(self) -> None:
        """A rebuilt head with the saved state has the same loss and the same samples."""
        head = self._trained_a_little()
        torch.manual_seed(99)
        twin = type(head)(self.hidden_dim, self.feature_dim, **head.init_args)
        twin.load_state_dict(head.state_dict())
        assert_close(seeded_loss(twin, *self._batch()), seeded_loss(head, *self._batch()))
        assert_close(self._sample(twin, seed=3), self._sample(head, seed=3))

    def test_copies_keep_their_settings(self) -> None:
        """A deep copy, as weight averaging makes it, keeps its init arguments."""
        head = self._head()
        assert copy.deepcopy(head).init_args == head.init_args

    def test_learns_a_constant_target(self) -> None:
        """After training on one constant vector, samples lie near it."""
        head = self._head()
        target_C = torch.linspace(-1.5, 1.5, self.feature_dim)
        self._learn_constant(head, target_C, self.learning_steps)
        distance = (self._sample(head, seed=0) - target_C).abs().mean().item()
        assert distance < self.learning_tolerance, f"samples are {distance:.3f} away from the constant target"

    def test_trains_under_zero_in_two_processes(self) -> None:
        """A step of SGD under DeepSpeed ZeRO equals a plain step on the mean of the ranks' losses."""
        assert importlib.util.find_spec("deepspeed"), (
            "this test needs deepspeed; in a checkout of divot-lightning: pip install '.[deepspeed]'"
        )
        head = self._trained_a_little()
        batches = [self._batch(seed=rank) for rank in range(2)]
        expected = plain_update(copy.deepcopy(head), batches)
        atol = 1e-4 * max(update.abs().max().item() for update in expected.values())
        for rank, by_stage in enumerate(run_distributed(updates_under_zero, 2, head, batches, self.zero_stages)):
            for stage, updates in by_stage.items():
                where = f"rank {rank}, ZeRO-{stage}: "
                assert_close(updates, expected, atol=atol, rtol=1e-3, msg=where.__add__)

    def _learnt_mean(self) -> Tensor:
        return torch.linspace(-1.0, 1.0, self.feature_dim)

    def _learnt_samples(self, temperature: float) -> Tensor:
        """Return samples, (N, C), of a head that has learnt a Gaussian; it is trained once per test class."""
        hidden_D = torch.randn(self.hidden_dim, generator=seeded(5))
        if type(self) not in _LEARNT:
            _LEARNT[type(self)] = self._head()

            def gaussian_batch() -> tuple[Tensor, Tensor]:
                target_BQC = self._learnt_mean() + LEARNT_STD * torch.randn(8, 8, self.feature_dim)
                return hidden_D.expand(8, 8, -1), target_BQC

            self._train(_LEARNT[type(self)], gaussian_batch, self.learning_steps)
        hidden_BQD = hidden_D.expand(64, 8, -1)
        return _LEARNT[type(self)].sample(hidden_BQD, temperature=temperature, generator=seeded(2)).flatten(0, 1)

    def _sample(self, head: GenerationHead, seed: int) -> Tensor:
        return head.sample(self._batch()[0], generator=seeded(seed))


_LEARNT: dict[type, GenerationHead] = {}
"""The head that has learnt a Gaussian, by test class."""
