"""Each test of the conformance class fails for a head that breaks its rule, and for that reason."""

from collections.abc import Callable

import pytest
import torch
from torch import Generator, Tensor, nn

from divot_heads.mse import MSEHead
from divot_lightning.heads import GenerationHead, float32_island
from divot_lightning.testing import HeadConformance


def conformance(head_class: Callable[[int, int], GenerationHead]) -> HeadConformance:
    """The conformance tests of a head, not collected but called here."""

    class Tested(HeadConformance):
        learning_steps = 20

        def make_head(self, hidden_dim: int, feature_dim: int) -> GenerationHead:
            return head_class(hidden_dim, feature_dim)

    return Tested()


class LossPerToken(MSEHead):
    def loss(self, hidden_BQD: Tensor, target_BQC: Tensor, mask_BQ: Tensor | None = None) -> Tensor:
        return (self.proj(hidden_BQD) - target_BQC).square().mean(dim=-1)


class WithoutMask(MSEHead):
    @float32_island
    def loss(self, hidden_BQD: Tensor, target_BQC: Tensor, mask_BQ: Tensor | None = None) -> Tensor:
        return (self.proj(hidden_BQD) - target_BQC.nan_to_num()).square().mean()


class MaskByMultiplication(MSEHead):
    @float32_island
    def loss(self, hidden_BQD: Tensor, target_BQC: Tensor, mask_BQ: Tensor | None = None) -> Tensor:
        weights_BQ = torch.ones(hidden_BQD.shape[:2]) if mask_BQ is None else mask_BQ.float()
        error_BQ = (self.proj(hidden_BQD) - target_BQC).square().mean(dim=-1)
        return (error_BQ * weights_BQ).sum() / weights_BQ.sum().clamp(min=1)


class WithoutIsland(MSEHead):
    def loss(self, hidden_BQD: Tensor, target_BQC: Tensor, mask_BQ: Tensor | None = None) -> Tensor:
        return (self.proj(hidden_BQD) - target_BQC).square().mean().float()


class DetachedFromHidden(MSEHead):
    def loss(self, hidden_BQD: Tensor, target_BQC: Tensor, mask_BQ: Tensor | None = None) -> Tensor:
        return super().loss(hidden_BQD.detach(), target_BQC, mask_BQ)


class WithUnusedParameter(MSEHead):
    def __init__(self, hidden_dim: int, feature_dim: int) -> None:
        super().__init__(hidden_dim, feature_dim)
        self.unused = nn.Parameter(torch.zeros(3))


class DrawsFromTheGlobalGenerator(MSEHead):
    deterministic = False

    def sample(self, hidden_BQD: Tensor, *, temperature: float = 1.0, generator: Generator | None = None) -> Tensor:
        return torch.randn(*hidden_BQD.shape[:2], self.feature_dim)


class CalledDeterministicButIsNot(MSEHead):
    def sample(self, hidden_BQD: Tensor, *, temperature: float = 1.0, generator: Generator | None = None) -> Tensor:
        return torch.randn(*hidden_BQD.shape[:2], self.feature_dim, generator=generator)


class SamplesWithGradient(MSEHead):
    def sample(self, hidden_BQD: Tensor, *, temperature: float = 1.0, generator: Generator | None = None) -> Tensor:
        return self.proj(hidden_BQD.float())


class SamplesOfAnotherWidth(MSEHead):
    @torch.no_grad()
    def sample(self, hidden_BQD: Tensor, *, temperature: float = 1.0, generator: Generator | None = None) -> Tensor:
        return hidden_BQD.float()


class WithStateOutsideTheStateDict(MSEHead):
    def __init__(self, hidden_dim: int, feature_dim: int) -> None:
        super().__init__(hidden_dim, feature_dim)
        self.register_buffer("offset", torch.randn(feature_dim), persistent=False)

    @float32_island
    def loss(self, hidden_BQD: Tensor, target_BQC: Tensor, mask_BQ: Tensor | None = None) -> Tensor:
        return super().loss(hidden_BQD, target_BQC + self.offset, mask_BQ)


class LearnsNothing(MSEHead):
    def loss(self, hidden_BQD: Tensor, target_BQC: Tensor, mask_BQ: Tensor | None = None) -> Tensor:
        return 0.0 * super().loss(hidden_BQD, target_BQC, mask_BQ)


@pytest.mark.parametrize(
    ("head_class", "test", "reason"),
    [
        (LossPerToken, "loss_is_a_finite_float32_scalar", r"shape \(3, 5\)"),
        (WithoutMask, "masked_tokens_change_neither_loss_nor_gradients", "masked tokens matter"),
        (WithoutMask, "masked_tokens_get_no_gradient", "gets a gradient"),
        (WithoutMask, "batch_without_counting_tokens_has_loss_zero", "no token counts"),
        (MaskByMultiplication, "masked_tokens_change_neither_loss_nor_gradients", "masked tokens matter"),
        (WithoutIsland, "loss_is_computed_in_float32_under_autocast", "autocast reaches the loss"),
        (DetachedFromHidden, "gradient_reaches_the_hidden_states", "."),
        (WithUnusedParameter, "gradient_reaches_every_parameter", "no gradient for: unused"),
        (DrawsFromTheGlobalGenerator, "samples_follow_the_generator", "another source than `generator`"),
        (CalledDeterministicButIsNot, "samples_follow_the_generator", "deterministic=True"),
        (SamplesWithGradient, "samples_have_the_shape_of_features", "carry a gradient"),
        (SamplesOfAnotherWidth, "samples_have_the_shape_of_features", r"sampled \(3, 5, 24\); must be \(3, 5, 6\)"),
        (WithStateOutsideTheStateDict, "state_dict_holds_the_whole_head", "not close"),
        (LearnsNothing, "learns_a_constant_target", "away from the constant target"),
    ],
)
def test_head_that_breaks_a_rule_fails_the_test_of_it(head_class, test, reason):
    with pytest.raises((AssertionError, RuntimeError), match=reason):
        getattr(conformance(head_class), f"test_{test}")()
