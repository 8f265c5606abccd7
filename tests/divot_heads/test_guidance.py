import pytest
import torch

from divot_heads.diffusion import DiffusionHead
from divot_heads.flow_clip import FlowClipHead
from divot_heads.flow_token import FlowTokenHead
from divot_heads.guidance import ConditionDropout, guided
from divot_lightning.errors import UserError


def test_training_replaces_the_stated_share_of_rows_and_evaluation_none():
    torch.manual_seed(0)
    dropout, rows = ConditionDropout(3, 0.25), torch.zeros(8000, 3)
    replaced = (dropout(rows) == dropout.unconditional_D).all(dim=-1)
    assert replaced.float().mean().item() == pytest.approx(0.25, abs=0.025)  # 5 standard errors
    assert torch.equal(dropout.eval()(rows), rows)
    assert torch.equal(dropout(rows, everywhere=True), dropout.unconditional_D.expand_as(rows))


def test_all_tokens_of_a_clip_lose_their_condition_together():
    torch.manual_seed(0)
    dropout = ConditionDropout(3, 0.5)
    replaced = (dropout(torch.zeros(100, 7, 3)) == dropout.unconditional_D).all(dim=-1)
    assert (replaced.all(dim=1) | ~replaced.any(dim=1)).all()
    assert 20 < replaced[:, 0].sum() < 80


def test_the_learned_vector_has_a_gradient_also_where_no_row_is_replaced():
    dropout = ConditionDropout(3, 0.5).eval()
    dropout(torch.ones(4, 3)).sum().backward()
    assert torch.equal(dropout.unconditional_D.grad, torch.zeros(3))


@pytest.mark.parametrize("guidance", [0.0, 0.5, 1.0, 4.0])
def test_guidance_moves_along_the_difference(guidance):
    dropout = ConditionDropout(2, 0.5)
    found = guided(torch.square, torch.tensor([[3.0, 2.0]]), dropout, guidance)
    without, with_condition = dropout.unconditional_D.square(), torch.tensor([[9.0, 4.0]])
    torch.testing.assert_close(found, without + guidance * (with_condition - without))


def test_a_diffusion_head_without_dropout_has_no_parameters_for_it_and_refuses_guidance():
    head = DiffusionHead(8, 4, width=8, depth=1)
    assert all(name.startswith("denoiser.") for name in head.state_dict())
    with pytest.raises(UserError, match=r"guidance=2.0 is not allowed with condition_dropout=0"):
        DiffusionHead(8, 4, width=8, depth=1, guidance=2.0)


def test_guidance_of_the_diffusion_head_is_that_of_its_predictions():
    """A denoiser that returns the condition: guided samples equal samples of the guided condition."""
    head = DiffusionHead(2, 2, width=8, depth=1, sampling_steps=9, condition_dropout=0.1, guidance=2.5)
    head.denoiser = _ReturnsCondition()
    hidden = torch.randn(3, 4, 2)
    guided_hidden = torch.lerp(head.condition_dropout.unconditional_D.detach(), hidden, 2.5)
    found = head.sample(hidden, generator=torch.Generator().manual_seed(0))
    head.guidance = 1.0
    torch.testing.assert_close(found, head.sample(guided_hidden, generator=torch.Generator().manual_seed(0)))


@pytest.mark.parametrize("head_class", [DiffusionHead, FlowTokenHead, FlowClipHead])
def test_the_loss_of_every_head_with_guidance_replaces_the_stated_fraction_of_conditions(head_class):
    """Of rows of tokens; of whole clips where a clip is a row."""
    torch.manual_seed(0)
    head = head_class(8, 3, condition_dropout=0.25)
    head.denoiser = seen = _KeepsCondition()
    head.loss(torch.randn(1000, 5, 8), torch.randn(1000, 5, 3))
    replaced = (seen.condition == head.condition_dropout.unconditional_D).all(dim=-1)
    assert replaced.float().mean().item() == pytest.approx(0.25, abs=0.05)
    if head_class is FlowClipHead:
        assert torch.equal(replaced.all(dim=1), replaced.any(dim=1))


class _KeepsCondition(torch.nn.Module):
    def forward(self, noisy, time, condition, mask=None):
        self.condition = condition
        return noisy


class _ReturnsCondition(torch.nn.Module):
    def forward(self, noisy, timestep, condition):
        return condition
