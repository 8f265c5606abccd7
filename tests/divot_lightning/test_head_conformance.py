"""Each test of the conformance class fails for a head that breaks its rule, and for that reason."""

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Generator, Tensor, nn

from divot_heads.gmm import GMMHead
from divot_heads.mse import MSEHead
from divot_lightning.parts.heads import GenerationHead, clear_masked, force_float32
from divot_lightning.testing import HeadConformance


def conformance(head_class: Callable[[int, int], GenerationHead]) -> HeadConformance:
    """The conformance tests of a head, not collected but called here."""

    class Tested(HeadConformance):
        def make_head(self, hidden_dim: int, feature_dim: int) -> GenerationHead:
            return head_class(hidden_dim, feature_dim)

    return Tested()


class LossPerToken(MSEHead):
    def loss(self, hidden_BQD: Tensor, target_BQC: Tensor, mask_BQ: Tensor | None = None) -> Tensor:
        return (self.proj(hidden_BQD) - target_BQC).square().mean(dim=-1)


class WithoutMask(MSEHead):
    @force_float32
    def loss(self, hidden_BQD: Tensor, target_BQC: Tensor, mask_BQ: Tensor | None = None) -> Tensor:
        return (self.proj(hidden_BQD) - target_BQC.nan_to_num()).square().mean()


class MaskByMultiplication(MSEHead):
    @force_float32
    def loss(self, hidden_BQD: Tensor, target_BQC: Tensor, mask_BQ: Tensor | None = None) -> Tensor:
        weights_BQ = torch.ones(hidden_BQD.shape[:2]) if mask_BQ is None else mask_BQ.float()
        error_BQ = (self.proj(hidden_BQD) - target_BQC).square().mean(dim=-1)
        return (error_BQ * weights_BQ).sum() / weights_BQ.sum().clamp(min=1)


class WithoutFloat32(MSEHead):
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

    @force_float32
    def loss(self, hidden_BQD: Tensor, target_BQC: Tensor, mask_BQ: Tensor | None = None) -> Tensor:
        return super().loss(hidden_BQD, target_BQC + self.offset, mask_BQ)


class LearnsNothing(MSEHead):
    def loss(self, hidden_BQD: Tensor, target_BQC: Tensor, mask_BQ: Tensor | None = None) -> Tensor:
        return 0.0 * super().loss(hidden_BQD, target_BQC, mask_BQ)


class SeesOtherClips(MSEHead):
    def loss(self, hidden_BQD: Tensor, target_BQC: Tensor, mask_BQ: Tensor | None = None) -> Tensor:
        hidden_BQD = clear_masked(hidden_BQD, mask_BQ)
        return super().loss(hidden_BQD + hidden_BQD.mean(dim=0), target_BQC, mask_BQ)


class SamplesWithOtherClips(MSEHead):
    def sample(self, hidden_BQD: Tensor, *, temperature: float = 1.0, generator: Generator | None = None) -> Tensor:
        return super().sample(hidden_BQD + hidden_BQD.mean(dim=0))


class OneGaussian(GMMHead):
    """A right head that learns fast."""

    sampling_settings = ()

    def __init__(self, hidden_dim: int, feature_dim: int) -> None:
        super().__init__(hidden_dim, feature_dim, num_components=1, variance_scale=1.0)


class SamplesOnceForAll(OneGaussian):
    def sample_each(self, hidden_BQD: Tensor, generators: Sequence[Generator], *, temperature: float = 1.0) -> Tensor:
        return self.sample(hidden_BQD, temperature=temperature, generator=generators[0]).expand(3, -1, -1, -1)


class IgnoresTemperature(OneGaussian):
    def sample(self, hidden_BQD: Tensor, *, temperature: float = 1.0, generator: Generator | None = None) -> Tensor:
        return super().sample(hidden_BQD, generator=generator)


class SamplesThreefoldNoise(OneGaussian):
    def sample(self, hidden_BQD: Tensor, *, temperature: float = 1.0, generator: Generator | None = None) -> Tensor:
        return super().sample(hidden_BQD, temperature=3 * temperature, generator=generator)


class SumOverTokens(MSEHead):
    @force_float32
    def loss(self, hidden_BQD: Tensor, target_BQC: Tensor, mask_BQ: Tensor | None = None) -> Tensor:
        tokens = hidden_BQD.shape[0] * hidden_BQD.shape[1] if mask_BQ is None else mask_BQ.sum()
        return tokens * super().loss(hidden_BQD, target_BQC, mask_BQ)


class MeanOverClips(MSEHead):
    @force_float32
    def loss(self, hidden_BQD: Tensor, target_BQC: Tensor, mask_BQ: Tensor | None = None) -> Tensor:
        each = [
            super(MeanOverClips, self).loss(*(states[clip : clip + 1] for states in (hidden_BQD, target_BQC)), mask)
            for clip in range(len(hidden_BQD))
            for mask in [None if mask_BQ is None else mask_BQ[clip : clip + 1]]
        ]
        return torch.stack(each).mean()


