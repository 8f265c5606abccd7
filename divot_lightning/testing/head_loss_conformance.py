"""Check the rules of a generation head's loss; `HeadConformance` adds sampling, settings and training.

Shape letters: B batch, Q tokens of one clip, D LLM width, C feature width.
"""

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import ClassVar

import torch
from torch import Tensor
from torch.testing import assert_close

from divot_lightning.parts.heads import GenerationHead

NUM_NOISES = 16
"""Noise samples that a test averages, for heads that drop conditions at random: with a probability of a fifth, a head
drops the same token in all samples with a probability of 0.2 ** 16 = 7e-12."""


class HeadLossConformance(ABC):
    """Test the loss of a head. Subclass `HeadConformance` instead, which has all tests.

    Attributes:
        hidden_dim: D of the heads under test.
        feature_dim: C of the heads under test.
        learning_rate: Learning rate of the Adam steps that tests take.
    """

    hidden_dim: ClassVar[int] = 24
    feature_dim: ClassVar[int] = 6
    learning_rate: ClassVar[float] = 3e-3

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
        loss = seeded_loss(self._head(), *self._batch())
        assert loss.shape == (), f"loss has shape {tuple(loss.shape)}; it must be a scalar"
        assert loss.dtype == torch.float32, f"loss is {loss.dtype}; it must be float32"
        assert loss.isfinite(), f"loss is {loss.item()}"

    def test_calling_the_head_gives_its_loss(self) -> None:
        """Stages call the head itself, so that hooks of sharding wrappers run."""
        head, batch = self._head(), self._batch()
        torch.manual_seed(0)
        called = head(*batch)
        assert_close(called, seeded_loss(head, *batch))

    def test_gradient_reaches_the_hidden_states(self) -> None:
        """Every token's hidden state gets a gradient, under some noise (a head may drop conditions at random)."""
        head = self._trained_a_little()
        gradients = torch.stack([hidden_gradient(head, *self._batch(), seed=seed) for seed in range(NUM_NOISES)])
        assert gradients.isfinite().all(), "the gradient of the hidden states is not finite"
        assert (gradients.abs().amax(dim=(0, -1)) > 0).all(), "some token's hidden state gets no gradient"

    def test_gradient_reaches_every_parameter(self) -> None:
        """Checked after some steps, since zero-initialised layers block the gradient of the layers before them."""
        head = self._trained_a_little()
        head.zero_grad()
        for seed in range(NUM_NOISES):
            seeded_loss(head, *self._batch(), seed=seed).backward()
        missing = [name for name, p in head.named_parameters() if p.requires_grad and p.grad is None]
        assert not missing, f"no gradient for: {', '.join(missing)}"
        bad = [name for name, p in head.named_parameters() if p.grad is not None and not p.grad.isfinite().all()]
        assert not bad, f"gradient not finite for: {', '.join(bad)}"

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
        gradient_BQD = hidden_gradient(self._trained_a_little(), hidden_BQD, target_BQC, self._mask())
        assert (gradient_BQD[~self._mask()] == 0).all(), "a masked token's hidden state gets a gradient"

    def test_mask_of_ones_is_no_mask(self) -> None:
        """A mask of ones gives the loss without a mask, as booleans and as numbers."""
        head, (hidden_BQD, target_BQC) = self._trained_a_little(), self._batch()
        expected = seeded_loss(head, hidden_BQD, target_BQC)
        ones_BQ = torch.ones(hidden_BQD.shape[:2])
        assert_close(seeded_loss(head, hidden_BQD, target_BQC, ones_BQ.bool()), expected)
        assert_close(seeded_loss(head, hidden_BQD, target_BQC, ones_BQ.long()), expected)

    def test_batch_without_counting_tokens_has_loss_zero(self) -> None:
        """The zero still has a graph: under ZeRO-3 every rank must run the same modules."""
        hidden_BQD, target_BQC = self._batch()
        mask_BQ = torch.zeros(hidden_BQD.shape[:2], dtype=torch.bool)
        loss = seeded_loss(self._head(), hidden_BQD.requires_grad_(), target_BQC, mask_BQ)
        assert loss.item() == 0, f"no token counts, yet the loss is {loss.item()}"
        assert loss.requires_grad, "the loss is cut off from the graph"

    def test_loss_is_computed_in_float32_under_autocast(self) -> None:
        """Equal to the loss without autocast, also for hidden states that come in bfloat16."""
        head, (hidden_BQD, target_BQC) = self._trained_a_little(), self._batch()
        rounded_BQD = hidden_BQD.bfloat16()
        expected = seeded_loss(head, rounded_BQD.float(), target_BQC)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            got = seeded_loss(head, rounded_BQD, target_BQC)
        assert got.dtype == torch.float32, f"loss is {got.dtype} under autocast; put it under force_float32"
        assert_close(got, expected, atol=1e-5, rtol=1e-5, msg=lambda text: f"autocast reaches the loss: {text}")

    def test_loss_is_computed_in_float32_with_bfloat16_parameters(self) -> None:
        """Equal to the loss of a float32 head with the same rounded parameters."""
        head, (hidden_BQD, target_BQC) = self._trained_a_little().bfloat16(), self._batch()
        expected = seeded_loss(copy.deepcopy(head).float(), hidden_BQD, target_BQC)
        got = seeded_loss(head, hidden_BQD.bfloat16().float(), target_BQC)
        reference = seeded_loss(copy.deepcopy(head).float(), hidden_BQD.bfloat16().float(), target_BQC)
        assert got.dtype == torch.float32, f"loss is {got.dtype} with bfloat16 parameters"
        assert_close(got, reference, atol=1e-5, rtol=1e-4)
        assert (got - expected).abs() < 0.05 * (1 + expected.abs()), "rounding the hidden states changes too much"
        got.backward()

    def _head(self) -> GenerationHead:
        torch.manual_seed(0)
        return self.make_head(self.hidden_dim, self.feature_dim)

    def _trained_a_little(self) -> GenerationHead:
        """Return a head after three steps, so that zero-initialised layers are not zero any more."""
        head = self._head()
        self._learn_constant(head, self._batch()[1][0, 0], num_steps=3)
        return head

    def _losses(
        self, head: GenerationHead, hidden_BQD: Tensor, target_BQC: Tensor, mask_BQ: Tensor | None = None
    ) -> Tensor:
        """Return the losses under several noises, (4 * NUM_NOISES,)."""
        noises = range(4 * NUM_NOISES)
        return torch.stack([seeded_loss(head, hidden_BQD, target_BQC, mask_BQ, seed).detach() for seed in noises])

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
        generator = seeded(seed)
        hidden_BQD = torch.randn(3, 5, self.hidden_dim, generator=generator)
        return hidden_BQD, torch.randn(3, 5, self.feature_dim, generator=generator)

    def _mask(self) -> Tensor:
        """Return a mask, (3, 5), of clips with all, some and none of their tokens unmasked."""
        return torch.tensor([[True] * 5, [True, False, True, False, False], [False] * 5])


