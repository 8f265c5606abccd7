"""Check the contract of a generation head, by a test class to subclass.

Shape letters: B batch, Q tokens of one clip, D LLM width, C feature width.
"""

import copy
import importlib.util
import json
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import ClassVar

import torch
from torch import Tensor
from torch.testing import assert_close

from divot_lightning.parts.head_sampling import sampling_of, set_sampling
from divot_lightning.parts.heads import GenerationHead
from divot_lightning.testing.run_distributed import run_distributed
from divot_lightning.testing.sharded_step import plain_update, updates_under_zero

NUM_NOISES = 16
"""Noise samples that a test averages, for heads that drop conditions at random: with a probability of a fifth, a head
drops the same token in all samples with a probability of 0.2 ** 16 = 7e-12."""
LEARNT_STD = 0.5
"""Standard deviation of the targets in the tests of spread and temperature."""


class HeadConformance(ABC):
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

    hidden_dim: ClassVar[int] = 24
    feature_dim: ClassVar[int] = 6
    learning_steps: ClassVar[int] = 300
    learning_rate: ClassVar[float] = 3e-3
    learning_tolerance: ClassVar[float] = 0.3
    spread_tolerance: ClassVar[float] = 1.4
    zero_stages: ClassVar[tuple[int, ...]] = (2, 3)

    @abstractmethod
    def make_head(self, hidden_dim: int, feature_dim: int) -> GenerationHead:
        """Build the head under test.

        Args:
            hidden_dim: D.
            feature_dim: C.

        Returns:
            The head, freshly initialised, on the CPU, in float32.
        """

    def test_loss_is_a_finite_float32_scalar(self) -> None:
        """The loss is a scalar, float32, and finite."""
        loss = _loss(self._head(), *self._batch())
        assert loss.shape == (), f"loss has shape {tuple(loss.shape)}; it must be a scalar"
        assert loss.dtype == torch.float32, f"loss is {loss.dtype}; it must be float32"
        assert loss.isfinite(), f"loss is {loss.item()}"

    def test_calling_the_head_gives_its_loss(self) -> None:
        """Stages call the head itself, so that hooks of sharding wrappers run."""
        head, batch = self._head(), self._batch()
        torch.manual_seed(0)
        called = head(*batch)
        assert_close(called, _loss(head, *batch))

    def test_gradient_reaches_the_hidden_states(self) -> None:
        """Every token's hidden state gets a gradient, under some noise (a head may drop conditions at random)."""
        head = self._trained_a_little()
        gradients = torch.stack([_gradient(head, *self._batch(), seed=seed) for seed in range(NUM_NOISES)])
        assert gradients.isfinite().all(), "the gradient of the hidden states is not finite"
        assert (gradients.abs().amax(dim=(0, -1)) > 0).all(), "some token's hidden state gets no gradient"

    def test_gradient_reaches_every_parameter(self) -> None:
        """Checked after some steps, since zero-initialised layers block the gradient of the layers before them."""
        head = self._trained_a_little()
        head.zero_grad()
        for seed in range(NUM_NOISES):
            _loss(head, *self._batch(), seed=seed).backward()
        missing = [name for name, p in head.named_parameters() if p.requires_grad and p.grad is None]
        assert not missing, f"no gradient for: {', '.join(missing)}"
        bad = [name for name, p in head.named_parameters() if p.grad is not None and not p.grad.isfinite().all()]
        assert not bad, f"gradient not finite for: {', '.join(bad)}"

    def test_clips_of_a_batch_do_not_see_each_other(self) -> None:
        """Other clips of the batch change neither a clip's gradient nor its samples, also for clips of one token."""
        head, whole = self._trained_a_little(), self._batch()
        for hidden_BQD, target_BQC in (whole, [states[:, :1] for states in whole]):
            others = [torch.cat([states[:1], 2.0 * states[1:] + 1.0]) for states in (hidden_BQD, target_BQC)]
            alone_QD, beside_QD = (_gradient(head, *batch)[0] for batch in ((hidden_BQD, target_BQC), others))
            assert_close(beside_QD, alone_QD, msg=lambda text: f"clips of a batch see each other in the loss: {text}")
            samples = [head.sample(hidden, generator=_generator(0))[0] for hidden in (hidden_BQD, others[0])]
            assert_close(*samples, msg=lambda text: f"clips of a batch see each other in samples: {text}")

    def test_duplicating_the_batch_keeps_the_loss(self) -> None:
        """The loss is a mean over tokens, not a sum: the same batch twice has the same loss, up to noise."""
        head, batch = self._trained_a_little(), self._batch()
        once = self._losses(head, *batch)
        twice = self._losses(head, *(torch.cat([states, states]) for states in batch))
        _assert_same_mean(twice, once, "the loss of a batch and of the same batch twice")

    def test_every_token_that_counts_weighs_the_same(self) -> None:
        """The loss of two clips is the mean of their losses, weighted by their unmasked tokens, up to noise."""
        head, (hidden_BQD, target_BQC) = self._trained_a_little(), self._batch()
        target_BQC[1] = 3.0 * target_BQC[1] + 2.0
        mask_BQ = torch.tensor([[True] * 5, [True] + [False] * 4])
        together = self._losses(head, hidden_BQD[:2], target_BQC[:2], mask_BQ)
        first, second = (
            self._losses(head, *(states[clip : clip + 1] for states in (hidden_BQD, target_BQC, mask_BQ)))
            for clip in range(2)
        )
        _assert_same_mean(together, (5 * first + second) / 6, "the loss of two clips and the mean over their tokens")

    def test_one_token_is_a_clip_too(self) -> None:
        """Autoregressive generation gives a head one token at a time, in training and in sampling."""
        head, (hidden_BQD, target_BQC) = self._trained_a_little(), self._batch()
        loss = _loss(head, hidden_BQD[:, :1], target_BQC[:, :1])
        assert loss.isfinite(), f"the loss of clips of one token is {loss.item()}"
        assert _gradient(head, hidden_BQD[:, :1], target_BQC[:, :1]).isfinite().all(), "its gradient is not finite"
        features_BQC = head.sample(hidden_BQD[:, :1])
        assert features_BQC.shape == (3, 1, self.feature_dim), f"one token gives {tuple(features_BQC.shape)}"
        assert features_BQC.isfinite().all(), "samples of one token are not finite"

    def test_masked_tokens_change_neither_loss_nor_gradients(self) -> None:
        """The content of masked tokens has no effect, even if it is NaN."""
        head = self._trained_a_little()
        (hidden_BQD, target_BQC), mask_BQ = self._batch(), self._mask()
        other_hidden_BQD, other_target_BQC = hidden_BQD.clone(), target_BQC.clone()
        other_hidden_BQD[~mask_BQ] = 7.0
        other_target_BQC[~mask_BQ] = float("nan")
        expected, got = (
            _loss_and_gradients(head, hidden, target, mask_BQ)
            for hidden, target in ((hidden_BQD, target_BQC), (other_hidden_BQD, other_target_BQC))
        )
        assert_close(got, expected, msg=lambda text: f"masked tokens matter: {text}")

    def test_masked_tokens_get_no_gradient(self) -> None:
        """The hidden state of a masked token gets no gradient."""
        hidden_BQD, target_BQC = self._batch()
        gradient_BQD = _gradient(self._trained_a_little(), hidden_BQD, target_BQC, self._mask())
        assert (gradient_BQD[~self._mask()] == 0).all(), "a masked token's hidden state gets a gradient"

    def test_mask_of_ones_is_no_mask(self) -> None:
        """A mask of ones gives the loss without a mask, as booleans and as numbers."""
        head, (hidden_BQD, target_BQC) = self._trained_a_little(), self._batch()
        expected = _loss(head, hidden_BQD, target_BQC)
        ones_BQ = torch.ones(hidden_BQD.shape[:2])
        assert_close(_loss(head, hidden_BQD, target_BQC, ones_BQ.bool()), expected)
        assert_close(_loss(head, hidden_BQD, target_BQC, ones_BQ.long()), expected)

    def test_batch_without_counting_tokens_has_loss_zero(self) -> None:
        """The zero still has a graph: under ZeRO-3 every rank must run the same modules."""
        hidden_BQD, target_BQC = self._batch()
        mask_BQ = torch.zeros(hidden_BQD.shape[:2], dtype=torch.bool)
        loss = _loss(self._head(), hidden_BQD.requires_grad_(), target_BQC, mask_BQ)
        assert loss.item() == 0, f"no token counts, yet the loss is {loss.item()}"
        assert loss.requires_grad, "the loss is cut off from the graph"

    def test_loss_is_computed_in_float32_under_autocast(self) -> None:
        """Equal to the loss without autocast, also for hidden states that come in bfloat16."""
        head, (hidden_BQD, target_BQC) = self._trained_a_little(), self._batch()
        rounded_BQD = hidden_BQD.bfloat16()
        expected = _loss(head, rounded_BQD.float(), target_BQC)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            got = _loss(head, rounded_BQD, target_BQC)
        assert got.dtype == torch.float32, f"loss is {got.dtype} under autocast; put it under force_float32"
        assert_close(got, expected, atol=1e-5, rtol=1e-5, msg=lambda text: f"autocast reaches the loss: {text}")

    def test_loss_is_computed_in_float32_with_bfloat16_parameters(self) -> None:
        """Equal to the loss of a float32 head with the same rounded parameters."""
        head, (hidden_BQD, target_BQC) = self._trained_a_little().bfloat16(), self._batch()
        expected = _loss(copy.deepcopy(head).float(), hidden_BQD, target_BQC)
        got = _loss(head, hidden_BQD.bfloat16().float(), target_BQC)
        reference = _loss(copy.deepcopy(head).float(), hidden_BQD.bfloat16().float(), target_BQC)
        assert got.dtype == torch.float32, f"loss is {got.dtype} with bfloat16 parameters"
        assert_close(got, reference, atol=1e-5, rtol=1e-4)
        assert (got - expected).abs() < 0.05 * (1 + expected.abs()), "rounding the hidden states changes too much"
        got.backward()

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
        each = head.sample_each(hidden_BQD, [_generator(seed) for seed in (1, 2, 3)], temperature=0.7)
        single = [head.sample(hidden_BQD, temperature=0.7, generator=_generator(seed)) for seed in (1, 2, 3)]
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
        loss, features_BQC, settings = _loss(head, *self._batch()), self._sample(head, seed=0), dict(head.init_args)
        set_sampling(head, sampling_of(head))
        assert head.init_args == settings
        assert_close(_loss(head, *self._batch()), loss)
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
        assert_close(_loss(twin, *self._batch()), _loss(head, *self._batch()))
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

    def _head(self) -> GenerationHead:
        torch.manual_seed(0)
        return self.make_head(self.hidden_dim, self.feature_dim)

    def _trained_a_little(self) -> GenerationHead:
        """Return a head after three steps, so that zero-initialised layers are not zero any more."""
        head = self._head()
        self._learn_constant(head, self._batch()[1][0, 0], num_steps=3)
        return head

    def _learnt_mean(self) -> Tensor:
        return torch.linspace(-1.0, 1.0, self.feature_dim)

    def _learnt_samples(self, temperature: float) -> Tensor:
        """Return samples, (N, C), of a head that has learnt a Gaussian; it is trained once per test class."""
        hidden_D = torch.randn(self.hidden_dim, generator=_generator(5))
        if type(self) not in _LEARNT:
            _LEARNT[type(self)] = self._head()

            def gaussian_batch() -> tuple[Tensor, Tensor]:
                target_BQC = self._learnt_mean() + LEARNT_STD * torch.randn(8, 8, self.feature_dim)
                return hidden_D.expand(8, 8, -1), target_BQC

            self._train(_LEARNT[type(self)], gaussian_batch, self.learning_steps)
        hidden_BQD = hidden_D.expand(64, 8, -1)
        return _LEARNT[type(self)].sample(hidden_BQD, temperature=temperature, generator=_generator(2)).flatten(0, 1)

    def _losses(
        self, head: GenerationHead, hidden_BQD: Tensor, target_BQC: Tensor, mask_BQ: Tensor | None = None
    ) -> Tensor:
        """Return the losses under several noises, (4 * NUM_NOISES,)."""
        noises = range(4 * NUM_NOISES)
        return torch.stack([_loss(head, hidden_BQD, target_BQC, mask_BQ, seed).detach() for seed in noises])

    def _learn_constant(self, head: GenerationHead, target_C: Tensor, num_steps: int) -> None:
        self._train(head, lambda: (torch.randn(4, 5, self.hidden_dim), target_C.expand(4, 5, -1)), num_steps)

    def _train(self, head: GenerationHead, batch: Callable[[], tuple[Tensor, Tensor]], num_steps: int) -> None:
        """Train with a learning rate that falls to zero."""
        optimizer = torch.optim.Adam(head.parameters(), lr=self.learning_rate, fused=True)
        torch.manual_seed(1)
        for step in range(num_steps):
            optimizer.param_groups[0]["lr"] = self.learning_rate * (1 - step / num_steps)
            optimizer.zero_grad()
            head(*batch()).backward()
            optimizer.step()

    def _batch(self, seed: int = 0) -> tuple[Tensor, Tensor]:
        generator = _generator(seed)
        hidden_BQD = torch.randn(3, 5, self.hidden_dim, generator=generator)
        return hidden_BQD, torch.randn(3, 5, self.feature_dim, generator=generator)

    def _mask(self) -> Tensor:
        """Return a mask, (3, 5), of clips with all, some and none of their tokens unmasked."""
        return torch.tensor([[True] * 5, [True, False, True, False, False], [False] * 5])

    def _sample(self, head: GenerationHead, seed: int) -> Tensor:
        return head.sample(self._batch()[0], generator=_generator(seed))