class NeedsTwoTokens(MSEHead):
    @torch.no_grad()
    def sample(self, hidden_BQD: Tensor, *, temperature: float = 1.0, generator: Generator | None = None) -> Tensor:
        return self.proj(hidden_BQD.float() / hidden_BQD.float().std(dim=1, keepdim=True))


class NamesNoSetting(MSEHead):
    sampling_settings = ("guidance",)


class LeavesOutConditions(OneGaussian):
    """A right head: a fifth of the tokens is learnt without their hidden state, for guidance."""

    def __init__(self, hidden_dim: int, feature_dim: int) -> None:
        super().__init__(hidden_dim, feature_dim)
        self.nothing = nn.Linear(1, hidden_dim)

    @force_float32
    def loss(self, hidden_BQD: Tensor, target_BQC: Tensor, mask_BQ: Tensor | None = None) -> Tensor:
        dropped_BQ1 = torch.rand(*hidden_BQD.shape[:2], 1, device=hidden_BQD.device) < 0.2
        nothing_D = self.nothing(hidden_BQD.new_ones(1))
        return super().loss(torch.where(dropped_BQ1, nothing_D, clear_masked(hidden_BQD, mask_BQ)), target_BQC, mask_BQ)


@pytest.mark.parametrize(
    ("head_class", "test", "reason"),
    [
        (LossPerToken, "loss_is_a_finite_float32_scalar", r"shape \(3, 5\)"),
        (WithoutMask, "masked_tokens_change_neither_loss_nor_gradients", "masked tokens matter"),
        (WithoutMask, "masked_tokens_get_no_gradient", "gets a gradient"),
        (WithoutMask, "batch_without_counting_tokens_has_loss_zero", "no token counts"),
        (MaskByMultiplication, "masked_tokens_change_neither_loss_nor_gradients", "masked tokens matter"),
        (WithoutFloat32, "loss_is_computed_in_float32_under_autocast", "autocast reaches the loss"),
        (DetachedFromHidden, "gradient_reaches_the_hidden_states", "."),
        (WithUnusedParameter, "gradient_reaches_every_parameter", "no gradient for: unused"),
        (DrawsFromTheGlobalGenerator, "samples_follow_the_generator", "randomness besides `generator`"),
        (CalledDeterministicButIsNot, "samples_follow_the_generator", "deterministic=True"),
        (SamplesWithGradient, "samples_have_the_shape_of_features", "carry a gradient"),
        (SamplesOfAnotherWidth, "samples_have_the_shape_of_features", r"sampled \(3, 5, 24\); must be \(3, 5, 6\)"),
        (WithStateOutsideTheStateDict, "state_dict_holds_the_whole_head", "not close"),
        (LearnsNothing, "learns_a_constant_target", "away from the constant target"),
        (SeesOtherClips, "clips_of_a_batch_do_not_see_each_other", "see each other in the loss"),
        (SamplesWithOtherClips, "clips_of_a_batch_do_not_see_each_other", "see each other in samples"),
        (SamplesOnceForAll, "samples_of_several_generators_equal_single_calls", "differs from single calls"),
        (IgnoresTemperature, "temperature_narrows_the_spread", r"temperature 0\.5 has spread"),
        (SamplesThreefoldNoise, "samples_have_the_spread_that_was_learnt", r"spread \d\.\d+ times as widely"),
        (SumOverTokens, "duplicating_the_batch_keeps_the_loss", "the same batch twice differ"),
        (MeanOverClips, "every_token_that_counts_weighs_the_same", "the mean over their tokens differ"),
        (NeedsTwoTokens, "one_token_is_a_clip_too", "samples of one token are not finite"),
        (NamesNoSetting, "sampling_settings_can_be_set_in_a_trained_head", "'guidance' is no setting"),
    ],
)
def test_head_that_breaks_a_rule_fails_the_test_of_it(head_class, test, reason):
    with pytest.raises((AssertionError, RuntimeError), match=reason):
        getattr(conformance(head_class), f"test_{test}")()


SLOW = {"test_trains_under_zero_in_two_processes"}
"""Runs for heads of its own in the tests of the heads."""


def test_a_head_that_leaves_out_conditions_at_random_passes():
    class Patient(HeadConformance):
        learning_rate = 2e-2  # its layers are 13 wide

        def make_head(self, hidden_dim: int, feature_dim: int) -> GenerationHead:
            return LeavesOutConditions(hidden_dim, feature_dim)

    for name in sorted({name for name in dir(Patient) if name.startswith("test_")} - SLOW):
        getattr(Patient(), name)()