def seeded(seed: int) -> torch.Generator:
    """Return a random generator on the CPU."""
    return torch.Generator().manual_seed(seed)


def seeded_loss(
    head: GenerationHead, hidden_BQD: Tensor, target_BQC: Tensor, mask_BQ: Tensor | None = None, seed: int = 0
) -> Tensor:
    """Return the loss, with the same noise at each call."""
    torch.manual_seed(seed)
    return head.loss(hidden_BQD, target_BQC, mask_BQ)


def hidden_gradient(
    head: GenerationHead, hidden_BQD: Tensor, target_BQC: Tensor, mask_BQ: Tensor | None = None, seed: int = 0
) -> Tensor:
    """Return the gradient of `seeded_loss` at the hidden states."""
    hidden_BQD = hidden_BQD.clone().requires_grad_()
    return torch.autograd.grad(seeded_loss(head, hidden_BQD, target_BQC, mask_BQ, seed), hidden_BQD)[0]


def _assert_same_mean(got: Tensor, expected: Tensor, what: str) -> None:
    """Check that two means of losses are equal, within five standard errors of their noise."""
    error = sum(losses.var() / len(losses) for losses in (got, expected)) ** 0.5
    difference = (got.mean() - expected.mean()).abs()
    allowed = 5 * error + 1e-4 * (1 + expected.mean().abs())
    assert difference <= allowed, f"{what} differ: {got.mean():.4f} and {expected.mean():.4f}"


def _loss_and_gradients(head: GenerationHead, hidden_BQD: Tensor, target_BQC: Tensor, mask_BQ: Tensor) -> list[Tensor]:
    hidden_BQD = hidden_BQD.clone().requires_grad_()
    loss = seeded_loss(head, hidden_BQD, target_BQC, mask_BQ)
    parameters = [p for p in head.parameters() if p.requires_grad]
    return [loss.detach(), *torch.autograd.grad(loss, [hidden_BQD, *parameters])]