_LEARNT: dict[type, GenerationHead] = {}
"""The head that has learnt a Gaussian, by test class."""


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _loss(
    head: GenerationHead, hidden_BQD: Tensor, target_BQC: Tensor, mask_BQ: Tensor | None = None, seed: int = 0
) -> Tensor:
    """Return the loss, with the same noise at each call."""
    torch.manual_seed(seed)
    return head.loss(hidden_BQD, target_BQC, mask_BQ)


def _gradient(
    head: GenerationHead, hidden_BQD: Tensor, target_BQC: Tensor, mask_BQ: Tensor | None = None, seed: int = 0
) -> Tensor:
    hidden_BQD = hidden_BQD.clone().requires_grad_()
    return torch.autograd.grad(_loss(head, hidden_BQD, target_BQC, mask_BQ, seed), hidden_BQD)[0]


def _assert_same_mean(got: Tensor, expected: Tensor, what: str) -> None:
    """Check that two means of losses are equal, within five standard errors of their noise."""
    error = sum(losses.var() / len(losses) for losses in (got, expected)) ** 0.5
    difference = (got.mean() - expected.mean()).abs()
    allowed = 5 * error + 1e-4 * (1 + expected.mean().abs())
    assert difference <= allowed, f"{what} differ: {got.mean():.4f} and {expected.mean():.4f}"


def _loss_and_gradients(head: GenerationHead, hidden_BQD: Tensor, target_BQC: Tensor, mask_BQ: Tensor) -> list[Tensor]:
    hidden_BQD = hidden_BQD.clone().requires_grad_()
    loss = _loss(head, hidden_BQD, target_BQC, mask_BQ)
    parameters = [p for p in head.parameters() if p.requires_grad]
    return [loss.detach(), *torch.autograd.grad(loss, [hidden_BQD, *parameters])]
